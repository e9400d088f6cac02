"""A search problem: a configuration and the objects that it names."""

from collections.abc import Sequence
from dataclasses import dataclass

from tenas_jax.architectures.space import ProxySize, SearchSpace
from tenas_jax.errors import InputError
from tenas_jax.metrics.registry import Metric, distinct, get_metrics
from tenas_jax.networks.initializers import DEFAULT, get_initializer
from tenas_jax.resolve import sources_of
from tenas_jax.searching.config import SearchConfig
from tenas_jax.searching.ranking import get_combination
from tenas_jax.searching.sizes import require_fits
from tenas_jax.spaces import get_space


@dataclass(frozen=True)
class Problem:
    """A configuration and the objects that it names.

    Raises:
        InputError: they do not fit together, or do not fit into memory.
    """

    config: SearchConfig
    space: SearchSpace
    metrics: tuple[Metric, ...]

    def __post_init__(self) -> None:
        config, space = self.config, self.space
        get_combination(config.combination, [metric.name for metric in self.metrics])
        signed = [metric.name for metric in self.metrics if not metric.positive]
        if config.difference == "log" and signed:
            raise InputError(
                f"difference log needs positive metrics, not {', '.join(signed)}: choose relative"
            )
        if config.image_size % space.image_multiple:
            raise InputError(
                f"image_size must be a multiple of {space.image_multiple} for {space.name}, not "
                f"{config.image_size}: its network halves the images"
            )
        require_fits(config, space)
        for name in (config.ntk.initializer, config.regions.initializer):
            if name != DEFAULT:
                get_initializer(name)

    @property
    def directions(self) -> dict[str, int]:
        """For each metric +1 if higher is better, -1 if lower is better.

        Example:
            >>> look_up(SearchConfig()).directions
            {'kappa': -1, 'regions': 1}
        """
        return {metric.name: metric.direction for metric in self.metrics}

    @property
    def ntk_size(self) -> ProxySize:
        """The size of the network that metrics are measured on."""
        config = self.config
        return ProxySize(
            config.num_classes, config.ntk.channels, config.ntk.cells, config.ntk.initializer
        )

    @property
    def region_size(self) -> ProxySize:
        """The size of the network that linear regions are counted on."""
        regions = self.config.regions
        return ProxySize(self.config.num_classes, None, regions.cells, regions.initializer)

    @property
    def names(self) -> list[str]:
        """All names in the configuration that may be `module:object`."""
        config = self.config
        return [
            config.space,
            config.strategy,
            config.combination,
            config.ntk.initializer,
            config.regions.initializer,
            *(name.strip().removeprefix("-") for name in config.metrics.split(",")),
        ]

    @property
    def is_named(self) -> bool:
        """Whether the configuration's names resolve to these objects."""
        try:
            return look_up(self.config) == self
        except InputError:
            return False

    @property
    def sources(self) -> dict[str, str] | None:
        """Digests of the source files of these names; None if they are unknown."""
        return sources_of(self.names)


def look_up(
    config: SearchConfig,
    space: SearchSpace | None = None,
    metrics: Sequence[Metric] | None = None,
) -> Problem:
    """Look up the objects that a configuration names.

    Args:
        config: the configuration.
        space: the space, if it is given as an object; None: look up its name.
        metrics: the metrics, if they are given as objects; None: look up their names.

    Raises:
        InputError: a name is unknown, or an object does not fit.

    Example:
        >>> look_up(SearchConfig(space="darts")).space.shape
        (2, 14, 8)
    """
    return Problem(
        config,
        get_space(config.space) if space is None else space,
        get_metrics(config.metrics) if metrics is None else distinct(list(metrics)),
    )
