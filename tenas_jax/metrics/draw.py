"""One draw of weights and images, shared by all metrics of a measurement."""

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import executed_patterns
from tenas_jax.metrics.features import feature_gradients
from tenas_jax.metrics.input_jacobian import input_jacobian
from tenas_jax.metrics.model import ApplyFn, Select, is_weight, require_weights
from tenas_jax.metrics.ntk import empirical_ntk
from tenas_jax.metrics.proxies import Flow, loss_gradient, positive_flow
from tenas_jax.metrics.samples import SampleGradients, sample_gradients
from tenas_jax.numerics import random_key


class Draw:
    """A model with one draw of its weights, and the images it is measured on.

    This is the argument of the function of a `Metric`. Quantities are computed on first access and
    cached: metrics share the kernel, the patterns and the images, and unused quantities cost
    nothing. Access them outside of `jax.lax.cond`, `jax.lax.scan` and similar transformations.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes].
        params: the weights.
        x: the images [n, h, w, channels], or any other input of `apply_fn`.
        labels: class of each sample, if the data has classes.
        second_batch: more samples like `x`, for metrics that compare two batches.
        key: random key for metrics; for an independent key use `jax.random.fold_in(draw.key, 1)`.
        mask: the operators kept, if the model is the supernet of a search space.
        select: whether gradient metrics use the parameter at a path.
        counting: `sample_axis`, `smooth` and `max_pooling` of `activation_patterns`.

    Example:
        >>> import jax
        >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["kernel"])
        >>> draw = Draw(apply_fn, {"kernel": jnp.eye(2)}, jnp.eye(2))
        >>> draw.kernel.tolist(), draw.patterns.tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [[True, False], [False, True]])
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        params: PyTree,
        x: Any,
        *,
        labels: Any = None,
        second_batch: Any = None,
        key: Key[Array, ""] | None = None,
        mask: Bool[Array, "cell edge op"] | None = None,
        select: Select = is_weight,
        **counting: Any,
    ) -> None:
        self._given = {"params": params, "x": x, "labels": labels, "second_batch": second_batch}
        self.logits = apply_fn
        self.key = random_key(0) if key is None else key
        self.mask = mask
        self._select, self._counting = select, counting

    @cached_property
    def params(self) -> PyTree:
        """The weights."""
        return self._given["params"]

    @cached_property
    def x(self) -> Any:
        """The samples; in a search, normalized images [n, h, w, channels]."""
        return self._given["x"]

    @cached_property
    def second_batch(self) -> Any:
        """Other samples; in a search, as many as in `x`."""
        return self._require("second_batch", "a second batch")

    @cached_property
    def labels(self) -> Int[Array, "n"]:
        """The class of each sample; in a search, selected by `SearchConfig.labels`."""
        labels: Array = self._require("labels", "labels")
        return labels

    @cached_property
    def kernel(self) -> Float[Array, "n n"]:
        """The empirical NTK of the summed logits over `x`; see `empirical_ntk`."""
        return empirical_ntk(self.logits, self.params, self.x, select=self._select)

    @cached_property
    def patterns(self) -> Bool[Array, "n neurons"]:
        """Which neuron is active for which sample of `x`; see `activation_patterns`.

        Neurons of pruned operators are not in the network; their columns copy that of a present
        neuron.
        """
        patterns, counts = self._patterns_and_counts
        return jnp.where(counts[None] > 0, patterns, patterns[:, [jnp.argmax(counts)]])

    @cached_property
    def neuron_counts(self) -> Int[Array, "neurons"]:
        """How often each neuron of `patterns` occurs in the network; 0 for pruned operators."""
        return self._patterns_and_counts[1]

    @cached_property
    def _patterns_and_counts(self) -> tuple[Bool[Array, "n neurons"], Int[Array, "neurons"]]:
        run = executed_patterns(self.logits, **self._counting)
        patterns, executed = run(self.params, self.x)
        return patterns, executed.astype(int)

    @property
    def region_patterns(self) -> Bool[Array, "sample neurons"]:
        """The activation patterns for counting linear regions; see `tenas_jax.linear_regions`.

        In a search they are those of the space's region network on small patches.
        """
        return self.patterns

    def features(self) -> list[Float[Array, "n h w channels"]]:
        """The images after each cell of the network.

        Raises:
            InputError: the network does not expose them.
        """
        raise InputError("a plain model has no cells: features need a search space")

    @cached_property
    def feature_gradients(self) -> list[tuple[Array, Array]]:
        """Random cotangents of the features, pulled back through each cell; `feature_gradients`.

        Raises:
            InputError: the network does not expose its features.
        """
        return feature_gradients(self.features, self.key)

    def normalized_features(
        self, params: PyTree, x: Any
    ) -> tuple[Float[Array, "n h w channels"], Float[Array, " layers"]]:
        """The images after the last cell, and the logarithms of their normalization constants.

        Raises:
            InputError: the network does not expose them.
        """
        raise InputError("a plain model does not expose its variances: zen needs a search space")

    def logits_without_normalization(self, params: PyTree, x: Any) -> Float[Array, "n classes"]:
        """The logits; in a search, with normalization layers replaced by the identity."""
        return self.logits(params, x)

    def logits_once(self, params: PyTree, x: Any) -> Float[Array, "n classes"]:
        """`logits` for a few passes; in a search, a form that compiles faster and runs slower."""
        return self.logits(params, x)

    def logits_by_jax(self, params: PyTree, x: Any) -> Float[Array, "n classes"]:
        """`logits` that can be differentiated twice and are fast for a single sample."""
        return self.logits(params, x)

    @cached_property
    def gradient(self) -> PyTree:
        """The gradient of the mean cross-entropy by `params`."""
        require_weights(self.params, self.is_kernel)
        return loss_gradient(self.params, self.logits_once, self.x, self.labels)

    @cached_property
    def input_jacobian(self) -> tuple[Float[Array, "n inputs"], Float[Array, "n classes"]]:
        """The gradient of the summed outputs by each sample, and the logits."""
        return input_jacobian(partial(self.logits_once, self.params), self.x)

    @cached_property
    def sample_gradients(self) -> SampleGradients:
        """Statistics over samples of the gradients of their own cross-entropy by `params`."""
        return sample_gradients(
            self.logits_by_jax, self.params, self.x, self.labels, select=self.is_kernel
        )

    @cached_property
    def flow(self) -> Flow:
        """The terms of synflow and log-synflow, at positive weights, for one image of ones."""
        ones = jax.tree.map(lambda leaf: jnp.ones((1, *leaf.shape[1:]), leaf.dtype), self.x)
        return positive_flow(
            self.logits_without_normalization, self.params, ones, select=self.is_kernel
        )

    @property
    def is_stacked(self) -> Select:
        """Whether the parameter at a path stacks several layers along its first axis."""
        return lambda path: False

    @property
    def is_kernel(self) -> Select:
        """Whether gradient metrics use the parameter at a path."""
        return self._select

    def _require(self, name: str, what: str) -> Any:
        if self._given[name] is None:
            raise InputError(f"this metric needs {what}: give {name}=")
        return self._given[name]
