"""What a folder says about its training is what was written, or is refused."""

import json

import pytest
from bit_flips import Train

from tenas_jax.errors import InputError
from tenas_jax.host.files import checksum, read_json, write_json
from tenas_jax.host.journal import append_journal
from tenas_jax.host.locks import locked
from tenas_jax.host.reproducibility import environment
from tenas_jax.training.folder import epoch_records, load_training, open_output

TRAINING = Train.training


@pytest.fixture
def folder(tmp_path):
    """Of two epochs of a training."""
    Train().make(tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"test_accuracy": 1.19}, "test_accuracy cannot be 1.19"),
        ({"test_accuracy": -0.01}, "test_accuracy cannot be -0.01"),
        ({"test_accuracy": True}, "test_accuracy cannot be True"),
        ({"test_accuracy": "0.5"}, "test_accuracy cannot be 0.5"),
        ({"test_loss": -1}, "test_loss cannot be -1"),
        ({"epoch": 0}, "epoch cannot be 0"),
    ],
)
def test_impossible_metrics_are_refused(folder, values, fault):
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("")
    changed = [{**record, **(values if n == 1 else {})} for n, record in enumerate(records)]
    for record in changed:
        del record["crc32"]
    append_journal(path, changed, checksum(TRAINING.about()))
    before = contents(folder)
    for read in (epoch_records, Train().finish):
        with pytest.raises(InputError, match=rf"metrics.jsonl, line 2: {fault}: delete the check"):
            read(folder)
    assert contents(folder) == before


def test_an_edited_metric_is_refused(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.75", "0.85"))
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1 is damaged or of another run"):
        epoch_records(folder)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1 is damaged or of another run"):
        Train().read(folder)


def test_lines_after_the_last_checkpoint_are_cut_off(folder):
    path = folder / "metrics.jsonl"
    expected = path.read_bytes()
    for tail in (b'{"step": 5', b"\0\0\n", b"\xff"):
        path.write_bytes(expected + tail)
        Train().read(folder)
        assert path.read_bytes() == expected
    path.write_bytes(expected[:-1])
    with pytest.raises(InputError, match="line 2 is damaged"):
        Train().read(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [({"jax": "0.0.1"}, r"jax \(0.0.1, here"), ({"optax": "0.0.1"}, r"optax \(0.0.1, here")],
)
def test_a_training_is_resumed_where_it_was_begun(tmp_path, monkeypatch, change, fault):
    with monkeypatch.context() as patch:
        there = {**environment(), **change}
        patch.setattr("tenas_jax.training.folder.environment", lambda: there)
        open_output(tmp_path, TRAINING, resume=False)
    with pytest.raises(InputError, match=rf"holds a training that differs in {fault}"):
        open_output(tmp_path, TRAINING, resume=True)
    assert load_training(tmp_path) == TRAINING  # to be evaluated anywhere


def test_a_lock_is_no_content(tmp_path):
    with locked(tmp_path, flag="--output"):
        open_output(tmp_path, TRAINING, resume=False)
    with pytest.raises(InputError, match="is not empty: continue with --resume"):
        open_output(tmp_path, TRAINING, resume=False)


def test_the_config_of_the_version_before_has_no_checksum(folder):
    path = folder / "config.json"
    values = read_json(path, remedy="")
    path.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match="no checksum, so it is of another version: train again in"
    ):
        load_training(folder)
    write_json(path, values)
    assert load_training(folder) == TRAINING
