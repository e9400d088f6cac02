"""Steps against formulas in NumPy, and on one device against four."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from tenas_jax.data.normalization import Normalization
from tenas_jax.errors import InputError
from tenas_jax.training.loop import on_all_devices
from tenas_jax.training.recipes import RECIPES
from tenas_jax.training.steps import (
    SPREAD,
    cross_entropy,
    drop_path_rate,
    inference,
    initial_state,
    initial_variables,
    learning_rate,
    make_evaluate_step,
    make_mesh,
    make_network,
    make_optimizer,
    make_train_step,
)

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
RECIPE = dataclasses.replace(
    RECIPES["nas-bench-201"],
    image_size=8,
    num_classes=3,
    batch_size=8,
    epochs=4,
    padding=1,
    cutout=2,
    label_smoothing=0.1,
    auxiliary=0.0,
)


class Small(nn.Module):
    """A network with all that a step has to do with: statistics, dropped paths, two outputs."""

    auxiliary: bool = False

    @nn.compact
    def __call__(self, images, *, train=False, drop_path_rate=None):
        x = nn.Conv(4, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        if train and drop_path_rate is not None:
            kept = jax.random.bernoulli(
                self.make_rng("drop_path"), 1 - drop_path_rate, (len(x), 1, 1, 1)
            )
            x = x * kept / (1 - drop_path_rate)
        x = x.mean((1, 2))
        extra = nn.Dense(3, name="extra")(x) if self.auxiliary else None
        return nn.Dense(3)(x), extra if train else None


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (8, 8, 8, 3), np.uint8), np.arange(8, dtype=np.int32) % 3


def steps(recipe, batch, devices=1, count=2, network=None):
    """The state after some steps on the same batch, and the losses."""
    network = network or Small()
    mesh = make_mesh(jax.devices()[:devices], recipe.batch_size)
    optimizer = make_optimizer(recipe, steps_per_epoch=1)
    step = make_train_step(network, recipe, optimizer, 1, NORMALIZATION, mesh)
    state = on_all_devices(initial_state(initial_variables(network, recipe), optimizer), mesh)
    images, labels = (jax.device_put(x, NamedSharding(mesh, SPREAD)) for x in batch)
    losses = []
    for _ in range(count):
        state, info = step(state, images, labels)
        losses.append(float(info.loss))
    return jax.device_get(state), losses


def test_learning_rate_is_a_cosine_after_a_linear_warmup():
    recipe = dataclasses.replace(RECIPES["imagenet"], epochs=10, warmup_epochs=2)
    rate = learning_rate(recipe, steps_per_epoch=5)
    for step in range(51):
        cosine = 0.25 * (1 + np.cos(np.pi * (step - 10) / 40))
        expected = 0.5 * step / 10 if step < 10 else cosine
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7)


def test_drop_path_rises_from_epoch_to_epoch():
    rates = [float(drop_path_rate(RECIPES["cifar10"], jnp.asarray(s), 7)) for s in (0, 6, 7, 4199)]
    assert rates == pytest.approx([0, 0, 0.3 / 600, 0.3 * 599 / 600])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothed_targets(smoothing):
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 1, 2])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    result = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(result, -(targets * log_p).sum(1), rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_the_optimizer_is_that_of_pytorch(nesterov, decay_all):
    recipe = dataclasses.replace(
        RECIPES["cifar10"],
        nesterov=nesterov,
        decay_norm_and_bias=decay_all,
        weight_decay=0.1,
        clip_norm=0.5,
        epochs=2,
    )
    optimizer, rate = make_optimizer(recipe, 2), learning_rate(recipe, 2)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 3), "scale": (1, 3), "bias": (1, 3)}  # one parallel edge
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    expected, velocity = dict(params), dict.fromkeys(params, 0.0)
    state = optimizer.init(params)
    for step in range(3):
        gradient = {name: value * (step + 1) for name, value in params.items()}
        change, state = optimizer.update(gradient, state, params)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            g = g * min(1, 0.5 / norm)
            if decay_all or name == "kernel":
                g = g + 0.1 * expected[name]
            velocity[name] = 0.9 * velocity[name] + g
            g = g + 0.9 * velocity[name] if nesterov else velocity[name]
            expected[name] = expected[name] - float(rate(step)) * g
        params = optax.apply_updates(params, change)
        for name in params:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def test_four_devices_do_what_one_does(batch):
    recipe = dataclasses.replace(RECIPE, drop_path=0.3)
    one, losses = steps(recipe, batch, devices=1)
    four, losses_of_four = steps(recipe, batch, devices=4)
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses_of_four, losses, rtol=1e-4)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_a_step_learns_and_counts(batch):
    state, losses = steps(RECIPE, batch, count=4)
    assert state.step == 4
    assert state.totals.loss == pytest.approx(8 * sum(losses), rel=1e-5)
    assert 0 <= state.totals.correct <= 32
    again, losses_again = steps(RECIPE, batch, count=4)
    assert losses_again == losses
    assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (state, again)), strict=True))
    _, others = steps(dataclasses.replace(RECIPE, seed=1), batch, count=4)
    assert others != losses


def test_batch_norm_of_each_device_its_own(batch):
    # Without augmentation every device sees what a device alone would see of its share.
    plain = dataclasses.replace(
        RECIPE, padding=0, cutout=0, sync_batch_norm=False, momentum=0.0, weight_decay=0.0
    )
    # Flips change neither the sum over the pixels of a constant image nor its statistics.
    images = np.broadcast_to(batch[0][:, :1, :1], batch[0].shape).copy()
    together, (loss,) = steps(plain, (images, batch[1]), devices=4, count=1)
    shares = [
        steps(
            dataclasses.replace(plain, batch_size=2),
            (images[i : i + 2], batch[1][i : i + 2]),
            count=1,
        )
        for i in range(0, 8, 2)
    ]
    assert loss == pytest.approx(np.mean([losses[0] for _, losses in shares]), rel=1e-5)
    for name in ("params", "batch_stats"):
        leaves = zip(
            jax.tree.leaves(together.variables[name]),
            *(jax.tree.leaves(state.variables[name]) for state, _ in shares),
            strict=True,
        )
        for whole, *parts in leaves:
            np.testing.assert_allclose(whole, np.mean(parts, 0), rtol=1e-4, atol=1e-6)
    synchronized, _ = steps(
        dataclasses.replace(plain, sync_batch_norm=True), (images, batch[1]), devices=4, count=1
    )
    variances = [
        state.variables["batch_stats"]["BatchNorm_0"]["var"] for state in (together, synchronized)
    ]
    assert (np.abs(variances[0] - variances[1]) > 1e-4).any()


def test_the_auxiliary_head_counts_with_its_weight(batch):
    network = Small(auxiliary=True)
    losses = {}
    for weight in (0.0, 0.4, 0.8):
        # The dataclass would ask for the image size of the published head.
        recipe = dataclasses.replace(RECIPE)
        object.__setattr__(recipe, "auxiliary", weight)
        _, (losses[weight],) = steps(recipe, batch, count=1, network=network)
    extra = (losses[0.4] - losses[0.0]) / 0.4
    assert extra > 0.5
    assert losses[0.8] == pytest.approx(losses[0.0] + 0.8 * extra, rel=1e-5)


def test_padding_does_not_count(batch):
    images, labels = batch
    network, mesh = Small(), make_mesh(jax.devices()[:2], 8)
    variables = on_all_devices(initial_variables(network, RECIPE), mesh)
    evaluate = make_evaluate_step(network, RECIPE, NORMALIZATION, mesh)
    logits = inference(network, variables, RECIPE, NORMALIZATION)(jnp.asarray(images))
    losses = np.asarray(cross_entropy(logits, jnp.asarray(labels)))
    correct = np.asarray(logits.argmax(-1) == labels)
    real = np.arange(8) < 5
    spread = NamedSharding(mesh, SPREAD)
    totals = evaluate(
        variables,
        jax.device_put(images, spread),
        jax.device_put(np.where(real, labels, -1).astype(np.int32), spread),
    )
    assert float(totals.loss) == pytest.approx(losses[real].sum(), rel=1e-5)
    assert int(totals.correct) == correct[real].sum()


def test_networks_and_meshes_that_cannot_be():
    with pytest.raises(InputError, match="3 devices cannot share a batch of 8 equally"):
        make_mesh(jax.devices()[:3], 8)
    with pytest.raises(InputError, match="choose from"):
        make_network("|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|", RECIPE)
