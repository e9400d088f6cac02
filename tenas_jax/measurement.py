"""What is measured of a row: all metrics of a supernet or architecture at one draw of weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from tenas_jax import proxies
from tenas_jax.batch_minor import BATCH_MINOR, chunk_size
from tenas_jax.config import SearchConfig
from tenas_jax.costs import architecture_costs
from tenas_jax.data import ImageSet
from tenas_jax.initializers import initialize
from tenas_jax.layers import NHWC, NHWC_WITHOUT_BATCH_NORM, Layout
from tenas_jax.linear_regions import count_linear_regions
from tenas_jax.ntk import condition_number, empirical_ntk
from tenas_jax.ops import PATTERNS, READERS
from tenas_jax.sampling import sample_images, sample_patches
from tenas_jax.spaces import SearchSpace, connecting
from tenas_jax.supernet import NTK_NETWORKS, REGION_NETWORKS, SINGLE_PATH_NETWORKS

Measure = Callable[
    [Key[Array, ""], Bool[Array, "cell edge op"], UInt8[Array, "n h w 3"]], dict[str, Array]
]
# The parameters that the proxies of gradients are published for.
KERNELS = ("kernel", "depthwise", "pointwise")
COSTS = ("parameters", "flops")


def make_measure(
    config: SearchConfig, space: SearchSpace, image_set: ImageSet, *, single_path: bool = False
) -> Measure:
    """The pure function that measures one row.

    All metrics but the linear regions are of the network of the NTK, at the same weights and
    images. Labels, for the proxies that need a loss, are drawn at random: a search has no others.

    Args:
        config: what is measured.
        space: the search space.
        image_set: for its normalization; the images are an argument of the function.
        single_path: promises that every mask keeps an operator an edge at most; the space is one of
            `tenas_jax.supernet.SINGLE_PATH_NETWORKS`.

    Returns:
        A function of a key, a mask [cell, edge, op] and the images. It returns the configuration's
        metrics by name, without parameters and FLOPs, which `measure_costs` computes.
    """
    wanted = set(config.metric_names)

    def measure(key: Array, mask: Array, images: Array) -> dict[str, Array]:
        row = _Row(config, space, image_set, single_path, key, mask, images)
        measured: dict[str, Array] = {}
        for names, group in _GROUPS.items():
            if wanted.intersection(names):
                measured |= zip(names, group(row), strict=True)
        return {name: measured[name] for name in config.metric_names if name not in COSTS}

    return measure


def measure_costs(
    space: SearchSpace, masks: Bool[np.ndarray, "row cell edge op"]
) -> dict[str, Int[np.ndarray, " row"]]:
    """Parameters and FLOPs of the discrete networks, which no draw of weights changes.

    Args:
        space: the search space.
        masks: the operators kept.

    Returns:
        Two of the metrics by name.
    """
    return dict(zip(COSTS, architecture_costs(space, masks), strict=True))


def initialized(
    network: nn.Module, initializer: str, key: Key[Array, ""], x: Array, mask: Array
) -> PyTree[Float[Array, "..."]]:
    """Parameters of a network for images `x` and a mask, by the initializer of that name."""
    # The shapes are those of any layout; this one is traced in half of the time.
    plain = network.clone(layout=NHWC)
    shapes = jax.eval_shape(plain.init, key, x[:2], mask)["params"]
    return initialize(shapes, initializer, key)


@dataclass(frozen=True)
class _Row:
    """A draw of weights and images, which the metrics of a row share."""

    config: SearchConfig
    space: SearchSpace
    image_set: ImageSet
    single_path: bool
    key: Array
    mask: Array
    images: Array

    @cached_property
    def keys(self) -> tuple[Array, Array]:
        """Of the network of the NTK, and of the network of the regions."""
        first, second = jax.random.split(self.key)
        return first, second

    @property
    def normalization(self) -> dict[str, Any]:
        return {"mean": self.image_set.mean, "std": self.image_set.std}

    def network(self, layout: Layout = BATCH_MINOR, *, single_path: bool = False) -> nn.Module:
        config = self.config
        networks = SINGLE_PATH_NETWORKS if single_path else NTK_NETWORKS
        return networks[self.space.name](config.num_classes, layout, config.ntk.initializer)

    @cached_property
    def x(self) -> Float[Array, "n h w 3"]:
        config = self.config
        key = jax.random.split(self.keys[0])[1]
        return sample_images(
            key,
            self.images,
            config.ntk.batch_size,
            padding=config.padding,
            **self.normalization,
        )

    @cached_property
    def params(self) -> PyTree[Float[Array, "..."]]:
        key = jax.random.split(self.keys[0])[0]
        return initialized(self.network(), self.config.ntk.initializer, key, self.x, self.mask)

    def logits(self, params: PyTree, x: Array) -> Array:
        network = self.network(single_path=self.single_path)
        return cast(Array, network.apply({"params": params}, x, self.mask))


def _kernel_metrics(row: _Row) -> tuple[Array, Array, Array]:
    ntk, params, x = row.config.ntk, row.params, row.x

    def connected() -> Array:
        chunk = ntk.chunk_size or chunk_size(len(x), single_path=row.single_path)
        return empirical_ntk(row.logits, params, x, engine=ntk.engine, chunk_size=chunk)

    # Where no image reaches the output, batch normalization makes it zero, whatever the weights.
    edges = [edge for cell in row.mask for edge in connecting(row.space, cell)]
    kernel: Array = lax.cond(
        jnp.stack(edges).any(), connected, lambda: jnp.zeros((len(x), len(x)), x.dtype)
    )
    return condition_number(kernel), proxies.ntk_trace(kernel), proxies.ntk_mean_eigenvalue(kernel)


def _region_metrics(row: _Row) -> tuple[Array]:
    regions = row.config.regions
    network = REGION_NETWORKS[row.space.name](BATCH_MINOR, regions.initializer)
    weights_key, patches_key = jax.random.split(row.keys[1])
    patches = sample_patches(
        patches_key,
        row.images,
        regions.batches * regions.batch_size,
        size=regions.patch_size,
        **row.normalization,
    )
    params = initialized(network, regions.initializer, weights_key, patches, row.mask)

    def patterns(batch: Array) -> Bool[Array, "n neurons"]:
        _, sown = network.apply({"params": params}, batch, row.mask, mutable=[PATTERNS])
        return jnp.concatenate(jax.tree.leaves(sown), 1)

    batches = patches.reshape(regions.batches, regions.batch_size, *patches.shape[1:])
    pooled = lax.map(patterns, batches)
    return (count_linear_regions(pooled.reshape(-1, pooled.shape[-1])),)


def pattern_metrics(
    network: nn.Module, params: PyTree, x: Array, mask: Array
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """NASWOT and SWAP of the discrete network that a mask leaves of a supernet.

    Args:
        network: a supernet.
        params: its parameters.
        x: images.
        mask: the operators kept.

    Returns:
        Both scores.
    """
    _, sown = network.apply({"params": params}, x, mask, mutable=[PATTERNS, READERS])
    patterns = jnp.concatenate(jax.tree.leaves(sown[PATTERNS]), 1)
    readers = jnp.concatenate(jax.tree.leaves(sown[READERS]))
    # Neurons that nothing reads are not in the network: let them repeat one that is.
    present = jnp.where(readers[None] > 0, patterns, patterns[:, [jnp.argmax(readers)]])
    return proxies.naswot(patterns, counts=readers), proxies.swap(present)


def _pattern_metrics(row: _Row) -> tuple[Array, Array]:
    return pattern_metrics(row.network(), row.params, row.x, row.mask)


def _synflow_metrics(row: _Row) -> tuple[Array]:
    network = row.network(NHWC_WITHOUT_BATCH_NORM)
    ones = jnp.ones((1, *row.x.shape[1:]), row.x.dtype)

    def logits(params: PyTree, x: Array) -> Array:
        return cast(Array, network.apply({"params": params}, x, row.mask))

    return (proxies.synflow(logits, row.params, ones, select=_is_kernel),)


def _gradient_metrics(row: _Row) -> tuple[Array, Array, Array]:
    n = row.config.ntk.batch_size
    key = jax.random.fold_in(row.keys[0], 0)
    labels = jax.random.randint(key, (n,), 0, row.config.num_classes)

    def logits(layers: PyTree, x: Array) -> Array:
        return row.logits(jax.tree.map(jnp.stack, layers, is_leaf=_is_list), x)

    layers = jax.tree_util.tree_map_with_path(_by_edge, row.params)
    half = n // 2

    def halves(x: Array) -> Array:
        return x[: 2 * half].reshape(2, half, *x.shape[1:])

    return (
        proxies.grad_norm(logits, layers, row.x, labels, select=_is_kernel),
        proxies.snip(logits, layers, row.x, labels, select=_is_kernel),
        proxies.zico(logits, layers, halves(row.x), halves(labels), select=_is_kernel),
    )


# What computes which metrics; only groups of which a metric is wanted are computed.
_GROUPS: dict[tuple[str, ...], Callable[[_Row], tuple[Array, ...]]] = {
    ("kappa", "ntk_trace", "ntk_mean_eigenvalue"): _kernel_metrics,
    ("regions",): _region_metrics,
    ("naswot", "swap"): _pattern_metrics,
    ("synflow",): _synflow_metrics,
    ("grad_norm", "snip", "zico"): _gradient_metrics,
}


def _by_edge(path: tuple[Any, ...], leaf: Array) -> Array | list[Array]:
    """The layers that a parameter of a supernet stacks, one for each edge."""
    return leaf if path[0].key == "classifier" else list(leaf)


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return any(getattr(part, "key", None) in KERNELS for part in path)
