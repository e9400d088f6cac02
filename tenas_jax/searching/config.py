"""The configuration of a search: frozen dataclasses, validated at construction.

The docstring of each field is its help text on the command line.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenas_jax.errors import InputError
from tenas_jax.numerics import MAX_CELLS, MAX_SEED
from tenas_jax.searching.constraints import Constraints, parse
from tenas_jax.searching.ranking import DIFFERENCES

ENGINES = ("chunked", "neural-tangents")
LABELS = ("random", "own")


@dataclass(frozen=True)
class NTKConfig:
    """Trainability: the condition number of the neural tangent kernel."""

    batch_size: int = 72
    """Images per kernel, which is also its number of rows."""
    initializer: str = "default"
    """Initializer of the weights: pytorch, kaiming_normal_fan_in, kaiming_normal_fan_out or
    module:object; default: the space's own."""
    channels: int | None = None
    """Channels of the first cells of the proxy network; None: the space's own."""
    cells: int | None = None
    """Cells of the proxy network (in NAS-Bench-201 per stage); None: the space's own."""
    engine: str = "chunked"
    """How the kernel is computed: chunked or neural-tangents."""
    chunk_size: int | None = None
    """Cotangents per backward pass of the chunked engine; None: by backend and network."""

    def __post_init__(self) -> None:
        # One image has a 1 x 1 kernel, whose condition number is 1 for every network.
        _require_integer("ntk.batch_size", self.batch_size, minimum=2)
        _require_choice("ntk.engine", self.engine, ENGINES)
        if self.chunk_size is not None:
            _require_integer("ntk.chunk_size", self.chunk_size, minimum=1)
        if self.channels is not None:
            _require_integer("ntk.channels", self.channels, minimum=1)
        _require_cells("ntk.cells", self.cells)


@dataclass(frozen=True)
class RegionsConfig:
    """Expressivity: the number of distinct activation patterns, the linear regions."""

    batch_size: int = 1000
    """Patches per forward pass; they share the statistics of batch normalization."""
    batches: int = 3
    """Forward passes whose patterns are pooled into one count."""
    patch_size: int = 3
    """Side of the patches, in pixels."""
    channels: int = 1
    """Channels of the patches and of the cells: 1 (a random one of the image's), or all of them."""
    cells: int | None = None
    """Cells of the region network; None: the space's own."""
    initializer: str = "default"
    """Initializer of the weights: pytorch, kaiming_normal_fan_in, kaiming_normal_fan_out or
    module:object; default is the space's own."""

    def __post_init__(self) -> None:
        _require_integer("regions.batch_size", self.batch_size, minimum=2)
        _require_integer("regions.batches", self.batches, minimum=1)
        _require_integer("regions.patch_size", self.patch_size, minimum=1)
        _require_integer("regions.channels", self.channels, minimum=1)
        _require_cells("regions.cells", self.cells)


@dataclass(frozen=True)
class EvolutionConfig:
    """Regularized evolution (Real et al., 2019)."""

    population: int = 20
    """Size of the population; the oldest are dropped."""
    tournament: int = 5
    """Random architectures per tournament; the best one is mutated."""
    children: int = 10
    """Children per generation, which are measured together."""

    def __post_init__(self) -> None:
        _require_integer("evolution.population", self.population, minimum=2)
        _require_integer("evolution.tournament", self.tournament, minimum=1)
        _require_integer("evolution.children", self.children, minimum=1)
        if max(self.tournament, self.children) > self.population:
            raise InputError(
                f"evolution.tournament {self.tournament} and evolution.children {self.children} "
                f"must be at most evolution.population {self.population}"
            )


@dataclass(frozen=True)
class ShortlistConfig:
    """The strategy shortlist: how the largest architectures are found."""

    by: str = "flops"
    """Measure of size: flops or parameters of the network to be trained."""
    pool: int = 10_000
    """Random architectures from which the largest are taken, if a space is too large to list."""

    def __post_init__(self) -> None:
        _require_choice("shortlist.by", self.by, Constraints._fields)
        _require_integer("shortlist.pool", self.pool, minimum=1)


@dataclass(frozen=True)
class AutoRepeatsConfig:
    """When `--repeats auto` stops measuring."""

    confidence: float = 0.95
    """Operators are measured until each is pruned or kept with this probability; architectures
    until one is the best with this probability."""
    minimum: int = 3
    """Minimum repeats, of every operator in every round or of every architecture."""
    maximum: int = 10
    """Maximum repeats, after which the means decide."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise InputError(
                f"auto_repeats.confidence must be in [0.5, 1), not {self.confidence!r}"
            )
        # A standard error needs two repeats.
        _require_integer("auto_repeats.minimum", self.minimum, minimum=2)
        _require_integer("auto_repeats.maximum", self.maximum, minimum=self.minimum)


@dataclass(frozen=True)
class SearchConfig:
    """Everything that determines the result of a search.

    Raises:
        InputError: a field has a value that cannot be used.

    Example:
        >>> SearchConfig(repeats=5, ntk=NTKConfig(batch_size=32)).ntk.batch_size
        32
        >>> SearchConfig(repeats=0)
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: repeats must be an integer of at least 1, not 0
    """

    space: str = "nas-bench-201"
    """Search space: nas-bench-201, darts, transnas-bench-101 or module:object."""
    data: str = "photos"
    """Image source: photos (offline), npz:PATH, folder:PATH or tfds:NAME."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps its files; None: its own default."""
    images: int = 4096
    """Number of images sampled from the source for all measurements."""
    image_size: int = 32
    """Side of the images, in pixels; images of other sizes are resized."""
    image_channels: int = 3
    """Channels of the images: 3, 1 for gray, or those of npz:PATH."""
    padding: int = 4
    """Width of the black border added before random crops, in pixels."""
    num_classes: int = 10
    """Outputs of the classifier; the kernel differentiates their sum."""
    labels: str = "random"
    """Labels for metrics of a loss: random, or own for those of the data (y of npz:PATH, the
    folders of folder:PATH, the classes of tfds:NAME)."""
    seed: int = 0
    """Seed of the weights and of the choice of images."""
    metrics: str = "kappa,regions"
    """Metrics to measure (see tenas list metrics) or module:object, separated by commas. A minus
    reverses a metric: regions,-snip looks for many regions and low SNIP (write --metrics=-snip if
    it comes first). all: every metric."""
    combination: str = "sum"
    """How ranks give the importance: sum, log_sum (sum of their logarithms), min or max; the name
    of a metric for its rank alone; or module:object."""
    strategy: str = "prune"
    """prune (TE-NAS); shortlist, random, evolution or exhaustive, which measure whole
    architectures; or module:object."""
    budget: int = 100
    """Number of architectures for the strategies shortlist, random and evolution."""
    flops: str | None = None
    """Limits on the FLOPs of the network to be trained, such as 50M:120M or :600M; for all
    strategies but prune."""
    parameters: str | None = None
    """Limits on the parameters of the network to be trained, such as :1.3M."""
    repeats: int | Literal["auto"] = 3
    """Draws of weights and images to average over; auto: until the decision is certain enough."""
    prune_number: int = 1
    """Operators pruned per edge and round."""
    difference: str = "relative"
    """Change of a metric: relative, or log for the difference of logarithms."""
    decimals: int | None = 3
    """Decimals to which differences are rounded; None: no rounding."""
    ntk: NTKConfig = field(default_factory=NTKConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    shortlist: ShortlistConfig = field(default_factory=ShortlistConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    auto_repeats: AutoRepeatsConfig = field(default_factory=AutoRepeatsConfig)

    def __post_init__(self) -> None:
        _require_choice("labels", self.labels, LABELS)
        _require_choice("difference", self.difference, tuple(DIFFERENCES))
        if self.repeats == "auto" and self.strategy == "evolution":
            raise InputError("repeats auto is not for the strategy evolution: give a number")
        if self.constraints != Constraints() and self.strategy == "prune":
            raise InputError(
                "flops and parameters are limits for whole architectures, which prune cannot keep: "
                "choose another strategy, such as shortlist"
            )
        if self.repeats != "auto":
            _require_integer("repeats", self.repeats, minimum=1)
        for name, minimum in _SMALLEST.items():
            _require_integer(name, getattr(self, name), minimum=minimum)
        if self.seed > MAX_SEED:
            raise InputError(f"seed must be at most {MAX_SEED}, not {self.seed}")
        if self.decimals is not None:
            _require_integer("decimals", self.decimals, minimum=0)
        if self.images < self.ntk.batch_size:
            raise InputError(
                f"images {self.images} is less than ntk.batch_size {self.ntk.batch_size}: "
                "a kernel needs distinct images, so raise the one or lower the other"
            )
        if self.regions.channels not in (1, self.image_channels):
            raise InputError(
                f"regions.channels must be 1 or image_channels {self.image_channels}, not "
                f"{self.regions.channels}"
            )
        if self.regions.patch_size > self.image_size:
            raise InputError(
                f"regions.patch_size {self.regions.patch_size} is larger than image_size "
                f"{self.image_size}: patches are cropped from the images"
            )

    @property
    def constraints(self) -> Constraints:
        """The limits on FLOPs and parameters.

        Example:
            >>> SearchConfig(strategy="random", flops=":120M").constraints.flops.high
            120000000.0
        """
        return Constraints(*(parse(name, getattr(self, name)) for name in Constraints._fields))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values.

        Returns:
            Nested dictionaries of the fields.

        Example:
            >>> SearchConfig().to_dict()["ntk"]["batch_size"]
            72
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SearchConfig":
        """The inverse of `to_dict`; missing fields get their defaults.

        Args:
            values: nested dictionaries of the fields.

        Returns:
            The validated configuration.

        Raises:
            InputError: a field is unknown or cannot be used.

        Example:
            >>> SearchConfig.from_dict({"ntk": {"batch_size": 32}}).ntk
            NTKConfig(batch_size=32, initializer='default', channels=None, cells=None, \
engine='chunked', chunk_size=None)
        """
        groups = {
            name: kind(**_known(f"{name}.", kind, values.get(name, {})))
            for name, kind in GROUPS.items()
        }
        return cls(**{**_known("", cls, values), **groups})


def differences(left: SearchConfig, right: SearchConfig) -> tuple[str, ...]:
    """The names of the fields in which two configurations differ.

    Args:
        left: one configuration.
        right: another.

    Returns:
        Dotted names, in the order of the fields.

    Example:
        >>> differences(SearchConfig(), SearchConfig(seed=1, ntk=NTKConfig(batch_size=32)))
        ('seed', 'ntk.batch_size')
    """
    ours, theirs = _flatten(left.to_dict()), _flatten(right.to_dict())
    return tuple(name for name in ours if ours[name] != theirs[name])


_SMALLEST = {
    "images": 2,
    "image_size": 4,  # two reductions leave a quarter of it
    "image_channels": 1,
    "padding": 0,
    "num_classes": 1,
    "seed": 0,
    "budget": 1,
    "prune_number": 1,
}
GROUPS: dict[str, type] = {
    "ntk": NTKConfig,
    "regions": RegionsConfig,
    "shortlist": ShortlistConfig,
    "evolution": EvolutionConfig,
    "auto_repeats": AutoRepeatsConfig,
}


def _require_integer(name: str, value: object, *, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InputError(f"{name} must be an integer of at least {minimum}, not {value!r}")


def _require_cells(name: str, value: int | None) -> None:
    if value is not None:
        _require_integer(name, value, minimum=1)
        if value > MAX_CELLS:
            raise InputError(f"{name} must be at most {MAX_CELLS}, not {value}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


def _known(prefix: str, kind: type, values: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(set(values) - {each.name for each in dataclasses.fields(kind)})
    if unknown:
        names = ", ".join(prefix + name for name in unknown)
        raise InputError(f"a configuration has no field {names}: it is of another version")
    return values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat.update(_flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value})
    return flat
