"""Whole trainings: stopped, killed and resumed they end as if nothing had happened."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tenas_jax.cli import eval as evaluate
from tenas_jax.cli import export, train
from tenas_jax.data.labeled import load_split
from tenas_jax.errors import InputError
from tenas_jax.host.files import write_json
from tenas_jax.training import loop as trainer
from tenas_jax.training import steps as training
from tenas_jax.training.checkpoint import Checkpoints
from tenas_jax.training.folder import load_training, open_output, training_of

GENOTYPE = "|none~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"
PAIRS = [("skip_connect", source) for _ in range(4) for source in (0, 1)]
DARTS_GENOTYPE = (
    f"Genotype(normal={PAIRS}, normal_concat=range(2, 6), reduce={PAIRS}, "
    "reduce_concat=range(2, 6))"
)
RUN = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from tenas_jax.cli import train
train.configure_jax = lambda _: jax.devices()
sys.exit(train.run(sys.argv[2:]))
"""
STEPS = 18


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three classes, of which one is brighter; a cache of compiled programs."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 128, (120, 8, 8, 3), np.uint8)
    images[labels == 1] += 127
    np.savez(folder / "data.npz", x=images, y=labels)
    (folder / "cache").mkdir()
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once(folder):
    """Trainings of the same network compile it once."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(folder / "cache"), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def words(folder):
    """Flags of a tiny training."""
    flags = (
        f"--recipe nas-bench-201 --data npz:{folder}/data.npz --num-classes 3 --image-size 8 "
        "--channels 2 --cells 1 --epochs 3 --batch-size 16 --padding 1 --cutout 2 "
        "--drop-path 0.2"
    )
    return [GENOTYPE, *flags.split()]


@pytest.fixture(scope="module")
def setup(words):
    recipe = train.parse_train(words)[1].config
    split = load_split(recipe)
    return training_of(GENOTYPE, recipe, split), split


@pytest.fixture(scope="module")
def fit(setup):
    """A training of 18 steps in 3 epochs, from its start or its last checkpoint."""
    schedule = trainer.Schedule(log_every=1, checkpoint_every=4, keep_last=2)

    def fit(output, **arguments):
        if not (output / "config.json").exists():
            open_output(output, setup[0], resume=False)
        return trainer.fit(*setup, jax.devices()[:4], output, schedule=schedule, **arguments)

    return fit


@pytest.fixture(scope="module")
def uninterrupted(fit, folder):
    assert fit(folder / "uninterrupted")
    return folder / "uninterrupted"


@pytest.fixture
def devices(monkeypatch):
    """Commands use the devices there are."""
    for command in (train, evaluate):
        monkeypatch.setattr(command, "configure_jax", lambda _: jax.devices()[:4])


def last_state(output):
    told = load_training(output)
    network = training.make_network(told.genotype, told.recipe)
    optimizer = training.make_optimizer(told.recipe, 6)
    variables = training.abstract_variables(network, told.recipe)
    like = jax.eval_shape(lambda v: training.initial_state(v, optimizer), variables)
    with Checkpoints(output / "checkpoints", told.about(), read_only=True) as checkpoints:
        return checkpoints.restore(checkpoints.latest, like).state


def metrics(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "images_per_second": 0, "crc32": ""} for line in lines]


def assert_same(output, reference):
    assert metrics(output) == metrics(reference)
    state, expected = last_state(output), last_state(reference)
    assert state.step == expected.step == STEPS
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_uninterrupted_training(uninterrupted, setup):
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines if "epoch" not in line] == list(range(1, STEPS + 1))
    epochs = [line for line in lines if "epoch" in line]
    assert [line["step"] for line in epochs] == [6, 12, 18]
    for number, line in enumerate(epochs):
        losses = [each["loss"] for each in lines if "loss" in each][6 * number : 6 * number + 6]
        assert line["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert line["test_accuracy"] * setup[1].test.count == pytest.approx(
            round(line["test_accuracy"] * setup[1].test.count)
        )
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    names = {int(path.name) for path in (uninterrupted / "checkpoints").iterdir()}
    best = max(epochs, key=lambda line: (line["test_accuracy"], line["step"]))["step"]
    assert names == {16, 18, best}
    assert list((uninterrupted / "tensorboard").iterdir())


def test_stopped_and_resumed_at_any_step(uninterrupted, fit, tmp_path):
    steps = []
    for due in (3, 6):  # amid an epoch, at its end
        ended = fit(
            tmp_path / "run",
            stopped=lambda due=due: steps[-1] >= due,
            progress=lambda progress: steps.append(progress.step),
        )
        assert not ended and steps[-1] == due
    assert fit(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


def test_a_crash_undoes_the_steps_after_the_last_checkpoint(uninterrupted, fit, tmp_path):
    def crash(progress):
        if progress.step == 11:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "run", progress=crash)
    assert metrics(tmp_path / "run")[-1]["step"] == 10
    steps = []
    assert fit(tmp_path / "run", progress=lambda progress: steps.append(progress.step))
    assert steps[0] == 9
    assert_same(tmp_path / "run", uninterrupted)


def test_killed_while_it_writes(uninterrupted, fit, folder, words, tmp_path):
    output, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    given = [*words, "--output", output, "--log-every", "1", "--checkpoint-every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, [folder / "cache", *given])],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def written():
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        return list(map(str.isdigit, names))

    while not any(written()) or all(written()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert any(written()) and not all(written())
    assert fit(output)
    assert_same(output, uninterrupted)


def test_terminated_by_a_signal(uninterrupted, fit, words, devices, tmp_path, capsys, monkeypatch):
    @contextlib.contextmanager
    def terminate_at_step_9(console):
        yield lambda progress: progress.step == 9 and os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "show_progress", terminate_at_step_9)
    given = [*words, "--output", str(tmp_path / "run"), "--log-every", "1"]
    assert train.run(given) == 128 + signal.SIGTERM
    error = capsys.readouterr().err
    assert re.fullmatch(r"tenas: interrupted; continue with: tenas train .* --resume\n", error)
    assert last_state(tmp_path / "run").step == 9
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert fit(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


def test_the_best_is_evaluated_and_exported(uninterrupted, setup, devices, tmp_path, capsys):
    assert evaluate.run([str(uninterrupted), "--checkpoint", "last"]) == 0
    last = metrics(uninterrupted)[-1]
    expected = (
        f"step 18: loss {last['test_loss']:.4f}, accuracy {last['test_accuracy']:.2%} of 18 images"
    )
    assert capsys.readouterr().out.strip() == expected

    path = tmp_path / "net.stablehlo"
    words = [str(uninterrupted), "--checkpoint", "last", "--output", str(path)]
    assert export.run(words) == 0
    images = setup[1].test.take(np.arange(7))[0]
    scope = {"images": images}
    with path.open("rb") as file:
        scope["open"] = lambda *name: {("net.stablehlo", "rb"): file}[name]
        exec(export.RELOAD, scope)
    told = load_training(uninterrupted)
    network = training.make_network(told.genotype, told.recipe)
    variables = last_state(uninterrupted).variables
    expected = training.inference(network, variables, told.recipe, told.normalization)(
        jax.numpy.asarray(images)
    )
    np.testing.assert_allclose(scope["logits"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"net\.stablehlo exists: choose another --output"):
        export.run(words)


def test_a_checkpoint_of_another_training_is_refused(uninterrupted, setup, devices, tmp_path):
    other = tmp_path / "other"
    genotype = GENOTYPE.replace("skip_connect", "nor_conv_1x1")
    open_output(other, setup[0]._replace(genotype=genotype), resume=False)
    with pytest.raises(InputError, match="other holds no checkpoint"):
        evaluate.run([str(other)])
    (other / "checkpoints").symlink_to(uninterrupted / "checkpoints")
    for command, words in ((evaluate, []), (export, ["--output", str(tmp_path / "net")])):
        with pytest.raises(InputError, match="a training that differs in genotype: use"):
            command.run([str(other), *words])
    recipe = dataclasses.replace(setup[0].recipe, seed=1, epochs=4)
    with pytest.raises(InputError, match=r"differs in epochs, seed: .* another --output"):
        open_output(uninterrupted, setup[0]._replace(recipe=recipe), resume=True)


def test_a_loss_that_is_not_finite_ends_the_training(setup, tmp_path):
    recipe = dataclasses.replace(setup[0].recipe, learning_rate=1e30)
    told = setup[0]._replace(recipe=recipe)
    schedule = trainer.Schedule(log_every=4)
    with pytest.raises(InputError, match=r"the loss is (nan|inf) after step 4: use a lower"):
        trainer.fit(told, setup[1], jax.devices()[:4], tmp_path, schedule=schedule)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({0: "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|"}, "'conv': choose from none, skip"),
        ({0: DARTS_GENOTYPE}, "is of darts, recipe nas-bench-201 .* use --recipe cifar10 or cifar"),
        ({0: "--resume"}, "name what to train: tenas train GENOTYPE"),
        ({0: "nowhere"}, "'nowhere' is neither a genotype nor a folder"),
        ({"--num-classes": "10"}, "has 3 classes, the recipe 10: use --num-classes 3"),
        ({"--batch-size": "18"}, "4 devices cannot share a batch of 18 equally"),
        ({"--recipe": "svhn"}, "unknown recipe 'svhn': choose from cifar10"),
        ({"--stem": "svhn"}, "svhn"),
        ({"--stem": "imagenet", "--image-size": "32"}, "nas-bench-201 has no stem 'imagenet'"),
        ({"--auxiliary": "0.4"}, "the auxiliary head needs image_size 32"),
        ({"--log-every": "0"}, "log_every must be at least 1, not 0"),
        ({"--resume": None}, "empty holds no training"),
        (
            {"--output": "full"},
            "full is not empty: continue with --resume or choose another --output",
        ),
        ({"--epoch": "3"}, "Unrecognized options: --epoch"),
    ],
)
def test_bad_input_ends_with_one_line(words, devices, tmp_path, monkeypatch, changes, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    genotype, *rest = words
    flags = {**dict(zip(rest[::2], rest[1::2], strict=True)), "--output": "empty", **changes}
    given = [flags.pop(0, genotype)]
    for name, value in flags.items():
        given += [name] if value is None else [name, value]
    with pytest.raises(InputError, match=fault) as error:
        train.run(given)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"preset": "nas-bench-201", "config": {}}, "holds a search and no training: train what"),
        (
            {"genotype": 3, "mean": 1, "std": [], "classes": [], "images": []},
            "another version",
        ),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path, content, fault):
    write_json(tmp_path / "config.json", content)
    with pytest.raises(InputError, match=fault):
        evaluate.run([str(tmp_path)])


@pytest.mark.parametrize("command", [evaluate, export])
def test_a_folder_without_a_training_is_named(command, tmp_path):
    words = ["--output", str(tmp_path / "net")] if command is export else []
    with pytest.raises(InputError, match="holds no training: name the --output of tenas train"):
        command.run([str(tmp_path), *words])
    (tmp_path / "config.json").write_text('{"seed": 1}')
    with pytest.raises(InputError, match="so it is of another version: train again in another --o"):
        command.run([str(tmp_path), *words])
    write_json(tmp_path / "config.json", {"seed": 1})
    with pytest.raises(InputError, match="is of another version: train again in another --output"):
        command.run([str(tmp_path), *words])
