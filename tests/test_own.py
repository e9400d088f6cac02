"""A user's own file: searched from the shell, killed, resumed, edited, and refused in one line."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenas_jax import cli

ROOT = Path(__file__).parents[1]
SMALL = shlex.split(
    "--images 16 --image-size 8 --padding 1 --ntk.batch-size 4 --ntk.channels 2 --repeats 1 "
    "--space my_nas:SPACE --metrics kappa,swap,my_nas:PROGRESSIVITY --data photos"
)
MAIN = "import sys; from tenas_jax.cli import main; sys.exit(main())"


def start(folder, *words):
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, "search", *SMALL, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def result_of(folder):
    result = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in result.items() if name not in ("seconds", "crc32")}


def default_workdir(folder):
    [workdir] = (folder / "tenas-runs").iterdir()
    assert workdir.name.startswith("my-net-seed0-")  # and a digest of the flags
    return workdir


def programs(folder):
    return {path.name for path in (folder / "cache" / "tenas_jax").glob("traced-*")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with nothing in it but `my_nas.py`, and what a search left there."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "docs" / "my_nas.py", folder)
    code, output = finished(start(folder))
    assert code == 0, output
    assert "genotype block_0=conv" in output
    assert f"files are in tenas-runs/{default_workdir(folder).name}" in output
    return folder


def test_a_search_of_ones_own_space_ends_with_a_genotype_and_pictures(folder):
    workdir = default_workdir(folder)
    result = result_of(workdir)
    assert result["space"] == "my_nas:SPACE"
    assert result["genotype"].count("=") == 3
    assert [len(entry["candidates"]) for entry in result["rounds"]] == [12, 9, 6]
    assert set(result["rounds"][0]["metrics"]) == {"kappa", "swap", "progressivity"}
    for name in ("trajectory.png", "pruning.png", "cell.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "config.json").read_text())["sources"].keys() == {"my_nas"}
    assert len(programs(folder)) == 3  # of kappa, swap and the file's metric


def test_killed_and_resumed_it_is_the_same(folder):
    workdir = folder / "killed"
    trace = workdir / "trace.jsonl"
    process = start(folder, "--workdir", "killed")
    while process.poll() is None and (not trace.exists() or trace.read_bytes().count(b"\n") < 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = trace.read_bytes().count(b"\n")
    code, output = finished(start(folder, "--workdir", "killed", "--resume"))
    assert code == 0, output
    whole = default_workdir(folder)
    assert result_of(workdir) == result_of(whole)
    assert trace.read_bytes() == (whole / "trace.jsonl").read_bytes()
    assert lines < trace.read_bytes().count(b"\n")
    assert len(programs(folder)) == 3  # those of the first search


def test_an_edited_file_is_measured_anew(folder):
    whole = result_of(default_workdir(folder))
    source = (folder / "my_nas.py").read_text()
    edited = source.replace(".min()\n", ".min() * 2\n")
    assert edited != source
    (folder / "my_nas.py").write_text(edited)
    try:
        code, output = finished(start(folder, "--resume"))
        assert code == 2
        assert "differs in the files of your modules: " in output
        code, output = finished(start(folder, "--workdir", "edited"))
        assert code == 0, output
    finally:
        (folder / "my_nas.py").write_text(source)
    results = whole, result_of(folder / "edited")
    first, second = (each["rounds"][0]["metrics"] for each in results)
    assert second["progressivity"] == pytest.approx(2 * first["progressivity"], rel=1e-5)
    assert second["kappa"] == pytest.approx(first["kappa"], rel=1e-5)
    assert len(programs(folder)) == 6


def test_other_commands_understand_it(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(["describe", str(default_workdir(folder)), "--output", "cell.png"]) == 0
    output = capsys.readouterr().out
    assert "Block_" in output
    assert "my-net, 10 classes, images of 32 x 32" in output
    text = "block_0=conv3_w1,block_1=conv5_w2,block_2=conv3_w1"
    assert cli.main(["describe", text, "--space", "my_nas:SPACE", "--channels", "4"]) == 0
    assert cli.main(["train", str(default_workdir(folder))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "my-net" in error


FILES = {
    "broken": "import not_a_module_at_all",
    "raises": "1 / 0",
    "exits": "import sys; sys.exit(3)",
    "kinds": "SPACE = 3\nMETRIC = 'kappa'\nCONFIG = {}\n",
    "empty": "from tenas_jax import ChoiceSpace\nSPACE = ChoiceSpace('x', {'a': ()}, print)\n",
    "commas": "from tenas_jax import ChoiceSpace as C\nSPACE = C('x', {'a': ['b,c']}, print)\n",
    "text": "from tenas_jax import ChoiceSpace\nSPACE = ChoiceSpace('x', {'a': 'bc'}, print)\n",
    "twice": "from tenas_jax import Metric\nX = Metric('a', 1, len)\nY = Metric('a', 1, max)\n",
}


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--space broken:SPACE", "cannot import 'broken': ModuleNotFoundError: No module named"),
        ("--space raises:SPACE", "cannot import 'raises': ZeroDivisionError: division by zero"),
        ("--space exits:SPACE", "cannot import 'exits': SystemExit: 3"),
        ("--space missing_module:SPACE", "cannot import 'missing_module': ModuleNotFoundError"),
        ("--space :SPACE", "cannot import ''"),
        ("--space kinds:SPAC", "module kinds has no 'SPAC' (did you mean 'SPACE'?)"),
        ("--space kinds:SPACE", "is of type int: it must be a SearchSpace"),
        ("--metrics kappa,kinds:METRIC", "is of type str: it must be a Metric"),
        ("--metrics kappa,regoins", "unknown metric 'regoins' (did you mean 'regions'?)"),
        ("--metrics twice:X,twice:Y", "metrics a,a name a metric twice"),
        ("--ntk.initializer kinds:CONFIG", "is of type dict: it must be an Initializer"),
        ("--strategy kinds:SPACE", "is of type int: it must be a Callable"),
        ("--space empty:SPACE", "x: option of choice a: none given, give at least one"),
        ("--space commas:SPACE", "option of choice a 'b,c': use letters, digits"),
        ("--space text:SPACE", "choice a has the options 'bc': give a tuple of names"),
    ],
)
def test_bad_files_are_one_line(own_files, capsys, words, fault):
    assert cli.main(["search", *words.split()]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.startswith("tenas: ")
    assert error.count("\n") == 1
    assert not Path("tenas-runs").exists()


def test_a_preset_may_be_a_file(own_files, capsys):
    assert cli.main(["search", "kinds:CONFIG"]) == 2
    assert "preset 'kinds:CONFIG' is of type dict: it must be a SearchConfig" in (
        capsys.readouterr().err
    )
