"""What every candidate operator promises, checked for every entry of `OPS`."""

from functools import cache

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import OPS, PATTERNS
from tenas_jax.spaces import SPACES

N, SIZE, EDGES = 3, 8, 3
LAYOUTS = (NHWC, BATCH_MINOR)
WEIGHTS = jnp.array([0.5, 0.25, 1.0])
CASES = [(name, stride) for name in OPS for stride in (1, 2)]
every_op = pytest.mark.parametrize(("name", "stride"), CASES)


def module(name, stride, layout, channels, edges=EDGES):
    return OPS[name](channels, layout, "pytorch", edges, stride)


@cache
def inputs(name, stride, channels):
    """Images, and parameters none of which is at a special value."""
    images = jax.random.normal(jax.random.key(1), (N, SIZE, SIZE, channels))
    init = module(name, stride, NHWC, channels).init
    shapes = jax.eval_shape(init, jax.random.key(0), images, WEIGHTS).get("params", {})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
    return params, images


def forward(name, stride, layout, channels, edges=EDGES):
    def apply(params, images, weights):
        op = module(name, stride, layout, channels, edges)
        y = op.apply({"params": params}, layout.from_nhwc(images), weights)
        return y if layout is NHWC else y.transpose(3, 0, 2, 1)

    return apply


@cache
def compiled(name, stride, layout, channels=2):
    """The outputs as NHWC images, and the gradients of a weighted sum of their pixels."""

    apply = forward(name, stride, layout, channels)

    @jax.jit
    def compute(params, images, weights):
        y, vjp = jax.vjp(lambda params, images: apply(params, images, weights), params, images)
        return y, vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return lambda weights: compute(*inputs(name, stride, channels), weights)


def assert_close(actual, expected):
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale)


@every_op
def test_an_op_has_its_shape_and_finite_gradients(name, stride):
    y, gradients = compiled(name, stride, BATCH_MINOR)(WEIGHTS)
    assert y.shape == (N, SIZE // stride, SIZE // stride, EDGES * 2)
    assert y.dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, gradients)))
    assert y.any() == (name != "none")


@every_op
def test_a_compiled_op_equals_the_eager_one(name, stride):
    y, _ = compiled(name, stride, NHWC)(WEIGHTS)
    assert_close(y, forward(name, stride, NHWC, 2)(*inputs(name, stride, 2), WEIGHTS))


@every_op
@hypothesis.settings(max_examples=8)
@hypothesis.given(kept=st.lists(st.booleans(), min_size=EDGES, max_size=EDGES))
def test_an_op_does_not_depend_on_the_layout(name, stride, kept):
    plain, fast = (compiled(name, stride, layout)(WEIGHTS * jnp.array(kept)) for layout in LAYOUTS)
    jax.tree.map(assert_close, fast, plain)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nhwc", "batch_minor"])
def test_a_separable_convolution_is_the_same_with_many_channels(layout):
    # Both forms compute a dilated convolution of channels that are padded with unused ones.
    few, many = 2, layout.few_channels
    params, images = inputs("dil_conv_3x3", 2, few)

    def pad(path, leaf):
        axes = {"depthwise": (4,), "pointwise": (3, 4), "scale": (1,), "bias": (1,)}[path[-1].key]
        widths = [(0, many - few if axis in axes else 0) for axis in range(leaf.ndim)]
        return jnp.pad(leaf, widths)

    wide = jax.tree_util.tree_map_with_path(pad, params)
    wide_images = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, many - few)))
    y = jax.jit(forward("dil_conv_3x3", 2, layout, many))(wide, wide_images, WEIGHTS)
    expected, _ = compiled("dil_conv_3x3", 2, NHWC)(WEIGHTS)
    y = y.reshape(*y.shape[:3], EDGES, many)
    assert_close(y[..., :few].reshape(expected.shape), expected)
    assert not y[..., few:].any()


@every_op
def test_parallel_edges_are_independent_ops(name, stride):
    params, images = inputs(name, stride, 2)
    y, _ = compiled(name, stride, BATCH_MINOR)(WEIGHTS)
    alone = jax.jit(forward(name, stride, BATCH_MINOR, 2, edges=1))
    for edge in range(EDGES):
        here = slice(edge, edge + 1)
        expected = alone(jax.tree.map(lambda leaf: leaf[here], params), images, WEIGHTS[here])  # noqa: B023
        assert_close(y[..., 2 * edge : 2 * edge + 2], expected)


@every_op
def test_a_pruned_edge_is_exactly_zero(name, stride):
    for kept in np.array([[True, False, True], [False, True, False], [False, False, False]]):
        weights = WEIGHTS * kept
        y, (params, images) = compiled(name, stride, BATCH_MINOR)(weights)
        by_edge = y.reshape(*y.shape[:3], EDGES, 2)
        contributes = kept & (name != "none")
        np.testing.assert_array_equal(by_edge.any(axis=(0, 1, 2, 4)), contributes)
        assert images.any() == contributes.any()
        for leaf in jax.tree.leaves(params):
            assert not leaf[~kept].any()


@pytest.mark.parametrize(
    ("name", "first", "later"), [("sep_conv_3x3", 1, 3), ("dil_conv_5x5", 1, 0)]
)
def test_activation_patterns_of_pruned_edges_are_all_zeros(name, first, later):
    params, images = inputs(name, 1, 2)
    op = module(name, 1, NHWC, 2)
    for weights, kept in ((WEIGHTS, 3), (WEIGHTS.at[1].set(0), 2), (jnp.zeros(3), 0)):
        _, state = op.apply({"params": params}, images, weights, mutable=PATTERNS)
        patterns = [np.asarray(p) for p in state[PATTERNS]["relu"]]
        assert sum(p.shape[1] for p in patterns) == (1 + later) * 2 * SIZE**2
        assert patterns[0].any() == (kept > 0)
        if later:
            edges = patterns[1].reshape(N, SIZE, SIZE, EDGES, 2).any(axis=(0, 1, 2, 4))
            assert edges.sum() == kept


def test_the_ops_are_those_of_the_spaces():
    assert set(OPS) == {op for space in SPACES.values() for op in space.ops}
