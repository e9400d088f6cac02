"""Check that a search fits into memory, before anything is allocated.

The sizes are lower bounds: a rejected search cannot work; an accepted one may still be too large.
"""

from tenas_jax.architectures.space import SearchSpace
from tenas_jax.errors import quantity
from tenas_jax.host.memory import require_memory
from tenas_jax.searching.config import SearchConfig

FLOAT = 4  # bytes
ROW = 500  # bytes of a pending row: its mask, its names, its line in the trace


def require_fits(config: SearchConfig, space: SearchSpace) -> None:
    """Reject a search that cannot fit into memory.

    Args:
        config: configuration of the search.
        space: its search space.

    Raises:
        InputError: something is too large; the message names the field.
    """
    side, batch, ntk, regions = config.image_size, config.ntk.batch_size, config.ntk, config.regions
    if config.data == "photos":  # other sources may have fewer images
        size = config.images * side**2 * config.image_channels
        require_memory(size, f"images {config.images} of {side} x {side}: use fewer; they")
    padded = batch * (side + 2 * config.padding) ** 2 * config.image_channels
    require_memory(padded, f"padding {config.padding}: use less; {batch} padded images")
    channels = max(config.image_channels, ntk.channels or 1)
    activations = FLOAT * batch * side**2 * channels
    require_memory(
        activations,
        f"ntk.batch_size {batch} with image_size {side} and {channels} channels: use less; the "
        "activations of a layer",
    )
    weights = FLOAT * channels * max(channels, config.num_classes)
    require_memory(
        weights + FLOAT * batch * config.num_classes,
        f"num_classes {config.num_classes} with {channels} channels: use fewer; the weights",
    )
    patches = FLOAT * regions.batch_size * regions.patch_size**2 * regions.channels
    require_memory(patches, f"regions.batch_size {regions.batch_size}: use less; its patches")
    require_memory(
        config.evolution.population * ROW,
        f"evolution.population {config.evolution.population}: use less; the architectures",
    )
    measured = int(space.initial_mask().sum()) if config.strategy == "prune" else config.budget
    require_rows(measured, 1 if config.repeats == "auto" else config.repeats)


def require_rows(count: int, repeats: int) -> None:
    """Reject more measurements than fit into memory.

    Args:
        count: number of operators or architectures.
        repeats: repeats of each.

    Raises:
        InputError: there are too many measurements.
    """
    require_memory(
        count * repeats * ROW,
        f"{count} measurements (budget, sample, operators) in {quantity(repeats, 'repeat')}: "
        "use fewer; they",
    )
