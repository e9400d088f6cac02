"""How proxy networks are computed on each backend: the only place that depends on the backend.

- A CPU uses the batch-minor layout, whose passes stay in cache, and few cotangents at once. It
  skips pruned operators.
- A GPU uses NHWC, all cotangents at once and no loops over edges: kernel launches dominate, and
  each branch that depends on a mask makes the host wait for the device. Pruned operators are
  multiplied by zero, also in single paths. Kernel and regions keep only three branches: two skip a
  whole row, if it pads a batch, and if no image reaches the output; the third counts regions whose
  hashes collide. Other metrics of single paths branch on any backend, because some depend on which
  operators are computed.
- A TPU multiplies matrices: convolutions are products with banded matrices, without loops, and few
  cotangents at once stay on the chip. Pruned operators are multiplied by zero; single paths skip
  them.
- On both, all batches of samples for the regions are computed at once.

The backend is that of `tenas_jax.numerics.backend`. The measurements are in `docs/accelerators.md`.
"""

import math
import sys

from tenas_jax.networks.banded import BANDED
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.layouts import ChannelsLast, Layout
from tenas_jax.numerics import backend

# Fusing depthwise and pointwise convolutions is less work if kernels are dense anyway.
NHWC_ON_GPU = ChannelsLast(few_channels=sys.maxsize, loops=False, dense=True)
# Maximum of images times cotangents in a backward pass on an accelerator; a supernet of
# NAS-Bench-201 needs 0.23 MiB for each.
IMAGES_AT_ONCE = 2**14


def network_layout() -> Layout:
    """The layout of proxy networks on this backend.

    Returns:
        On a GPU, of whatever vendor, NHWC; on a TPU banded matrices; otherwise batch-minor.

    Example:
        >>> network_layout() is BATCH_MINOR  # on a CPU
        True
    """
    special: dict[str, Layout] = {"gpu": NHWC_ON_GPU, "tpu": BANDED}
    return special.get(backend(), BATCH_MINOR)


def skips_pruned() -> bool:
    """Whether kernels and regions of single paths use branches to skip pruned operators.

    Otherwise they use the supernet, whose pruned operators are multiplied by zero.

    Returns:
        Whether the backend is not a GPU, where a branch makes the host wait for the device.

    Example:
        >>> skips_pruned()  # on a CPU
        True
    """
    return backend() != "gpu"


def cuts_by_products() -> bool:
    """Whether patches are cut by matrix products; see `tenas_jax.data.sampling.sample_patches`.

    Returns:
        Whether the backend is a TPU: XLA's estimate for the linear regions of NAS-Bench-201 is 1.3
        million cycles a row instead of 23.5.

    Example:
        >>> cuts_by_products()  # on a CPU
        False
    """
    return backend() == "tpu"


def chunk_size(n: int, *, single_path: bool = False, rolled: bool = False) -> int:
    """Cotangents per backward pass, for `tenas_jax.metrics.ntk.empirical_ntk`.

    On a CPU, more cotangents make the products faster but push the images out of cache. On two
    cores with batch 72, single paths take 1, 0.89, 0.84, 0.81, 0.83 and 0.86 of the time with 1, 2,
    3, 4, 6 and 8 at once; supernets, whose products are longer, take 1, 0.94, 1.01 and 1 with 1 to
    4. Loops over edges copy residuals once for all cotangents of a pass: in DARTS, batch 14, a
    kernel takes 0.38 s with 2 and 0.28 s with 7.

    Args:
        n: number of images of the kernel.
        single_path: whether a network keeps at most one operator per edge; see
            `tenas_jax.architectures.space.ProxySize`.
        rolled: whether its edges are computed in loops.

    Returns:
        On a CPU or TPU a divisor of n, because passes of another size would also be compiled. On a
        GPU n, or fewer if the images are too many for the memory.

    Example:
        >>> 72 % chunk_size(72)
        0
    """
    if backend() not in ("cpu", "tpu"):
        passes = math.ceil(n * n / IMAGES_AT_ONCE)
        return math.ceil(n / passes)
    if rolled or backend() == "tpu":
        return max(size for size in range(1, 9) if n % size == 0)
    return math.gcd(n, 4 if single_path else 2)


def batches_at_once(n: int) -> int | None:
    """Number of the n batches of a region network's samples that are computed at once.

    Returns:
        On a CPU None: one after the other. On an accelerator n, for fewer kernels.

    Example:
        >>> batches_at_once(3)  # on a CPU
    """
    return None if backend() == "cpu" else n


def rows_per_call(*, single_path: bool) -> int:
    """Number of rows that a device measures per call, one after the other.

    On a CPU, one supernet, which takes a second, or several single paths, whose times even out. On
    an accelerator a row takes milliseconds, so several rows share the cost of a call.

    Args:
        single_path: whether a network keeps at most one operator per edge.

    Example:
        >>> rows_per_call(single_path=False), rows_per_call(single_path=True)  # on a CPU
        (1, 8)
    """
    if backend() == "cpu":
        return 8 if single_path else 1
    return 16
