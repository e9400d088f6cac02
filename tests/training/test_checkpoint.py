"""Checkpoints are whole or absent, the best and the last are kept, and strangers are refused."""

import hashlib
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tenas_jax.errors import InputError
from tenas_jax.training.checkpoint import Checkpoints
from tenas_jax.training.steps import initial_state

ABOUT = {"genotype": "|none~0|", "seed": 1}


def state_of(step, size=3):
    variables = {
        "params": {"conv": {"kernel": jnp.full((size, 2), step / 3)}},
        "batch_stats": {"norm": {"mean": jnp.arange(2.0)}},
    }
    state = initial_state(variables, optax.chain(optax.clip(1.0), optax.sgd(0.1, 0.9)))
    return state._replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Six checkpoints were written, the second of them the best."""
    tmp_path = tmp_path_factory.mktemp("written")
    accuracies = 0.5, 0.9, 0.1, None, 0.2, None
    with Checkpoints(tmp_path / "checkpoints", ABOUT, keep_last=2) as checkpoints:
        assert checkpoints.latest is checkpoints.best is None
        for step, accuracy in enumerate(accuracies, start=1):
            checkpoints.save(state_of(step), 10 * step, accuracy)
    return tmp_path / "checkpoints"


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def test_the_last_and_the_best_are_kept_across_processes(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5", "6"]
    with Checkpoints(folder, ABOUT, keep_last=2) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (6, 2)
        checkpoints.save(state_of(7), 70)
    with Checkpoints(folder, ABOUT, read_only=True) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (7, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "6", "7"]


def test_what_was_saved_is_restored(folder):
    with Checkpoints(folder, ABOUT, read_only=True) as checkpoints:
        state, log_bytes = checkpoints.restore(6, state_of(0))
        variables = checkpoints.variables(2, state_of(0).variables)
    assert log_bytes == 60
    assert state.step == 6
    expected = state_of(6)
    np.testing.assert_array_equal(
        state.variables["params"]["conv"]["kernel"], expected.variables["params"]["conv"]["kernel"]
    )
    assert type(state.optimizer) is type(expected.optimizer)
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"], np.full((3, 2), np.float32(2 / 3))
    )


def test_what_is_not_whole_is_never_loaded(folder):
    # As a kill leaves it: Orbax gives a folder its name when everything is in it.
    unfinished = folder / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "variables").write_text("torn")
    with Checkpoints(folder, ABOUT, read_only=True) as checkpoints:
        assert checkpoints.latest == 6
    assert unfinished.exists()
    with Checkpoints(folder, ABOUT) as checkpoints:
        assert checkpoints.latest == 6
        checkpoints.save(state_of(9), 90)
    with Checkpoints(folder, ABOUT, read_only=True) as checkpoints:
        assert checkpoints.latest == 9
        assert checkpoints.restore(9, state_of(0)).log_bytes == 90


@pytest.mark.parametrize("read", ["restore", "variables"])
def test_a_checkpoint_of_another_training_is_refused(folder, read):
    with Checkpoints(folder, {**ABOUT, "seed": 2}, read_only=True) as checkpoints:
        like = state_of(0) if read == "restore" else state_of(0).variables
        with pytest.raises(InputError, match=r"checkpoint 6 .* a training that differs in seed"):
            getattr(checkpoints, read)(6, like)
    with Checkpoints(folder, ABOUT, read_only=True) as checkpoints:
        like = state_of(0, size=4) if read == "restore" else state_of(0, size=4).variables
        with pytest.raises(InputError, match="another version of the network"):
            getattr(checkpoints, read)(6, like)


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(InputError, match="cannot use /dev/null/checkpoints: Not a directory"):
        Checkpoints(Path("/dev/null/checkpoints"), {})


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("item", ["notes", "rest", "variables", "SHA256SUMS"])
@pytest.mark.parametrize("change", ["flip", "cut", "delete"])
def test_damage_is_found_before_anything_is_read(folder, item, change, read_only):
    step = folder / "6"
    files = [path for path in (step / item).rglob("*") if path.is_file()] or [step / item]
    for path in files[:2]:
        content = path.read_bytes()
        if change == "delete":
            path.unlink()
        elif change == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(
            InputError, match=r"checkpoint 6 in .* is damaged .*: delete .*/6 to continue"
        ):
            Checkpoints(folder, ABOUT, keep_last=2, read_only=read_only)
        path.write_bytes(content)
    shutil.rmtree(step)
    with Checkpoints(folder, ABOUT, keep_last=2) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (5, 2)


def test_a_checkpoint_of_another_step_is_refused(folder):
    (folder / "6").rename(folder / "8")
    with pytest.raises(InputError, match=r"checkpoint 8 in .* is damaged \(they are of step 6\)"):
        Checkpoints(folder, ABOUT, read_only=True)


def test_the_files_of_a_checkpoint_are_those_of_sha256sum(folder):
    lines = (folder / "6" / "SHA256SUMS").read_text().splitlines()
    listed = {line.partition("  ")[2]: line.partition("  ")[0] for line in lines}
    items = [folder / "6" / item for item in ("notes", "rest", "variables")]
    files = [path for item in items for path in item.rglob("*") if path.is_file()]
    assert listed == {
        str(path.relative_to(folder / "6")): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
