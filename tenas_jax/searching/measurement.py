"""Measure a row: all metrics of a supernet or architecture for one draw of weights."""

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.architectures.space import ProxySize, require_mask
from tenas_jax.data.images import ImageSet
from tenas_jax.data.sampling import chosen_images, sample_images, sample_patches
from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import executed_patterns
from tenas_jax.metrics.draw import Draw
from tenas_jax.metrics.features import feature_gradients
from tenas_jax.metrics.jacobian import default_chunk_size
from tenas_jax.metrics.ntk import empirical_ntk
from tenas_jax.metrics.registry import Metric
from tenas_jax.networks.backends import (
    batches_at_once,
    chunk_size,
    cuts_by_products,
    network_layout,
    skips_pruned,
)
from tenas_jax.networks.initializers import DEFAULT, initialize, quick_key
from tenas_jax.networks.layers import DEVIATIONS
from tenas_jax.networks.layouts import NHWC, NHWC_WITHOUT_BATCH_NORM, Layout
from tenas_jax.networks.ops import OPS, OWN_PARAMETERS, PATTERNS, READERS, Op
from tenas_jax.networks.supernet import FEATURES
from tenas_jax.numerics import highest_precision
from tenas_jax.resolve import is_library, located
from tenas_jax.searching.problem import Problem


class Images(NamedTuple):
    """All images, their mean and standard deviation, and their labels if used."""

    pixels: UInt8[Array, "n h w channels"]
    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]
    labels: Int[Array, " n"] | None = None

    @classmethod
    def of(cls, image_set: ImageSet, put: Callable[[np.ndarray], Array] = jnp.asarray) -> "Images":
        """The images of an image set, placed by `put`."""
        mean, std = (np.asarray(each, np.float32) for each in (image_set.mean, image_set.std))
        labels = None if image_set.labels is None else put(image_set.labels)
        return cls(put(image_set.images), put(mean), put(std), labels)


Measure = Callable[
    [Sequence[Metric], Key[Array, ""], Bool[Array, "cell edge op"], Images], dict[str, Array]
]
MakeNetwork = Callable[[ProxySize, Layout], Any]
# The parameters that gradient proxies use in their papers.
KERNELS = ("kernel", "depthwise", "pointwise")


def make_measure(problem: Problem, *, single_path: bool = False) -> Measure:
    """Make the pure function that measures one row.

    All metrics except the linear regions use the NTK's network, with the same weights and images.
    `SearchConfig.labels` selects the labels for proxies that need a loss.

    Args:
        problem: what is measured.
        single_path: every mask keeps at most one operator per edge.

    Returns:
        A function of metrics (except those counted on the host), a key, a mask [cell, edge, op]
        and the images. It returns the metrics by name. It raises `InputError` for a metric that is
        not one number, and for errors raised by the user's metrics and networks.
    """

    @highest_precision()
    def measure(
        metrics: Sequence[Metric], key: Array, mask: Array, images: Images
    ) -> dict[str, Array]:
        draw = SupernetDraw(problem, single_path, key, mask, images)
        return {metric.name: _measured(metric, draw) for metric in metrics}

    return measure


def _measured(metric: Metric, draw: "SupernetDraw") -> Array:
    """Evaluate a metric on a draw, and check that it is a number."""
    assert metric.measure is not None
    try:
        value = metric.measure(draw)
    except InputError:
        raise
    except Exception as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if draw.is_built_in and all(map(is_library, files)):
            raise
        raise InputError(f"metric {metric.name} of {draw.name}: {located(error)}") from error
    number = isinstance(value, (int, float, np.number, np.bool, np.ndarray, jax.Array))
    if not number or jnp.shape(value) != () or jnp.iscomplexobj(value):
        kind = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else repr(value)
        raise InputError(f"metric {metric.name} returns {kind}: it must return one real number")
    return jnp.asarray(value)


def initialized(
    make: MakeNetwork, size: ProxySize, key: Key[Array, ""], x: Array, mask: Array
) -> PyTree[Float[Array, "..."]]:
    """Initialize the parameters of a network for images `x` and a mask.

    Networks of this library use `size.initializer` for all parameters. A user's module uses its own
    initializers, except that `size.initializer`, if given, replaces those of the kernels.

    Args:
        make: makes the network from a size and a layout.
        size: its size and initializer.
        key: key of the draw.
        x: images.
        mask: the operators kept.
    """
    # All layouts have the same shapes; this one is traced in half the time.
    network = make(size, NHWC)
    shapes = jax.eval_shape(network.init, key, x[:2], mask).get("params", {})

    def is_own(path: tuple[Any, ...]) -> bool:
        if hasattr(network, "initializer"):
            return any(getattr(part, "key", None) == OWN_PARAMETERS for part in path)
        return size.initializer == DEFAULT or path[-1].key not in KERNELS

    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    own = [is_own(path) for path, _ in leaves]
    values = (
        jax.tree.leaves(network.init(quick_key(key), x[:2], mask)["params"]) if any(own) else []
    )
    if not all(own):
        kept = [None if mine else leaf for mine, (_, leaf) in zip(own, leaves, strict=True)]
        name = getattr(network, "initializer", size.initializer)
        drawn = iter(jax.tree.leaves(initialize(jax.tree.unflatten(structure, kept), name, key)))
        values = [values[i] if mine else next(drawn) for i, mine in enumerate(own)]
    return jax.tree.unflatten(structure, values)


class SupernetDraw(Draw):
    """The draw of a row: the proxy network of a search space under a mask.

    Args:
        problem: what is measured.
        single_path: the mask keeps at most one operator per edge.
        key: key of the row.
        mask: the operators kept.
        images: all images.
    """

    def __init__(
        self,
        problem: Problem,
        single_path: bool,
        key: Key[Array, ""],
        mask: Bool[Array, "cell edge op"],
        images: Images,
    ) -> None:
        require_mask(problem.space, mask)
        # Distinct from the keys derived below by `split` and small numbers.
        super().__init__(self._logits, None, None, key=jax.random.fold_in(key, 1 << 16), mask=mask)
        self._problem, self._single_path, self._images = problem, single_path, images
        self._network_key, self._regions_key = jax.random.split(key)

    @property
    def is_built_in(self) -> bool:
        """Whether the space and the metrics are those of this library."""
        return self._problem.is_named and self._problem.sources == {}

    @property
    def name(self) -> str:
        """The name of the space, for messages."""
        return self._problem.space.name

    @cached_property
    def x(self) -> Float[Array, "n h w channels"]:
        """Normalized images, randomly flipped and cropped."""
        return self._batch(jax.random.split(self._network_key)[1])

    @cached_property
    def second_batch(self) -> Float[Array, "n h w channels"]:
        """Other normalized images, some of which may also be in `x`."""
        return self._batch(jax.random.fold_in(self._network_key, 2))

    @cached_property
    def labels(self) -> Int[Array, "n"]:
        """The labels of `x`: random ones, or those of the data."""
        config, key = self._problem.config, jax.random.fold_in(self._network_key, 0)
        if config.labels == "own":
            if self._images.labels is None:
                raise InputError("the images have no labels of their own: use labels random")
            count, own = len(self._images.pixels), self._images.labels
            x_key = jax.random.split(self._network_key)[1]
            return own[chosen_images(x_key, count, config.ntk.batch_size)]
        return jax.random.randint(key, (config.ntk.batch_size,), 0, config.num_classes)

    @cached_property
    def params(self) -> PyTree[Float[Array, "..."]]:
        """The weights of the supernet."""
        key = jax.random.split(self._network_key)[0]
        problem = self._problem
        return initialized(problem.space.supernet, problem.ntk_size, key, self.x, self._mask)

    @cached_property
    def kernel(self) -> Float[Array, "n n"]:
        """The empirical NTK of the summed logits over `x`."""
        ntk, params, x = self._problem.config.ntk, self.params, self.x
        chunk = cotangents(self._problem, single_path=self._single_path)

        def kernel() -> Array:
            return empirical_ntk(self.logits, params, x, engine=ntk.engine, chunk_size=chunk)

        connected = self._problem.space.connected(self._mask)
        if connected is True:
            return kernel()
        # If the input does not reach the output, the kernel is zero for all weights.
        zeros: Array = lax.cond(connected, kernel, lambda: jnp.zeros((len(x), len(x)), x.dtype))
        return zeros

    @property
    def region_patterns(self) -> Bool[Array, "sample neurons"]:
        """The activation patterns of the region network on random patches."""
        problem, regions = self._problem, self._problem.config.regions
        skips = self._single_path and skips_pruned()
        size = dataclasses.replace(problem.region_size, single_path=skips)
        network = problem.space.region_network(size, network_layout())
        if network is None:
            raise InputError(
                f"{self.name} has no region network: give ChoiceSpace(..., regions=...), or leave "
                "out the metric regions"
            )
        weights_key, patches_key = jax.random.split(self._regions_key)
        patches = sample_patches(
            patches_key,
            self._images.pixels,
            regions.batches * regions.batch_size,
            size=regions.patch_size,
            channels=regions.channels,
            mean=self._images.mean,
            std=self._images.std,
            by_products=cuts_by_products(),
        )
        params = initialized(
            problem.space.region_network, problem.region_size, weights_key, patches, self._mask
        )

        def patterns(batch: Array) -> Bool[Array, "n neurons"]:
            return _patterns_and_counts(problem.space, network, params, batch, self._mask)[0]

        batches = patches.reshape(regions.batches, regions.batch_size, *patches.shape[1:])
        pooled: Array = lax.map(patterns, batches, batch_size=batches_at_once(regions.batches))
        return pooled.reshape(-1, pooled.shape[-1])

    def features(self) -> list[Float[Array, "n h w channels"]]:
        """The images after each cell of the network, or the features that a user's module sows."""
        return list(self._features)

    @cached_property
    def feature_gradients(self) -> list[tuple[Array, Array]]:
        """For each cell but the first: cotangents of its output, pulled back to its input."""
        gradients = feature_gradients(self._sown_features, jax.random.fold_in(self._network_key, 3))
        return [(self._to_nhwc(after), self._to_nhwc(before)) for after, before in gradients]

    def normalized_features(
        self, params: PyTree, x: Array
    ) -> tuple[Float[Array, "n h w channels"], Float[Array, " layers"]]:
        """The images after the last cell, and the logarithms of their normalization constants."""
        if not self._has_layouts:
            raise InputError(
                f"the module of {self.name} does not expose the variances that its batch "
                "normalizations divide by: leave out the metric zen"
            )
        _, sown = _apply(self._network(NHWC), params, x, self._mask, (FEATURES, DEVIATIONS))
        deviations = jnp.concatenate(jax.tree.leaves(sown[DEVIATIONS]))
        return jax.tree.leaves(sown[FEATURES])[-1], deviations

    def logits_without_normalization(self, params: PyTree, x: Array) -> Float[Array, "n classes"]:
        """The logits with every normalization layer replaced by the identity."""
        network = self._network(NHWC_WITHOUT_BATCH_NORM)
        with nn.intercept_methods(_without_normalization):
            return _apply(network, params, x, self._mask)[0]

    def logits_once(self, params: PyTree, x: Array) -> Float[Array, "n classes"]:
        """The logits, from a network that compiles faster and runs slower."""
        return _apply(self._network(), params, x, self._mask)[0]

    def logits_by_jax(self, params: PyTree, x: Array) -> Float[Array, "n classes"]:
        """The logits in NHWC, since the fast layout needs batches and has no second derivatives."""
        return _apply(self._network(NHWC), params, x, self._mask)[0]

    @property
    def is_stacked(self) -> Callable[[tuple[Any, ...]], bool]:
        """Whether a parameter stacks parallel edges: all except the classifier's do."""
        return _is_of_edges if self._has_layouts else super().is_stacked

    @property
    def is_kernel(self) -> Callable[[tuple[Any, ...]], bool]:
        """Whether the parameter at a path is the kernel of a convolution or linear layer."""
        return _is_kernel

    @cached_property
    def _features(self) -> list[Float[Array, "n h w channels"]]:
        return list(map(self._to_nhwc, self._sown_features()))

    def _sown_features(self) -> list[Array]:
        """The images after each cell, in the network's layout."""
        _, sown = _apply(self._network(), self.params, self.x, self._mask, (FEATURES,))
        features = jax.tree.leaves(sown)
        if not features:
            raise InputError(
                f"the module of {self.name} sows no features: call "
                f"self.sow('{FEATURES}', 'cells', x) after each of its parts"
            )
        return features

    def _to_nhwc(self, x: Array) -> Array:
        images: Array = self._network().layout.to_nhwc(x) if self._has_layouts else x
        return images

    @property
    def _mask(self) -> Bool[Array, "cell edge op"]:
        assert self.mask is not None
        return self.mask

    @property
    def _has_layouts(self) -> bool:
        return hasattr(self._network(), "layout")

    @cached_property
    def _patterns_and_counts(self) -> tuple[Bool[Array, "n neurons"], Int[Array, "neurons"]]:
        space = self._problem.space
        return _patterns_and_counts(space, self._network(), self.params, self.x, self._mask)

    def _network(self, layout: Layout | None = None, *, rolled: bool = True) -> Any:
        """The proxy network; that of the kernel is not `rolled`."""
        layout = network_layout() if layout is None else layout
        return _network(self._problem, self._single_path, layout, rolled=rolled)

    def _logits(self, params: PyTree, x: Array) -> Float[Array, "n classes"]:
        # The kernel takes most of the time, so run time matters more than compile time.
        return _apply(self._network(rolled=False), params, x, self._mask)[0]

    def _batch(self, key: Key[Array, ""]) -> Float[Array, "n h w channels"]:
        config = self._problem.config
        return sample_images(
            key,
            self._images.pixels,
            config.ntk.batch_size,
            padding=config.padding,
            mean=self._images.mean,
            std=self._images.std,
        )


def cotangents(problem: Problem, *, single_path: bool) -> int:
    """Cotangents in a backward pass of the kernel.

    Args:
        problem: what is measured.
        single_path: every mask keeps at most one operator per edge.

    Returns:
        `ntk.chunk_size`; if it is None, the default for the backend and the network.

    Example:
        >>> from tenas_jax.searching.config import SearchConfig
        >>> from tenas_jax.searching.problem import look_up
        >>> cotangents(look_up(SearchConfig()), single_path=False)  # on a CPU
        2
    """
    ntk = problem.config.ntk
    if ntk.chunk_size is not None:
        return ntk.chunk_size
    network = _network(problem, single_path, network_layout(), rolled=False)
    if not hasattr(network, "layout"):
        return default_chunk_size(ntk.batch_size)
    rolled = getattr(network, "rolled", False)
    return chunk_size(ntk.batch_size, single_path=single_path, rolled=rolled)


def _network(problem: Problem, single_path: bool, layout: Layout, *, rolled: bool) -> Any:
    """The proxy network; that of the kernel is not `rolled`."""
    path = single_path and (rolled or skips_pruned())
    size = dataclasses.replace(problem.ntk_size, single_path=path, rolled=rolled and path)
    return problem.space.supernet(size, layout)


def _apply(
    network: Any, params: PyTree, x: Array, mask: Array, wanted: tuple[str, ...] = ()
) -> tuple[Array, PyTree]:
    """The output of a network, and the requested collections that it sows."""
    variables = {"params": params}
    # A user's batch normalization updates running statistics, which are not used.
    result, sown = network.apply(variables, x, mask, mutable=["batch_stats", *wanted])
    return cast(Array, result), {name: sown[name] for name in wanted if name in sown}


def _patterns_and_counts(
    space: Any, network: Any, params: PyTree, x: Array, mask: Array
) -> tuple[Bool[Array, "n neurons"], Int[Array, "neurons"]]:
    """Activation patterns, and how often each neuron occurs in the network."""
    if not hasattr(network, "layout"):
        run = executed_patterns(lambda x: _apply(network, params, x, mask)[0], smooth="ignore")
        patterns, executed = run(x)
        return patterns, executed.astype(int)
    if isinstance(space, CellSpace):
        for name, op in dict(space.operators).items():
            if op not in OPS.values():
                _require_sown(name, op, network.initializer)
    _, sown = _apply(network, params, x, mask, (PATTERNS, READERS))
    patterns = jnp.concatenate(jax.tree.leaves(sown[PATTERNS]), 1)
    readers = jnp.concatenate(jax.tree.leaves(sown[READERS])).astype(int)
    return patterns, readers


def _require_sown(name: str, make: Callable[..., Op], initializer: str) -> None:
    """Reject an operator whose ReLUs do not sow their patterns."""
    op = make(4, NHWC, initializer)
    x, weight = jnp.ones((1, 8, 8, 4)), jnp.ones(1)

    def counts() -> tuple[Array, PyTree]:
        params = op.init(jax.random.key(0), x, weight).get("params", {})

        def apply(x: Array) -> tuple[Array, PyTree]:
            return cast(
                tuple[Array, PyTree], op.apply({"params": params}, x, weight, mutable=[PATTERNS])
            )

        return executed_patterns(lambda x: apply(x)[0], required=False, smooth="ignore")(x)[
            0
        ], apply(x)[1]

    found, sown = jax.eval_shape(counts)
    seen = sum(leaf.shape[1] for leaf in jax.tree.leaves(sown))
    if found.shape[1] != seen:
        raise InputError(
            f"operator {name} has {found.shape[1]} neurons, of which {seen} are sown: call "
            "tenas_jax.networks.ops.relu in it"
        )


def _without_normalization(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
) -> Any:
    """Replaces Flax's normalization layers by the identity."""
    layers = (nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm)
    if isinstance(context.module, layers) and context.method_name == "__call__":
        return args[0]
    return call(*args, **kwargs)


def _is_of_edges(path: tuple[Any, ...]) -> bool:
    return bool(path[0].key != "classifier")


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return any(getattr(part, "key", None) in KERNELS for part in path)
