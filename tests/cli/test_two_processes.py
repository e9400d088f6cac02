"""Two commands in one folder: one works, the other ends with a line, and nothing changes."""

import os
import socket
from itertools import product

import jax
import numpy as np
import pytest
from fake_scorer import HashScorer
from genotypes import bench_text

from tenas_jax import api, cli
from tenas_jax.analysis import report
from tenas_jax.cli import session, train
from tenas_jax.data import labeled
from tenas_jax.data.images import ImageSet
from tenas_jax.data.normalization import Normalization
from tenas_jax.errors import InputError
from tenas_jax.searching import scorer as scoring
from tenas_jax.training import loop

COMMANDS = {
    "search": ["search", "--workdir", "run"],
    "score": ["score", "--sample", "9", "--metrics", "kappa,regions", "--workdir", "run"],
    "train": ["train", bench_text(*["none"] * 6), "--output", "run"],
}


class Interloper:
    """What happens while a command is at work, once."""

    def __init__(self):
        self.act = lambda: None

    def __call__(self):
        act, self.act = self.act, lambda: None
        act()


@pytest.fixture
def interloper(monkeypatch, tmp_path):
    """Replaces what takes long, in an empty folder; called in the midst of each command."""
    interloper = Interloper()

    class Scorer(HashScorer):
        def __call__(self, keys, masks):
            if self.calls == 1:
                interloper()
            return super().__call__(keys, masks)

    def fit(training, split, devices, folder, **_):
        with loop.MetricsLog(folder, training, 0, 0) as log:
            interloper()
            log.write({"step": 1, "epoch": 1, "test_accuracy": 0.5})
        return True

    def part(name):
        return labeled.LabeledImages(512, ("a", "b"), lambda _: None, name)

    images = ImageSet(np.zeros((80, 32, 32, 3), np.uint8), (0.5,) * 3, (0.2,) * 3, "photos")
    split = labeled.Split(part("f00d"), part("beef"), Normalization((0.5,) * 3, (0.2,) * 3))
    for command in (session, train):
        monkeypatch.setattr(command, "configure_jax", lambda _: jax.devices("cpu")[:1])
    monkeypatch.setattr(api, "load_images", lambda *_, **__: images)
    monkeypatch.setattr(scoring, "make_scorer", lambda *_, **__: Scorer(batch_rows=4))
    monkeypatch.setattr(report, "write_plots", lambda *_: None)
    monkeypatch.setattr(report, "summary", lambda *_: "")
    monkeypatch.setattr(labeled, "load_split", lambda *_: split)
    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.chdir(tmp_path)
    return interloper


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize(("first", "second"), list(product(COMMANDS, COMMANDS)))
def test_one_works_and_the_other_is_refused(interloper, tmp_path, capsys, first, second, resumed):
    words = ["--resume"] if resumed else []
    if resumed:  # there is something to resume

        def interrupt():
            raise KeyboardInterrupt

        interloper.act = interrupt
        assert cli.main(COMMANDS[first]) == 130
        capsys.readouterr()
    seen = []

    def intrude():
        before = contents(tmp_path / "run")
        code = cli.main([*COMMANDS[second], *words])
        seen.append((code, capsys.readouterr().err, contents(tmp_path / "run") == before))

    interloper.act = intrude
    assert cli.main([*COMMANDS[first], *words]) == 0
    flag = "--output" if second == "train" else "--workdir"
    line = (
        f"tenas: run is in use by process {os.getpid()} on {socket.gethostname()}: wait for its "
        f"end or choose another {flag}\n"
    )
    assert seen == [(2, line, True)]
    assert not (tmp_path / "run" / ".lock").exists()
    # The folder is the first one's alone.
    assert cli.main([*COMMANDS[first], "--resume"]) == 0
    if second != first:
        assert cli.main([*COMMANDS[second], "--resume"]) == 2


def test_default_folders_are_of_one_run_alone(interloper, tmp_path):
    runs = [
        ["search"],
        ["search", "--repeats", "2"],
        ["search", "--repeats", "2", "--seed", "1"],
        ["search", "--ntk.batch-size", "30"],
        ["search", "nas-bench-201-paper"],
        ["search", "--space", "nas-bench-201", "--repeats", "1"],
        ["score", "--sample", "9"],
        ["score", "--sample", "8"],
        ["score", bench_text(*["none"] * 6)],
        ["train", bench_text(*["none"] * 6)],
        ["train", bench_text(*["skip_connect"] * 6)],
        ["train", bench_text(*["none"] * 6), "--epochs", "3"],
    ]
    for count, words in enumerate(runs, start=1):
        metrics = ["--metrics", "kappa,regions"] if words[0] == "score" else []
        assert cli.main([*words, *metrics]) == 0
        assert len(list((tmp_path / "tenas-runs").iterdir())) == count
    names = {path.name for path in (tmp_path / "tenas-runs").iterdir()}
    assert {"nas-bench-201-seed0", "nas-bench-201-paper-seed0"} <= names


def test_an_interrupted_run_in_its_default_folder_is_resumed(interloper, tmp_path, capsys):
    def interrupt():
        raise KeyboardInterrupt

    interloper.act = interrupt
    assert cli.main(["search", "--repeats", "2"]) == 130
    error = capsys.readouterr().err
    assert error.endswith("continue with: tenas search --repeats 2 --resume\n")
    assert cli.main(["search", "--repeats", "2", "--resume"]) == 0
    assert len(list((tmp_path / "tenas-runs").iterdir())) == 1


def test_functions_keep_their_folder_too(interloper, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    quick = {"workdir": tmp_path / "run", "ntk": {"batch_size": 8}, "progress": False}
    seen = []

    def intrude():
        for use in (
            lambda: api.search("nas-bench-201", images, **quick),
            lambda: api.score("nas-bench-201", 3, images, metrics="kappa,regions", **quick),
        ):
            with pytest.raises(InputError, match=f"run is in use by process {os.getpid()} on .*: "):
                use()
            seen.append(use)

    interloper.act = intrude
    first = api.search("nas-bench-201", images, **quick)
    assert len(seen) == 2
    assert api.search("nas-bench-201", images, **quick).content == first.content
