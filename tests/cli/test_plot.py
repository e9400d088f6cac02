"""`tenas plot`: the pictures of a finished search again."""

import json
import shutil

import pytest
from fake_scorer import search

from tenas_jax import cli
from tenas_jax.analysis.results import SearchResult
from tenas_jax.host.files import read_json, write_json
from tenas_jax.spaces import NAS_BENCH_201, load_genotype


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    search(folder)
    return folder


def test_pictures_are_drawn_beside_the_result(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path.name for path in run.iterdir()}
    assert cli.main(["plot", str(run), "--width", "3.3"]) == 0
    assert capsys.readouterr().out == f"pictures are in {run}\n"
    made = {path for path in run.iterdir() if path.name not in before}
    assert {path.name for path in made} == {"cell.pdf", "pruning.pdf", "trajectory.pdf"}
    for path in made:
        assert path.read_bytes().startswith(b"%PDF-")
        assert b"/MediaBox [ 0 0 237.6 " in path.read_bytes()  # 3.3 inches of 72 points
        assert b"/TrueType" in path.read_bytes() or b"/CIDFontType2" in path.read_bytes()
        assert b"/Type3" not in path.read_bytes()


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_another_format_and_folder(finished, tmp_path, kind, start):
    words = ["plot", str(finished), "--format", kind, "--output", str(tmp_path / "pictures")]
    before = sorted(path.name for path in finished.iterdir())
    assert cli.main(words) == 0
    files = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in files] == [
        f"{name}.{kind}" for name in ("cell", "pruning", "trajectory")
    ]
    assert all(path.read_bytes().startswith(start) for path in files)
    assert sorted(path.name for path in finished.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "WORKDIR"),
        (["nowhere"], "nowhere holds no result.json: name the work directory of a finished sea"),
        (["|none~0|"], "holds no result.json"),
        (["run", "--format", "eps"], "eps"),
        (["run", "--width", "0"], "width must be 2 to 30 inches, not 0"),
        (["run", "--width", "nan"], "width must be 2 to 30 inches, not nan"),
        (["run", "--output", "/dev/null/x"], "cannot use /dev/null/x"),
    ],
)
def test_bad_words_are_one_line(finished, tmp_path, monkeypatch, capsys, words, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(finished)
    assert cli.main(["plot", *words]) == 2
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1


def test_a_result_of_a_version_that_did_not_measure_what_it_found(finished, tmp_path):
    path = tmp_path / "result.json"
    result = read_json(finished / "result.json", remedy="")
    del result["found"]
    for entry in result["rounds"]:
        del entry["standard_errors"], entry["repeats"]
    write_json(path, result)
    assert cli.main(["plot", str(tmp_path)]) == 0
    assert len([*tmp_path.glob("*.pdf")]) == 3
    assert cli.main(["describe", str(tmp_path)]) == 0  # reads it as train does
    _, mask = load_genotype(str(tmp_path))
    assert NAS_BENCH_201.to_string(mask) == result["genotype"]
    found = SearchResult(result, NAS_BENCH_201, 10)
    assert found.found == {}
    assert "<td>found</td>" not in found._repr_html_()


def test_a_damaged_result_is_not_drawn(finished, tmp_path, capsys):
    content = json.loads((finished / "result.json").read_text())
    content["seed"] += 1
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert cli.main(["plot", str(tmp_path)]) == 2
    assert "result.json is damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
