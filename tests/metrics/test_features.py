"""Metrics of features against NumPy in double precision, one cell, image and channel at a time."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.metrics.features import (
    az_expressivity,
    az_progressivity,
    az_trainability,
    feature_gradients,
    meco,
    zen,
)

SHAPES = [(5, 8, 8, 3), (5, 4, 4, 6), (5, 4, 4, 6), (5, 2, 2, 12)]
METRICS = {
    "expressivity": jax.jit(az_expressivity),
    "progressivity": jax.jit(az_progressivity),
    "meco": jax.jit(meco),
}


def naive_entropies(features):
    """Lee and Ham 2024: the entropy of the principal components' shares of the variance."""
    for x in features:
        pixels = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        shares = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False) ** 2
        shares /= shares.sum()
        yield -sum(share * np.log(share + 1e-8) for share in shares)


def naive_progressivity(features):
    entropies = list(naive_entropies(features))
    return min(b - a for a, b in pairwise(entropies))


def naive_meco(features):
    """Jiang et al. 2023, with what its code says of constant channels."""
    total = 0.0
    for x in features:
        least = []
        for image in np.asarray(x, np.float64):
            channels = image.reshape(-1, image.shape[-1]).T
            matrix = np.zeros((len(channels),) * 2)
            for i, j in np.ndindex(*matrix.shape):
                if channels[i].std() and channels[j].std():
                    matrix[i, j] = np.corrcoef(channels[i], channels[j])[0, 1]
            least.append(max(np.linalg.eigvalsh(matrix)[0], 0))
        total += np.mean(least)
    return total


NAIVE = {
    "expressivity": lambda features: sum(naive_entropies(features)),
    "progressivity": naive_progressivity,
    "meco": naive_meco,
}


def features(seed=0, dtype="f4"):
    """Images whose channels are correlated, of scales and offsets of their own."""
    draw, result = np.random.default_rng(seed), []
    for shape in SHAPES:
        mixture = draw.normal(size=(shape[-1],) * 2)
        x = draw.normal(size=shape) @ mixture + draw.normal(size=shape[-1])
        result.append((x * 10 ** draw.uniform(-5, 3)).astype(dtype))
    return result


@pytest.mark.parametrize("name", METRICS)
def test_a_score_equals_the_naive_one(name):
    for seed in range(3):
        given = features(seed)
        score = METRICS[name](given)
        np.testing.assert_allclose(score, NAIVE[name](given), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_score_depends_neither_on_scale_nor_on_the_order_of_images_and_channels(name):
    given = features()
    expected = METRICS[name](given)
    draw = np.random.default_rng(1)
    for change in (
        lambda x: x * np.float32(1e-25),
        lambda x: -x + np.float32(x.std()),
        lambda x: draw.permutation(draw.permutation(x, axis=0), axis=3),
    ):
        np.testing.assert_allclose(METRICS[name](list(map(change, given))), expected, rtol=2e-4)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e20])
def test_features_that_are_constant(constant):
    given = features()
    given[1] = np.full_like(given[1], constant)
    assert METRICS["expressivity"](given) == METRICS["progressivity"](given) == -np.inf
    others = METRICS["meco"]([given[0], given[2], given[3], given[3]])
    np.testing.assert_allclose(METRICS["meco"](given), others, rtol=1e-5)
    assert METRICS["meco"]([given[1]] * 4) == 0


def test_a_channel_that_is_constant():
    given = features()
    given[0][..., 1] = 0.1
    for name, score in METRICS.items():
        np.testing.assert_allclose(score(given), NAIVE[name](given), rtol=1e-4, atol=1e-6)
    assert METRICS["meco"]([given[0]] * 4) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_features_that_are_no_numbers_have_no_score(name):
    for bad in (np.nan, np.inf):
        given = features()
        given[2][1, 0, 0, 0] = bad
        assert np.isnan(METRICS[name](given))


def naive_trainability(gradients):
    """Lee and Ham 2024: pixel by pixel of the output, by the pixels of the input it is above."""
    terms = []
    for cotangent, gradient in gradients:
        n, height, width, _ = cotangent.shape
        tall, wide = gradient.shape[1] // height, gradient.shape[2] // width
        outer = []
        for i, row, column in np.ndindex(n, height, width):
            window = gradient[i, tall * row : tall * (row + 1), wide * column : wide * (column + 1)]
            outer.append(np.outer(window.ravel(), cotangent[i, row, column]))
        sigma = np.sqrt(np.linalg.eigvalsh(np.mean(outer, 0).T @ np.mean(outer, 0))[-1])
        terms.append(2 - sigma - 1 / (sigma + 1e-6))
    return np.mean(terms)


def signs_and_gradients(scale=1.0):
    draw = np.random.default_rng(0)
    for before, after in pairwise(SHAPES):
        signs = draw.choice([-1.0, 1.0], after).astype("f4")
        yield signs, (scale * draw.normal(size=before)).astype("f4")


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 100.0])
def test_trainability_equals_the_naive_one(scale):
    gradients = list(signs_and_gradients(scale))
    score = jax.jit(az_trainability)(gradients)
    np.testing.assert_allclose(score, naive_trainability(gradients), rtol=1e-4)


def test_trainability_of_an_identity_is_minus_infinity():
    gradients = list(signs_and_gradients())
    signs = gradients[1][0]
    assert jax.jit(az_trainability)([gradients[0], (signs, signs)]) == -np.inf
    assert np.isnan(jax.jit(az_trainability)([(signs, np.nan * signs)]))


@pytest.mark.parametrize("gamma", [0.01, 0.3])
def test_zen_equals_the_naive_one(gamma):
    """Lin et al. 2021, algorithm 1, for two layers of 1 x 1 convolutions."""
    shapes = {"a": {"kernel": (3, 5)}, "b": {"bias": (4,), "kernel": (5, 4)}}
    params = jax.tree.map(np.ones, shapes, is_leaf=lambda node: isinstance(node, tuple))
    key, x = jax.random.key(3), jnp.zeros((6, 4, 4, 3))

    def f(params, x):
        y = x @ params["a"]["kernel"]
        deviation = jnp.sqrt(y.var((0, 1, 2)).mean())
        y = jax.nn.relu(y / deviation) @ params["b"]["kernel"] + params["b"]["bias"].mean()
        return y, jnp.log(jnp.stack([deviation, y.std()]))

    score = jax.jit(partial(zen, f, gamma=gamma))(params, x, key)

    keys = jax.random.split(key, 3)
    first, second = np.split(np.asarray(jax.random.normal(keys[0], (35,)), float), [15])
    noise, shift = (np.asarray(jax.random.normal(each, x.shape), float) for each in keys[1:])
    outputs, deviations = [], []
    for images in (noise, noise + gamma * shift):
        y = images.reshape(-1, 3) @ first.reshape(3, 5)
        deviations.append(np.sqrt(y.var(0).mean()))
        y = np.maximum(y / deviations[-1], 0) @ second.reshape(5, 4) + 1
        deviations.append(y.std())
        outputs.append(y.reshape(6, -1))
    distance = np.mean([np.abs(a - b).sum() for a, b in zip(*outputs, strict=True)])
    np.testing.assert_allclose(score, np.log([distance, *deviations[:2]]).sum(), rtol=1e-4)


def test_zen_of_features_that_do_not_depend_on_the_images_is_minus_infinity():
    def f(params, x):
        return jnp.broadcast_to(params["kernel"], x.shape), jnp.zeros(1)

    assert zen(
        f, {"kernel": jnp.ones((1, 1, 1, 3))}, jnp.ones((2, 2, 2, 3)), jax.random.key(0)
    ) == (-jnp.inf)


FIRST, SECOND = (np.random.default_rng(i).normal(size=(4, 4)) for i in (1, 2))


def first(x):
    return jnp.tanh(x @ FIRST)


@jax.jit
def second(x, older):
    """Reads the features before the last ones as well, as a cell of DARTS does."""
    y = jax.lax.scan(lambda x, _: (jnp.sin(x @ SECOND), None), x, None, length=2)[0]
    return y * older - y.mean(0, keepdims=True)


def test_a_gradient_passes_through_one_cell_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))

    def f():
        features = [x, first(x)]
        for _ in range(2):
            features.append(second(features[-1], features[-2]))
        return features

    given = f()
    gradients = jax.jit(lambda: feature_gradients(f, jax.random.key(0)))()
    cells = [first, *[partial(second, older=given[i]) for i in (0, 1)]]
    assert len(gradients) == len(cells)
    for before, cell, (cotangent, gradient) in zip(given[:-1], cells, gradients, strict=True):
        assert set(np.unique(cotangent)) == {-1, 1}
        jacobian = jax.jit(jax.jacobian(cell))(before)
        expected = np.einsum("ij,ijkl->kl", cotangent, jacobian)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert (gradients[0][0] != gradients[1][0]).any()


def test_features_handed_out_twice_are_an_identity():
    x = jnp.ones((2, 3))
    [(cotangent, gradient)] = feature_gradients(lambda: [x + 1] * 2, jax.random.key(0))
    assert (cotangent == gradient).all()


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: az_expressivity([]), "number of features: 0, and this metric needs at least 1"),
        (lambda: az_progressivity([jnp.ones((1, 2, 2, 1))]), "number of features: 1, and this"),
        (lambda: meco([jnp.ones((2, 2))]), r"features are float32 of shape \(2, 2\): give images"),
        (lambda: meco([jnp.ones((1, 2, 2, 1), int)]), "features are int32 of shape"),
        (lambda: az_trainability([]), "give two cells"),
        (
            lambda: az_trainability([(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 3, 3, 1)))]),
            "the size must be the same or a multiple",
        ),
        (
            lambda: feature_gradients(lambda: [jnp.ones(2), jnp.ones(3) + 1], jax.random.key(0)),
            "features 2 do not depend on features 1",
        ),
    ],
)
def test_what_has_no_score_is_refused_in_a_line(call, fault):
    with pytest.raises(InputError, match=fault) as error:
        call()
    assert "\n" not in str(error.value)


def test_meco_takes_one_matrix_at_a_time():
    # Batches of eigenvalues that run at once can wait for each other's threads for ever.
    images = jnp.ones((14, 4, 4, 8))
    program = str(jax.make_jaxpr(lambda x: meco([x, 2 * x]))(images)).split("\n")
    eigenvalues = [line for line in program if line.endswith(" = eigh[")]
    assert eigenvalues
    assert all("f32[8,8]" in line and "f32[14," not in line for line in eigenvalues)
