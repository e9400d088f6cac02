"""The registry of metrics for architectures: one function and one entry per metric."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jaxtyping import Array

from tenas_jax.architectures.space import Masks, SearchSpace
from tenas_jax.errors import InputError
from tenas_jax.metrics import proxies, saliencies, samples
from tenas_jax.metrics.draw import Draw
from tenas_jax.metrics.features import az_expressivity, az_progressivity, az_trainability, meco, zen
from tenas_jax.metrics.flops import flops
from tenas_jax.metrics.input_jacobian import epe_nas, jacov
from tenas_jax.metrics.ntk import condition_number
from tenas_jax.metrics.regions import count_linear_regions
from tenas_jax.resolve import require_names, resolve

# Names of the other fields of a measurement.
_RESERVED = ("cell", "crc32", "edge", "genotype", "importance", "op", "repeat", "round")


@dataclass(frozen=True)
class Metric:
    """A metric of an architecture.

    Args:
        name: its name on the command line and in files.
        direction: +1 if higher is better, -1 if lower is better.
        measure: a pure, traceable function of a `Draw` that returns a scalar.
        label: its name in plots and tables; empty: `name`.
        source: its publication.
        positive: whether all values are positive, as needed for logarithms; 0 is allowed if there
            is nothing to measure.
        shares: the intermediate result that it shares with other metrics, which are then measured
            by the same program: `kernel`, `patterns`, `gradient`, `flow`, `sample gradients`,
            `input_jacobian`, `features`, or a word of your own; empty: it has its own program.
        count: for a metric that does not depend on a draw, a function of `(space, masks)` that
            returns an exact number per mask; it runs on the host, instead of `measure`.
        minimum: the smallest possible value; a file with a smaller one is damaged.

    Raises:
        InputError: the name or the direction is invalid, or there is no function.

    Example:
        >>> Metric("largest", +1, lambda draw: jnp.linalg.eigvalsh(draw.kernel)[-1]).label
        'largest'
        >>> Metric("a,b", +1, lambda draw: 0.0)
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: metric 'a,b': use letters, digits, '_', '.' and '-' only
    """

    name: str
    direction: int
    measure: Callable[[Draw], Any] | None = None
    label: str = ""
    source: str = ""
    positive: bool = False
    shares: str = ""
    count: Callable[[SearchSpace, Masks], Any] | None = None
    minimum: float = -math.inf

    def __post_init__(self) -> None:
        require_names("metric", [self.name])
        if self.name.startswith("-"):
            raise InputError(f"metric {self.name!r}: a minus before a name reverses it, drop it")
        if self.name in _RESERVED:
            raise InputError(f"metric {self.name!r}: files use this name, choose another")
        if self.direction not in (-1, 1):
            raise InputError(
                f"metric {self.name!r} has direction {self.direction!r}: give +1 if higher is "
                "better, -1 if lower is better"
            )
        if not (callable(self.measure) or callable(self.count)):
            raise InputError(f"metric {self.name!r} has no function: give measure= or count=")
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "minimum", max(self.minimum, 0.0 if self.positive else -math.inf))

    def __neg__(self) -> "Metric":
        """The same metric with the opposite direction: equal values, reversed ranks.

        Example:
            >>> SNIP = get_metric("snip")
            >>> SNIP.direction, (-SNIP).direction, (-SNIP).name
            (1, -1, 'snip')
        """
        return replace(self, direction=-self.direction)


def _zico(draw: Draw) -> Array:
    half = len(draw.labels) // 2

    def halves(x: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[: 2 * half].reshape(2, half, *leaf.shape[1:]), x)

    return proxies.zico(
        draw.logits_once,
        draw.params,
        halves(draw.x),
        halves(draw.labels),
        select=draw.is_kernel,
        stacked=draw.is_stacked,
    )


def _l2_norm(draw: Draw) -> Array:
    params = draw.params
    if draw.mask is not None:  # pruned operators still have weights
        params = saliencies.connected_weights(
            params, draw.gradient, draw.is_kernel, draw.is_stacked
        )
    return saliencies.l2_norm(params, select=draw.is_kernel, stacked=draw.is_stacked)


def _epe_nas(draw: Draw) -> Array:
    jacobian, logits = draw.input_jacobian
    return epe_nas(jacobian, draw.labels, num_classes=logits.shape[1])


def _zen(draw: Draw) -> Array:
    key = jax.random.fold_in(draw.key, 0)
    return zen(draw.normalized_features, draw.params, draw.x, key, select=draw.is_kernel)


def _flops(draw: Draw) -> int:
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), draw.x)
    return flops(draw.logits, draw.params, one)


KAPPA = Metric(
    "kappa",
    -1,
    lambda draw: condition_number(draw.kernel),
    "NTK condition number",
    "Chen et al. 2021, eq. 3",
    positive=True,
    shares="kernel",
    minimum=1.0,
)
REGIONS = Metric(
    "regions",
    +1,
    lambda draw: count_linear_regions(draw.region_patterns),
    "linear regions",
    "Chen et al. 2021, eq. 4",
    positive=True,
    minimum=1.0,
)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        KAPPA,
        REGIONS,
        Metric(
            "ntk_trace",
            +1,
            lambda draw: proxies.ntk_trace(draw.kernel),
            "NTK trace",
            "Shu et al. 2022, NASI",
            positive=True,
            shares="kernel",
        ),
        Metric(
            "ntk_mean_eigenvalue",
            +1,
            lambda draw: proxies.ntk_mean_eigenvalue(draw.kernel),
            "mean NTK eigenvalue",
            "Shu et al. 2022, NASI",
            positive=True,
            shares="kernel",
        ),
        Metric(
            "naswot",
            +1,
            lambda draw: proxies.naswot(draw.patterns, counts=draw.neuron_counts),
            "NASWOT",
            "Mellor et al. 2021",
            shares="patterns",
        ),
        Metric(
            "swap",
            +1,
            lambda draw: proxies.swap(draw.patterns),
            "SWAP",
            "Peng et al. 2024",
            positive=True,
            shares="patterns",
        ),
        Metric(
            "synflow",
            +1,
            lambda draw: proxies.flow_of_weights(draw.flow, draw.is_kernel),
            "log synflow",
            "Tanaka et al. 2020",
            shares="flow",
        ),
        Metric(
            "log_synflow",
            +1,
            lambda draw: saliencies.log_flow(draw.flow, draw.is_kernel),
            "LogSynflow",
            "Cavagnero et al. 2023, FreeREA",
            positive=True,
            shares="flow",
        ),
        Metric(
            "grad_norm",
            +1,
            lambda draw: proxies.sum_of_norms(draw.gradient, draw.is_kernel, draw.is_stacked),
            "gradient norm",
            "Abdelfattah et al. 2021",
            positive=True,
            shares="gradient",
        ),
        Metric(
            "snip",
            +1,
            lambda draw: proxies.saliency(draw.params, draw.gradient, draw.is_kernel),
            "SNIP",
            "Lee et al. 2019; Abdelfattah et al. 2021",
            positive=True,
            shares="gradient",
        ),
        Metric(
            "plain",
            +1,
            lambda draw: saliencies.signed_saliency(draw.params, draw.gradient, draw.is_kernel),
            "plain",
            "Mozer & Smolensky 1989; Abdelfattah et al. 2021",
            shares="gradient",
        ),
        Metric(
            "l2_norm",
            +1,
            _l2_norm,
            "L2 norm",
            "Abdelfattah et al. 2021",
            positive=True,
            shares="gradient",
        ),
        Metric(
            "grasp",
            +1,
            lambda draw: saliencies.grasp(
                draw.logits_by_jax, draw.params, draw.x, draw.labels, select=draw.is_kernel
            ),
            "GraSP",
            "Wang et al. 2020; Abdelfattah et al. 2021",
        ),
        Metric(
            "grad_sign",
            +1,
            lambda draw: samples.agreement(draw.sample_gradients),
            "GradSign",
            "Zhang & Jia 2022",
            positive=True,
            shares="sample gradients",
        ),
        Metric(
            "fisher",
            +1,
            lambda draw: samples.information_of_weights(
                draw.params, draw.sample_gradients, draw.is_kernel
            ),
            "Fisher",
            "Theis et al. 2018; Abdelfattah et al. 2021",
            positive=True,
            shares="sample gradients",
        ),
        Metric(
            "vkdnw",
            +1,
            lambda draw: samples.vkdnw(
                draw.logits_by_jax,
                draw.params,
                draw.x,
                select=draw.is_kernel,
                stacked=draw.is_stacked,
            ),
            "VKDNW",
            "Tybl & Neumann 2025",
            positive=True,
        ),
        Metric("zico", +1, _zico, "ZiCo", "Li et al. 2023"),
        Metric(
            "jacov",
            +1,
            lambda draw: jacov(draw.input_jacobian[0]),
            "Jacobian covariance",
            "Mellor et al. 2020, version 1",
            shares="input_jacobian",
        ),
        Metric(
            "epe_nas",
            +1,
            _epe_nas,
            "EPE-NAS",
            "Lopes et al. 2021",
            positive=True,
            shares="input_jacobian",
        ),
        Metric(
            "az_expressivity",
            +1,
            lambda draw: az_expressivity(draw.features()),
            "expressivity (AZ-NAS)",
            "Lee and Ham 2024",
            shares="features",
        ),
        Metric(
            "az_progressivity",
            +1,
            lambda draw: az_progressivity(draw.features()),
            "progressivity (AZ-NAS)",
            "Lee and Ham 2024",
            shares="features",
        ),
        Metric(
            "az_trainability",
            +1,
            lambda draw: az_trainability(draw.feature_gradients),
            "trainability (AZ-NAS)",
            "Lee and Ham 2024",
        ),
        Metric(
            "meco",
            +1,
            lambda draw: meco(draw.features()),
            "MeCo",
            "Jiang et al. 2023",
            positive=True,
            shares="features",
        ),
        Metric("zen", +1, _zen, "Zen-score", "Lin et al. 2021"),
        Metric(
            "parameters",
            +1,
            lambda draw: proxies.parameters(draw.params),
            "parameters",
            "trivial",
            positive=True,
            count=lambda space, masks: space.costs(masks).parameters,
        ),
        Metric(
            "flops",
            +1,
            _flops,
            "FLOPs",
            "trivial",
            positive=True,
            count=lambda space, masks: space.costs(masks).flops,
        ),
    )
}


ALL = "all"  # stands for the names of all metrics
# The defaults of `tenas score`, which share most of their computation; each of the others takes as
# long as many of these.
USUAL = (
    "kappa,regions,ntk_trace,ntk_mean_eigenvalue,naswot,swap,synflow,log_synflow,grad_norm,snip,"
    "plain,l2_norm,zico,parameters,flops"
)

# Shared intermediate results, in the order of their programs' compile times.
_SHARED = ("features", "input_jacobian", "patterns", "gradient", "kernel")


def programs(metrics: Sequence[Metric]) -> list[tuple[Metric, ...]]:
    """Group metrics by the program that measures them, in the order of compile time.

    Args:
        metrics: the metrics, without those counted on the host.

    Example:
        >>> chosen = get_metrics("kappa,regions,ntk_trace")
        >>> [[metric.name for metric in group] for group in programs(chosen)]
        [['regions'], ['kappa', 'ntk_trace']]
    """
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.shares or f"metric {metric.name}", []).append(metric)
    order = {name: place for place, name in enumerate(_SHARED, start=1)}
    return [tuple(groups[name]) for name in sorted(groups, key=lambda name: order.get(name, 0))]


def get_metric(name: str) -> Metric:
    """Look up a metric by name.

    Args:
        name: a key of `METRICS`, or `module:object`; a leading minus reverses its direction.

    Raises:
        InputError: there is no such metric.

    Example:
        >>> get_metric("kappa").direction, get_metric("-kappa").direction
        (-1, 1)
        >>> get_metric("kapa")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown metric 'kapa' (did you mean 'kappa'?): choose from ...
    """
    metric = resolve(name.removeprefix("-"), METRICS, Metric, "metric")
    return -metric if name.startswith("-") else metric


def get_metrics(names: str) -> tuple[Metric, ...]:
    """Look up metrics by names separated by commas; `all`: every built-in metric.

    Raises:
        InputError: one does not exist, or two have the same name.

    Example:
        >>> [(metric.name, metric.direction) for metric in get_metrics("regions, -snip")]
        [('regions', 1), ('snip', -1)]
        >>> len(get_metrics("all")) == len(METRICS)
        True
    """
    if names == ALL:
        return tuple(METRICS.values())
    return distinct([get_metric(name.strip()) for name in names.split(",")])


def distinct(metrics: "list[Metric] | tuple[Metric, ...]") -> tuple[Metric, ...]:
    """The metrics as a tuple, after checking that names are unique.

    Raises:
        InputError: there are none, or two have the same name.
    """
    names = [metric.name for metric in metrics]
    if not names:
        raise InputError("no metric: name at least one")
    if len(set(names)) < len(names):
        raise InputError(f"metrics {','.join(names)} name a metric twice: give each of them once")
    return tuple(metrics)
