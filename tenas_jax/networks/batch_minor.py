"""The layout for supernets of one to a few dozen channels on a CPU: batch-minor, [h, c, w, n].

A kernel of n images takes n backward passes through the supernet, so only the backward pass
matters. With 3 channels, XLA's own convolution runs at 1 GFLOP/s on a CPU; these forms reach 40 to
100 on one core (AMD EPYC 9005, batch 72, 3 channels at 32 x 32 to 12 at 8 x 8):

- The batch is the last axis, so vector units run over images. The axes w and n are merged, so a
  shift by a pixel is an offset of n. An image row with all its channels is contiguous, so the k
  rows that a kernel reads are one matrix [k * c, w * n] without a copy.
- A convolution is one matrix product per row. With the 3 edges of a node side by side, 3 x 3 at
  3 / 6 / 12 channels reaches 42 / 75 / 96 GFLOP/s, against 26 / 21 / 2 for sums of shifted and
  scaled images. Patches are made while a row is in cache; storing k or k * k times the images
  instead takes 4 or 20 % more time, because every cotangent reads them again.
- Its input gradient is the same product with the flipped kernel; each row is folded while it is in
  cache. The rows that the kernel reads are in a ring buffer, and the kernel is rotated instead: a
  step of the loop writes one row, where XLA would copy k of them for the product. A 1 x 1 kernel
  reads one row, so all its products are one call.
- Convolution and batch normalization are one function. With G = <cotangent, patches>, which the
  kernel's gradient needs anyway, the batch sums in the gradient of batch normalization are products
  of small matrices and need no pass over the images.
- Several backward passes at once share the patches, and longer products are faster: the kernel's
  gradient takes 183 instead of 246 us for each of 4, 3 channels at 32 x 32, and 113 instead of 191
  at 6 channels. Input gradients share nothing and are computed sequentially: a row of all of them
  as one product takes 3 % less time in supernets of DARTS, but 15 % more in its single paths.
  Kernel gradients by Winograd's F(3, 2) take 1.27 (3 channels) to 0.86 (12 channels) of the time.
- A kernel with stride two reads every second column: rows hold the even columns, then the odd ones,
  and their gradients are interleaved at the end.
- A convolution whose edges are all pruned is skipped at run time (`lax.cond`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import custom_batching, lax
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from tenas_jax.networks.layouts import EPSILON, block_diagonal
from tenas_jax.networks.stencils import (
    Rows,
    avg_pool,
    depthwise_conv,
    map_rows,
    max_pool,
    put_row,
    take_rows,
)
from tenas_jax.numerics import PRECISION, backend

Cotangents = Float[Array, "_ _ _ _"]  # [r, h, c, w * n], of r backward passes


class Window(NamedTuple):
    """Geometry of a convolution: kernel side, stride, zero padding."""

    size: int
    stride: int
    padding: int

    def outputs(self, pixels: int) -> int:
        """Number of output pixels along an axis with `pixels` input pixels."""
        return (pixels + 2 * self.padding - self.size) // self.stride + 1

    @property
    def before(self) -> int:
        """Number of output pixels before pixel 0 that read an input pixel of 0 to `stride` - 1."""
        return (self.size - 1 - self.padding) // self.stride

    @property
    def after(self) -> int:
        """Number of output pixels after pixel 0 that read one of them."""
        return (self.stride - 1 + self.padding) // self.stride


@dataclass(frozen=True)
class BatchMinor:
    """Images as [h, c, w, n]; see the module's docstring.

    Args:
        channel_axis: see `tenas_jax.networks.layouts.Layout`, like the next two.
        loops: whether edges may be computed in loops.
        few_channels: up to how many channels two convolutions are one.
    """

    channel_axis: int = 1
    loops: bool = True
    few_channels: int = 16  # measured at `tenas_jax.networks.stencils.depthwise_conv`

    def from_nhwc(self, images: Float[Array, "n h w c"]) -> Float[Array, "h c w n"]:
        return images.transpose(1, 3, 2, 0)

    def to_nhwc(self, x: Float[Array, "h c w n"]) -> Float[Array, "n h w c"]:
        return x.transpose(3, 0, 2, 1)

    def per_sample(self, x: Shaped[Array, "h c w n"]) -> Shaped[Array, "n d"]:
        return x.reshape(-1, x.shape[-1]).T

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        if groups == 1 and dilation == 1:
            return _conv(*self._with_window(x, kernel, stride, padding))
        return depthwise_conv(x, kernel, stride, padding, dilation)

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        mean = x.mean((0, 2, 3), keepdims=True)
        variance = jnp.square(x - mean).mean((0, 2, 3), keepdims=True)
        factor = scale[None, :, None, None] * lax.rsqrt(variance + EPSILON)
        return (x - mean) * factor + bias[None, :, None, None]

    def conv_batch_norm(
        self,
        x: Array,
        kernel: Array,
        scale: Array,
        bias: Array,
        *,
        stride: int,
        padding: int,
        groups: int,
        dilation: int = 1,
        active: Bool[Array, ""] | bool,
    ) -> Array:
        dense = block_diagonal(kernel, groups)
        phases = 1
        if dilation > 1:
            height, width = x.shape[::2]
            if stride == dilation and padding % dilation == 0:
                # It does not read the pixels in between.
                x, stride, padding = x[::stride, :, ::stride], 1, padding // dilation
            elif stride == 1 and padding % dilation == height % dilation == width % dilation == 0:
                phases, padding = dilation, padding // dilation
            else:
                dense = _dilate(dense, dilation)
        x, dense, window = self._with_window(_to_phases(x, phases), dense, stride, padding)
        y = _conv_batch_norm(x, dense, scale, bias, jnp.asarray(active), window)
        return _from_phases(y, phases)

    def avg_pool(self, x: Array, *, stride: int) -> Array:
        return avg_pool(x, stride)

    def max_pool(self, x: Array, *, stride: int) -> Array:
        return max_pool(x, stride)

    def halve(self, x: Array) -> Array:
        h, c, w, n = x.shape
        return x.reshape(h // 2, 2, c, w // 2, 2, n).mean((1, 4))

    def shift(self, x: Array) -> Array:
        return jnp.pad(x, ((0, 1), (0, 0), (0, 1), (0, 0)))[1:, :, 1:]

    def mean_pixel(self, x: Array) -> Float[Array, "n c"]:
        return x.mean((0, 2)).T

    def _with_window(
        self, x: Array, kernel: Array, stride: int, padding: int
    ) -> tuple[Array, Array, Window]:
        """Images, kernel and window; for a strided 1 x 1 kernel, only the pixels that it reads."""
        if len(kernel) == 1:
            return x[::stride, :, ::stride], kernel, Window(1, 1, padding)
        if stride == 1 and max(x.shape[::2]) <= padding:
            # The border of such a kernel reads no pixel of images that small.
            unread = padding - max(x.shape[::2]) + 1
            kernel, padding = kernel[unread:-unread, unread:-unread], padding - unread
        return x, kernel, Window(len(kernel), stride, padding)


BATCH_MINOR = BatchMinor()


def _to_phases(x: Float[Array, "h c w n"], phases: int) -> Float[Array, "h2 c w2 m"]:
    """Split images into their phases: every `phases`-th pixel of every `phases`-th row.

    A kernel with dilation `phases` reads only one of them.
    """
    if phases == 1:
        return x
    height, channels, width, n = x.shape
    apart = x.reshape(height // phases, phases, channels, width // phases, phases, n)
    return apart.transpose(0, 2, 3, 1, 4, 5).reshape(
        height // phases, channels, width // phases, -1
    )


def _from_phases(x: Float[Array, "h2 c w2 m"], phases: int) -> Float[Array, "h c w n"]:
    """The inverse of `_to_phases`."""
    if phases == 1:
        return x
    height, channels, width, m = x.shape
    apart = x.reshape(height, channels, width, phases, phases, m // phases**2)
    shape = (height * phases, channels, width * phases, -1)
    return apart.transpose(0, 3, 1, 2, 4, 5).reshape(shape)


def _dilate(kernel: Float[Array, "k k i o"], dilation: int) -> Float[Array, "d d i o"]:
    """The kernel with zeros between its elements."""
    between, none = (0, 0, dilation - 1), (0, 0, 0)
    return lax.pad(kernel, jnp.zeros((), kernel.dtype), (between, between, none, none))


def _pad(x: Float[Array, "h c w n"], window: Window) -> Float[Array, "h2 sc w2n"]:
    """Zero-padded rows: every `stride`-th column, then the columns after them.

    A kernel with stride two then finds neighbors among the even columns and among the odd ones. For
    a 1 x 1 kernel the rows are the patches.
    """
    stride, low = window.stride, window.padding
    high = low + -(x.shape[2] + 2 * low) % stride
    x = lax.pad(x, jnp.zeros((), x.dtype), ((low, low, 0), (0, 0, 0), (low, high, 0), (0, 0, 0)))
    height, channels, width, n = x.shape
    if window.size == 1:
        x = x.reshape(height, channels, -1)
        return jnp.concatenate([x, jnp.ones((height, 1, x.shape[2]), x.dtype)], 1)
    x = x.reshape(height, channels, width // stride, stride, n).transpose(0, 3, 1, 2, 4)
    return x.reshape(height, stride * channels, -1)


def _columns(
    row: Float[Array, "sc w2n"], window: Window, n: int, length: int
) -> Float[Array, "kc wn"]:
    """The parts of a padded row that the columns of a kernel read."""
    channels = len(row) // window.stride
    seen = []
    for column in range(window.size):
        step, phase = divmod(column, window.stride)
        rows = slice(phase * channels, (phase + 1) * channels)
        seen.append(row[rows, step * n : step * n + length])
    return jnp.concatenate(seen)


def _patches(
    rows: Rows, h: Array | int, window: Window, n: int, length: int
) -> Float[Array, "kki1 wn"]:
    """The patches of padded rows for row `h` of the output, and a row of ones."""
    seen = take_rows(rows, h * window.stride, window.size)
    if window.size == 1:
        return seen[0]
    columns = [_columns(row, window, n, length) for row in seen]
    return jnp.concatenate([*columns, jnp.ones((1, length), rows.dtype)])


def _matrix(kernel: Float[Array, "k k i o"]) -> Float[Array, "o kki"]:
    return kernel.reshape(-1, kernel.shape[-1]).T


def _convolve(rows: Rows, kernel: Array, window: Window, shape: tuple[int, ...]) -> Rows:
    matrix, (height, _, width, n) = _matrix(kernel), shape

    def row(h: Array) -> Array:
        patches = _patches(rows, h, window, n, width * n)
        return lax.dot(matrix, patches[:-1], precision=PRECISION)

    return map_rows(row, height)


def _place(
    ring: Float[Array, "kc l"], row: Float[Array, "c l2"], place: Array | int, left: int = 0
) -> Float[Array, "kc l"]:
    """Replace a place of the ring of k rows, from column `left` on."""
    start = (place * len(row), left)
    return lax.dynamic_update_slice(ring, row, start, allow_negative_indices=False)


def _turn(row: Array, size: int) -> Array:
    """The place of a row in a ring of a given size."""
    return lax.rem(row, jnp.asarray(size, row.dtype))


def _spread(x: Float[Array, "r h c w n"], stride: int, first: int, width: int) -> Array:
    """Put images into columns `first`, `first + stride`, ...; the other columns are zeros."""
    high = width - first - (x.shape[3] - 1) * stride - 1
    none = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), (none, none, none, (first, high, stride - 1), none))


def _take(
    cotangents: Cotangents, i: Array | int, several: int, h: Array | int, count: int
) -> Cotangents:
    """`count` rows from `h` on, of `several` cotangents from `i` on; all within bounds."""
    sizes = (several, count, *cotangents.shape[2:])
    return lax.dynamic_slice(cotangents, (i, h, 0, 0), sizes, allow_negative_indices=False)


def _inner(a: Float[Array, "i l"], b: Float[Array, "j l"]) -> Float[Array, "i j"]:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=PRECISION)


def _correlate(
    rows: Rows, cotangents: Cotangents, window: Window, n: int
) -> Float[Array, "r o kki1"]:
    """<cotangent, patches> over pixels and images: the gradients of a kernel and of a bias."""
    several, height, outputs, length = cotangents.shape
    size, stride = window.size, window.stride
    channels = rows.shape[1] // stride
    if size == 1:
        by_row = lax.dot_general(
            cotangents, rows, (((3,), (2,)), ((1,), (0,))), precision=PRECISION
        )
        return by_row.sum(0)

    def push(ring: Array, row: Array | int, place: Array | int) -> Array:
        columns = _columns(take_rows(rows, row, 1)[0], window, n, length)
        return _place(ring, columns, place)

    kept = max(size - stride, 0)
    ring = jnp.ones((size * size * channels + 1, length), rows.dtype)
    for row in range(kept):
        ring = push(ring, row, row + 1)

    def add_row(h: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        ring, totals = state
        first = h * stride
        turn = _turn(first, size)
        for row in range(kept, size - 1):
            ring = push(ring, first + row, _turn(first + row + 1, size))
        ring = push(ring, first + size - 1, turn)
        # The long factor comes first: 23 against 18 GFLOP/s for a cotangent of 3 channels.
        product = _inner(ring, _take(cotangents, 0, several, h, 1).reshape(-1, length))
        return ring, put_row(totals, take_rows(totals, turn, 1)[0] + product, turn)

    # One sum per rotation of the ring; only the sums are rotated back.
    totals = jnp.zeros((size, len(ring), several * outputs), rows.dtype)
    _, totals = lax.fori_loop(0, height, add_row, (ring, totals))
    turned = [jnp.roll(t[:-1], -(i + 1) * size * channels, 0) for i, t in enumerate(totals)]
    total = jnp.concatenate([reduce(add, turned), totals[:, -1].sum(0)[None]])
    return total.T.reshape(several, outputs, -1)


def _input_gradient(
    gradient: Callable[[Array | int, int, Array | int, int], Cotangents],
    kernel: Array,
    window: Window,
    input_shape: tuple[int, ...],
) -> Float[Array, "r h c w n"]:
    """Gradients of a convolution's input; `gradient` returns rows of its output's, like `_take`.

    `stride` rows and columns of the input are computed at once, from `reach` of the output.
    """
    several, height, channels, width, n = input_shape
    (size, stride, padding), before, after = window, window.before, window.after
    reach = before + 1 + after
    outputs, rows = kernel.shape[-1], window.outputs(height)
    if size == 1:
        matrices = jnp.broadcast_to(kernel[0, 0], (several, height, channels, outputs))
        by_row = lax.dot_general(
            matrices,
            gradient(0, several, 0, height),
            (((3,), (2,)), ((0, 1), (0, 1))),
            precision=PRECISION,
        )
        return by_row.reshape(input_shape)
    blocks, length = -(-width // stride), window.outputs(width) * n
    count = min(after, rows)
    low = stride * after - padding
    taps = jnp.pad(kernel, ((low, stride * reach - low - size), (0, 0), (0, 0), (0, 0)))
    taps = taps.reshape(reach, stride, size, channels, outputs)[::-1].transpose(1, 2, 3, 0, 4)
    turned = jnp.stack([jnp.roll(taps, turn + 1, 3) for turn in range(reach)])
    turned = turned.reshape(reach, -1, reach * outputs)

    def fold(i: Array | int, phases: list[Array]) -> list[Array]:
        ring = jnp.zeros((reach * outputs, (blocks + reach - 1) * n), kernel.dtype)
        first = gradient(i, 1, 0, count).reshape(count * outputs, length)
        ring = lax.dynamic_update_slice(ring, first, ((before + 1) * outputs, before * n))

        def fold_row(h: Array, state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            ring, phases = state
            turn, last = _turn(h, reach), h + after
            row = gradient(i, 1, jnp.minimum(last, rows - 1), 1)[0, 0]
            ring = _place(ring, jnp.where(last < rows, row, 0), turn, before * n)
            columns = lax.dot(take_rows(turned, turn, 1)[0], ring, precision=PRECISION)
            columns = columns.reshape(stride, size, channels, -1)
            folded = (fold_phase(columns, phase) for phase in range(stride))
            return ring, [
                lax.dynamic_update_slice(
                    x, row.reshape(1, 1, *x.shape[2:]), (i, h, 0, 0), allow_negative_indices=False
                )
                for x, row in zip(phases, folded, strict=True)
            ]

        gradients: list[Array] = lax.fori_loop(0, steps, fold_row, (ring, phases))[1]
        return gradients

    def fold_phase(columns: Float[Array, "s k c l"], phase: int) -> Float[Array, "s c l2"]:
        seen = [
            (column, (phase + padding - column) // stride + before)
            for column in range(size)
            if (phase + padding - column) % stride == 0
        ]
        return reduce(add, [columns[:, j, :, k * n : (k + blocks) * n] for j, k in seen])

    steps = -(-height // stride)
    zeros = jnp.zeros((several, steps, stride * channels, blocks * n), kernel.dtype)
    phases = lax.fori_loop(0, several, fold, [zeros] * stride)
    phases = [x.reshape(several, -1, channels, blocks, n)[:, :height] for x in phases]
    return reduce(add, [_spread(x, stride, phase, width) for phase, x in enumerate(phases)])


def _of_one(backward: Callable[[Window, PyTree, Array], PyTree]) -> Callable[..., PyTree]:
    """The backward pass of one cotangent from that of several, [r, ...], which `vmap` calls once.

    This is for CPUs. On accelerators, which would process cotangents sequentially, and for several
    networks at once, the backward pass is batched as usual. It is traced once per shape.
    """
    backward = jax.jit(backward, static_argnums=0)

    def of_one(window: Window, residuals: PyTree, cotangent: Array) -> PyTree:
        def one(residuals: PyTree, cotangent: Array) -> PyTree:
            gradients = backward(window, residuals, cotangent[None])
            return jax.tree.map(lambda each: each[0], gradients)

        one_or_all = custom_batching.custom_vmap(one)

        @one_or_all.def_vmap
        def all_at_once(
            _: int, batched: list[PyTree], residuals: PyTree, cotangents: Array
        ) -> tuple[PyTree, PyTree]:
            if backend() != "cpu" or any(jax.tree.leaves(batched[0])):
                axes = jax.tree.map(lambda axis: 0 if axis else None, batched)
                gradients = jax.vmap(one, in_axes=axes)(residuals, cotangents)
            else:
                gradients = backward(window, residuals, cotangents)
            return gradients, jax.tree.map(lambda _: True, gradients)

        return one_or_all(residuals, cotangent)

    return of_one


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, window: Window) -> Array:
    return _conv_forward(x, kernel, window)[0]


def _conv_forward(
    x: Array, kernel: Array, window: Window
) -> tuple[Array, tuple[Array, Array, Array]]:
    padded, (height, _, width, n) = _pad(x, window), x.shape
    shape = (window.outputs(height), kernel.shape[-1], window.outputs(width), n)
    y = _convolve(padded, kernel, window, shape)
    # Only the shape of x is needed later; an empty array carries it as a residual.
    return y.reshape(shape), (padded, kernel, jnp.zeros((0, *x.shape), x.dtype))


@_of_one
def _conv_backward(
    window: Window, residuals: tuple[Array, Array, Array], cotangents: Float[Array, "r h c w n"]
) -> tuple[Array, Array]:
    padded, kernel, shape = residuals
    rows = cotangents.reshape(*cotangents.shape[:3], -1)
    products = _correlate(padded, rows, window, shape.shape[-1])[..., :-1]
    x = _input_gradient(partial(_take, rows), kernel, window, (len(rows), *shape.shape[1:]))
    return x, products.swapaxes(1, 2).reshape(-1, *kernel.shape)


_conv.defvjp(_conv_forward, _conv_backward)


class _Normalized(NamedTuple):
    """The residuals of convolution and batch normalization."""

    padded: Rows  # its input
    y: Rows  # the convolution's output
    mean: Float[Array, "o"]
    inverse_std: Float[Array, "o"]
    products: Float[Array, "o1 kki1"]  # <y, patches>, and of 1 in the last row


_Residuals = tuple[_Normalized, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _conv_batch_norm(
    x: Array, kernel: Array, scale: Array, bias: Array, active: Array, window: Window
) -> Array:
    return _conv_batch_norm_forward(x, kernel, scale, bias, active, window)[0]


def _conv_batch_norm_forward(
    x: Array, kernel: Array, scale: Array, bias: Array, active: Array, window: Window
) -> tuple[Array, _Residuals]:
    padded = _pad(x, window)
    # The last patch is 1 everywhere; it is passed on below the outputs.
    matrix = jax.scipy.linalg.block_diag(_matrix(kernel), jnp.ones((1, 1), kernel.dtype))
    outputs = kernel.shape[-1]
    shape = (window.outputs(x.shape[0]), outputs, window.outputs(x.shape[2]), x.shape[3])
    height, length = shape[0], shape[2] * shape[3]

    def add_row(h: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        y, products = sums
        patches = _patches(padded, h, window, x.shape[3], length)
        row = lax.dot(matrix, patches, precision=PRECISION)
        return put_row(y, row[:-1], h), products + _inner(patches, row)

    zeros = [jnp.zeros(s, x.dtype) for s in ((height, outputs, length), matrix.shape[::-1])]
    y, products = lax.fori_loop(0, height, add_row, tuple(zeros))
    mean = y.mean((0, 2), keepdims=True)
    variance = jnp.square(y - mean).mean((0, 2))
    inverse_std = lax.rsqrt(variance + EPSILON)
    result = (y - mean) * (scale * inverse_std)[None, :, None] + bias[None, :, None]
    saved = _Normalized(padded, y, mean.reshape(-1), inverse_std, products.T)
    return result.reshape(shape), (saved, kernel, scale, active, jnp.zeros((0, *x.shape), x.dtype))


@_of_one
def _conv_batch_norm_backward(
    window: Window, residuals: _Residuals, cotangents: Float[Array, "r h c w n"]
) -> tuple[Array, Array, Array, Array, None]:
    saved, kernel, scale, active, shape = residuals
    rows = cotangents.reshape(*cotangents.shape[:3], -1)
    several, height, _, length = rows.shape
    input_shape = (several, *shape.shape[1:])

    def compute() -> tuple[Array, Array, Array, Array]:
        # With y = W p for the patches p, z = (y - mean) inverse_std and c the cotangent of
        # scale z + bias, the gradient of y is scale inverse_std (c - mean(c) - z mean(c z)): it is
        # a c + b y + d with constants for each channel; they and the products with p follow from
        # <c, p>, <y, p> and <1, p>.
        matrix, mean, inverse_std = _matrix(kernel), saved.mean, saved.inverse_std
        y_products, sums = saved.products[:-1, :-1], saved.products[-1:, :-1]
        a = scale * inverse_std

        def constants(correlation: Float[Array, "o kki1"]) -> tuple[Array, ...]:
            products, bias = correlation[:, :-1], correlation[:, -1]
            scale_gradient = ((matrix * products).sum(1) - mean * bias) * inverse_std
            b = -a * inverse_std * scale_gradient / (height * length)
            d = -a * bias / (height * length) - b * mean
            b, d = b[:, None], d[:, None]
            gradient = a[:, None] * products + b * y_products + d * sums
            return gradient.T.reshape(kernel.shape), scale_gradient, bias, b, d

        correlations = _correlate(saved.padded, rows, window, shape.shape[-1])
        gradient, scale_gradient, bias, b, d = jax.vmap(constants)(correlations)

        def y_gradient(i: Array | int, few: int, h: Array | int, count: int) -> Cotangents:
            own_b, own_d = (lax.dynamic_slice_in_dim(each, i, few)[:, None] for each in (b, d))
            c, y = _take(rows, i, few, h, count), take_rows(saved.y, h, count)[None]
            return a[None, None, :, None] * c + own_b * y + own_d

        x = _input_gradient(y_gradient, kernel, window, input_shape)
        return x, gradient, scale_gradient, bias

    shapes = (input_shape, *((several, *each.shape) for each in (kernel, scale, scale)))
    zeros = tuple(jnp.zeros(each, rows.dtype) for each in shapes)
    return (*lax.cond(active, compute, lambda: zeros), None)


_conv_batch_norm.defvjp(_conv_batch_norm_forward, _conv_batch_norm_backward)
