"""The fast layout against the plain one, and both against definitions in plain loops."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.networks import batch_minor
from tenas_jax.networks.banded import BANDED
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.layouts import NHWC, block_diagonal

LAYOUTS = {"nhwc": NHWC, "batch_minor": BATCH_MINOR, "banded": BANDED}
TOLERANCES = {"float64": 1e-10, "float32": 1e-4}
N, SIZE = 3, 6

Shapes = dict[str, tuple[int, ...]]


def depthwise(layout, a, *, stride, dilation, size):
    channels = a["kernel"].shape[-1]
    padding = dilation * (size // 2)
    return layout.conv(
        a["x"], a["kernel"], stride=stride, padding=padding, dilation=dilation, groups=channels
    )


def conv(layout, a, *, stride, size):
    return layout.conv(a["x"], a["kernel"], stride=stride, padding=size // 2, dilation=1, groups=1)


def conv_batch_norm(layout, a, *, stride, size, groups, dilation=1, active=True):
    return layout.conv_batch_norm(
        a["x"],
        a["kernel"],
        a["scale"],
        a["bias"],
        stride=stride,
        padding=dilation * (size // 2),
        groups=groups,
        dilation=dilation,
        active=active,
    )


def kernel(size, inputs, outputs, affine=False) -> Shapes:
    shapes: Shapes = {"kernel": (size, size, inputs, outputs)}
    return shapes | {"scale": (outputs,), "bias": (outputs,)} if affine else shapes


# name: (the operation, the shapes of its parameters with c channels)
CASES = {
    "batch_norm": (
        lambda layout, a: layout.batch_norm(a["x"], a["scale"], a["bias"]),
        lambda c: {"scale": (c,), "bias": (c,)},
    ),
    "halve": (lambda layout, a: layout.halve(a["x"]), lambda c: {}),
    "shift": (lambda layout, a: layout.shift(a["x"]), lambda c: {}),
} | {
    f"{name}-stride{stride}": (partial(operation, stride=stride), shapes)
    for stride in (1, 2)
    for name, operation, shapes in (
        (
            "avg_pool",
            lambda layout, a, stride: layout.avg_pool(a["x"], stride=stride),
            lambda c: {},
        ),
        (
            "max_pool",
            lambda layout, a, stride: layout.max_pool(a["x"], stride=stride),
            lambda c: {},
        ),
        ("conv_1x1", partial(conv, size=1), lambda c: kernel(1, c, 17 - c)),
        ("conv_3x3", partial(conv, size=3), lambda c: kernel(3, c, 17 - c)),
        ("depthwise_3x3", partial(depthwise, size=3, dilation=1), lambda c: kernel(3, 1, c)),
        (
            "depthwise_5x5_dilated",
            partial(depthwise, size=5, dilation=2),
            lambda c: kernel(5, 1, c),
        ),
        (
            "conv_batch_norm",
            partial(conv_batch_norm, size=3, groups=1),
            lambda c: kernel(3, c, 17 - c, affine=True),
        ),
        *(
            (
                f"conv_batch_norm_dilated_{size}x{size}",
                partial(conv_batch_norm, size=size, groups=1, dilation=2),
                partial(lambda size, c: kernel(size, c, 3, affine=True), size),
            )
            for size in (3, 5)
        ),
        (
            "conv_batch_norm_by_channel",
            lambda layout, a, stride: conv_batch_norm(
                layout, a, stride=stride, size=3, groups=a["bias"].size // 2
            ),
            lambda c: kernel(3, 1, 2 * c, affine=True),
        ),
    )
}


@pytest.mark.parametrize("case", CASES)
@hypothesis.settings(max_examples=3)
@hypothesis.given(
    channels=st.integers(1, 16),
    size=st.sampled_from([2, 3, 6]),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 99),
)
def test_the_fast_layout_and_the_plain_one_agree(case, channels, size, dtype, seed):
    operation, shapes = CASES[case]
    rng = np.random.default_rng(seed)
    with jax.enable_x64(dtype == "float64"):
        size -= size % 2 if case == "halve" else 0
        values = {"images": (N, size, size, channels)} | shapes(channels)
        values = {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in values.items()}
        # Half of the pixels are equal, as after a ReLU, so that maxima are not unique.
        values["images"] = jnp.maximum(values["images"], 0)
        plain, fast = (
            value_and_gradients(partial(operation, layout), layout, values)
            for layout in (NHWC, BATCH_MINOR)
        )
        jax.tree.map(partial(assert_close, tolerance=TOLERANCES[dtype]), fast, plain)


def value_and_gradients(operation, layout, values):
    """The result as NHWC images, and the gradients of weighted sums of its pixels, of one of them
    and of two at once."""

    def forward(values):
        y = operation(values | {"x": layout.from_nhwc(values["images"])})
        return layout.to_nhwc(y)

    @jax.jit
    def compute(values):
        y, vjp = jax.vjp(forward, values)
        weights = jnp.cos(jnp.arange(3 * y.size, dtype=y.dtype)).reshape(3, *y.shape)
        return y, vjp(weights[0])[0], jax.vmap(vjp)(weights[1:])[0]

    return compute(values)


def assert_close(actual, expected, tolerance):
    assert actual.dtype == expected.dtype
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_inactive_convolution_is_exactly_zero(layout):
    rng = np.random.default_rng(0)
    values = {"images": (N, SIZE, SIZE, 2)} | kernel(3, 2, 4, affine=True)
    values = {name: jnp.asarray(rng.normal(size=s), "float32") for name, s in values.items()}
    values |= {"scale": jnp.zeros(4), "bias": jnp.zeros(4)}
    operation = partial(
        conv_batch_norm, layout, stride=1, size=3, groups=1, active=jnp.asarray(False)
    )
    y, *gradients = value_and_gradients(operation, layout, values)
    assert not y.any()
    for each in gradients:
        assert not each["images"].any()
        assert not each["kernel"].any()


@pytest.mark.parametrize("case", ["conv_3x3-stride2", "conv_batch_norm-stride1"])
def test_several_networks_at_once(case):
    operation, shapes = CASES[case]
    rng = np.random.default_rng(0)
    values = {"images": (2, N, SIZE, SIZE, 2)} | {k: (2, *s) for k, s in shapes(2).items()}
    values = {name: jnp.asarray(rng.normal(size=s), "float32") for name, s in values.items()}

    def loss(values):
        x = BATCH_MINOR.from_nhwc(values["images"])
        return jnp.square(operation(BATCH_MINOR, values | {"x": x})).sum()

    gradients = jax.jit(jax.vmap(jax.grad(loss)))(values)
    gradient = jax.jit(jax.grad(loss))
    for i in range(2):
        expected = gradient({name: value[i] for name, value in values.items()})
        actual = {name: value[i] for name, value in gradients.items()}
        jax.tree.map(partial(assert_close, tolerance=1e-4), actual, expected)


def test_a_backward_pass_is_traced_once_per_shape(monkeypatch):
    traced, correlate = [], batch_minor._correlate
    monkeypatch.setattr(batch_minor, "_correlate", lambda *a: traced.append(a) or correlate(*a))
    a = {"x": jnp.ones((5, 2, 7, N)), "kernel": jnp.ones((3, 3, 2, 2))}

    def loss(x):
        for _ in range(3):
            x = conv(BATCH_MINOR, a | {"x": x}, stride=1, size=3)
        return x.sum()

    jax.make_jaxpr(jax.grad(loss))(a["x"])
    assert len(traced) == 1


def test_gradients_of_block_diagonal_kernels_have_few_dimensions():
    """XLA's library for CPUs crashes in some of seven."""
    groups, many = 4, 14
    kernel = jnp.ones((5, 5, 1, groups))
    _, pullback = jax.vjp(lambda kernel: block_diagonal(kernel, groups), kernel)
    gradients = jax.vmap(lambda cotangent: pullback(cotangent)[0])
    cotangents = jax.random.normal(jax.random.key(0), (many, 5, 5, groups, groups))
    expected = jnp.diagonal(cotangents, axis1=3, axis2=4)[:, :, :, None]
    np.testing.assert_array_equal(gradients(cotangents), expected)
    program = jax.make_jaxpr(gradients)(cotangents).jaxpr
    assert max(v.aval.ndim for eqn in program.eqns for v in [*eqn.invars, *eqn.outvars]) == 6


@pytest.mark.parametrize("case", CASES)
def test_banded_matrices_are_convolutions(case):
    operation, shapes = CASES[case]
    rng = np.random.default_rng(0)
    values = {"images": (N, SIZE, SIZE, 4)} | shapes(4)
    values = {name: jnp.asarray(rng.normal(size=s), "float32") for name, s in values.items()}
    plain, banded = (
        value_and_gradients(partial(operation, layout), layout, values) for layout in (NHWC, BANDED)
    )
    jax.tree.map(partial(assert_close, tolerance=TOLERANCES["float32"]), banded, plain)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_first_of_equal_maxima_receives_the_gradient(layout, stride):
    images = np.random.default_rng(0).integers(0, 3, (N, SIZE, SIZE, 2)).astype(np.float32)
    operation = lambda a: layout.max_pool(a["x"], stride=stride)  # noqa: E731
    y, gradients, _ = value_and_gradients(operation, layout, {"images": jnp.asarray(images)})
    cotangent = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
    expected = np.zeros_like(images)
    for n, h, w, c in np.ndindex(y.shape):
        top, left = max(h * stride - 1, 0), max(w * stride - 1, 0)
        window = images[n, top : h * stride + 2, left : w * stride + 2, c]
        i, j = np.unravel_index(window.argmax(), window.shape)  # the first in row-major order
        assert y[n, h, w, c] == window[i, j]
        expected[n, top + i, left + j, c] += cotangent[n, h, w, c]
    np.testing.assert_allclose(gradients["images"], expected, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_average_counts_only_pixels_inside_the_image(layout):
    y = layout.avg_pool(layout.from_nhwc(jnp.ones((1, 4, 4, 1))), stride=2)
    np.testing.assert_array_equal(np.asarray(y).ravel(), np.ones(4))
