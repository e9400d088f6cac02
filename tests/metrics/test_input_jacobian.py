"""Metrics of input Jacobians against NumPy in double precision, one pair of samples at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.metrics.input_jacobian import epe_nas, input_jacobian, jacov

K = 1e-5
score_jacov = jax.jit(jacov)
score_epe_nas = jax.jit(epe_nas, static_argnames="num_classes")


def correlation(a, b):
    """Pearson's, of two rows."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def naive_jacov(jacobian):
    """Mellor et al. 2020, version 1."""
    rows = np.asarray(jacobian, np.float64)
    eigenvalues = np.linalg.eigvalsh([[correlation(a, b) for b in rows] for a in rows])
    return -sum(np.log(max(v, 0) + K) + 1 / (max(v, 0) + K) for v in eigenvalues)


def naive_epe_nas(jacobian, labels, num_classes):
    """Lopes et al. 2021: class by class, pair by pair."""
    rows, scores = np.asarray(jacobian, np.float64), {}
    for label in set(labels.tolist()):
        own = rows[labels == label]
        scores[label] = sum(np.log(abs(correlation(a, b)) + K) for a in own for b in own)
        if num_classes > 100:
            scores[label] /= len(own)
    if num_classes <= 100:
        return sum(abs(score) for score in scores.values())
    several = [score for label, score in scores.items() if (labels == label).sum() > 1]
    return sum(abs(a - b) for a in several for b in several) / len(several)


def rows(n, inputs, seed=0, common=0.3):
    """Correlated rows of a mean and a scale of their own."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(n, inputs)) + common * draw.normal(size=inputs)
    return ((values + draw.normal(size=(n, 1))) * 10 ** draw.uniform(-6, 3, (n, 1))).astype("f4")


@pytest.mark.parametrize(("n", "inputs"), [(2, 5), (16, 192), (72, 768), (6, 4)])
def test_jacov_equals_the_naive_one(n, inputs):
    jacobian = rows(n, inputs)
    np.testing.assert_allclose(score_jacov(jacobian), naive_jacov(jacobian), rtol=1e-4)


def test_jacov_of_dependent_rows_is_that_of_eigenvalues_zero():
    """Which single precision gives to 1e-3 of 1 / k only if they are squares."""
    jacobian = rows(8, 100)
    jacobian[5], jacobian[6] = 3 * jacobian[0], -2 * jacobian[1]
    np.testing.assert_allclose(score_jacov(jacobian), naive_jacov(jacobian), rtol=1e-4)
    assert score_jacov(jacobian) == pytest.approx(-2 / K, rel=1e-3)


@pytest.mark.parametrize("num_classes", [10, 101])
@pytest.mark.parametrize("n", [6, 40])
def test_epe_nas_equals_the_naive_one(n, num_classes):
    jacobian = rows(n, 192, seed=1)
    labels = np.random.default_rng(2).integers(5, size=n)
    labels[0] = 7  # a class of a single sample
    expected = naive_epe_nas(jacobian, labels, num_classes)
    score = score_epe_nas(jacobian, labels, num_classes=num_classes)
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_scores_depend_neither_on_scale_nor_on_offset_nor_on_order():
    jacobian, labels = rows(12, 100), np.arange(12) % 3
    order = np.random.default_rng(1).permutation(12)
    for score in (score_jacov, lambda j, y=labels: score_epe_nas(j, y, num_classes=3)):
        for other in (1e-25 * jacobian, -jacobian):  # whose squares are no numbers
            np.testing.assert_allclose(score(other), score(jacobian), rtol=1e-4)
    np.testing.assert_allclose(score_jacov(jacobian[order]), score_jacov(jacobian), rtol=1e-4)
    shuffled = score_epe_nas(jacobian[order], labels[order], num_classes=3)
    np.testing.assert_allclose(shuffled, score_epe_nas(jacobian, labels, num_classes=3), rtol=1e-4)


@pytest.mark.parametrize("row", [0.0, 0.1, -1e20, np.nan])
def test_a_row_without_deviation_has_no_score(row):
    jacobian = rows(6, 100)
    jacobian[2] = row
    assert np.isnan(score_jacov(jacobian))
    assert np.isnan(score_epe_nas(jacobian, np.arange(6) % 2, num_classes=2))


def test_of_many_classes_one_needs_two_samples():
    assert np.isnan(score_epe_nas(rows(6, 50), np.arange(6), num_classes=101))


def test_the_jacobian_is_that_of_the_sum_of_all_outputs():
    """Through the batch normalization as well; by central differences."""
    draw = np.random.default_rng(0)
    first, second = (jnp.asarray(draw.normal(size=shape)) for shape in ((6, 5), (5, 3)))

    def logits(x):
        hidden = x["a"].reshape(4, 4) @ first[:4] + x["b"] @ first[4:]
        hidden = (hidden - hidden.mean(0, keepdims=True)) / hidden.std(0, keepdims=True)
        return jnp.tanh(hidden) @ second

    with jax.enable_x64(True):
        x = {"a": draw.normal(size=(4, 2, 2)), "b": draw.normal(size=(4, 2))}
        jacobian, outputs = jax.jit(lambda x: input_jacobian(logits, x))(x)
        total = jax.jit(lambda x: logits(x).sum())
        expected = np.zeros((4, 6))
        for i, j in np.ndindex(4, 6):
            flat = np.concatenate([x["a"].reshape(4, 4), x["b"]], 1)
            sides = []
            for step in (1e-4, -1e-4):
                moved = flat.copy()
                moved[i, j] += step
                sides.append(total({"a": moved[:, :4].reshape(4, 2, 2), "b": moved[:, 4:]}))
            expected[i, j] = (sides[0] - sides[1]) / 2e-4
        assert outputs.shape == (4, 3)
        np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: input_jacobian(lambda x: x, jnp.ones((2, 2), int)), "the samples are int32: a"),
        (lambda: input_jacobian(lambda x: x[0], jnp.ones((2, 2))), r"returns shape \(2,\)"),
        (lambda: input_jacobian(lambda x: x, jnp.full((2, 2), jnp.nan)), "x holds NaN"),
        (lambda: jacov(jnp.ones(3)), r"the Jacobian is float32 of shape \(3,\): give"),
        (
            lambda: epe_nas(jnp.eye(3), jnp.array([0, 1]), num_classes=2),
            r"labels of shape \(2,\) for 3 samples",
        ),
        (
            lambda: epe_nas(jnp.eye(2), jnp.array([0, 2]), num_classes=2),
            "labels from 0 to 2: give integers from 0 to 1",
        ),
    ],
)
def test_what_has_no_score_is_refused_in_a_line(call, fault):
    with pytest.raises(InputError, match=fault) as error:
        call()
    assert "\n" not in str(error.value)
