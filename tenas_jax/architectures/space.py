"""What a search space is: the protocol that every search, metric and command works with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool

from tenas_jax.errors import InputError

Mask = Bool[np.ndarray, "cell edge op"]
Masks = Bool[np.ndarray, "architecture cell edge op"]
Bit = bool | np.bool | Bool[Array, ""]
Choice = tuple[tuple[int, int], ...]
"""(edge, op) pairs that are kept together."""


class Group(NamedTuple):
    """Edges of one cell type whose operators compete, and how many of them to prune."""

    cell: int
    edges: tuple[int, ...]
    prune: int


class Decision(NamedTuple):
    """One independent decision of an architecture: its cell type and what may be chosen there."""

    cell: int
    choices: Sequence[Choice]


class Costs(NamedTuple):
    """Number of parameters, and of multiply-adds for one image."""

    parameters: Any  # an int, or an integer array with the leading axes of the masks
    flops: Any


@dataclass(frozen=True)
class ProxySize:
    """The size of a proxy network, which metrics are measured on.

    Args:
        num_classes: outputs of the classifier.
        channels: of the first cells; None: the space's default.
        cells: number of cells, in NAS-Bench-201 of each stage; None: the space's default.
        initializer: name of the kernels' initializer; `default`: the space's own.
        single_path: promises that every mask keeps at most one operator per edge, so that only
            this one is computed, in spaces that have a network for it.
        rolled: whether to prefer a network that compiles in a fraction of the time, and in some
            spaces runs slower.
    """

    num_classes: int = 10
    channels: int | None = None
    cells: int | None = None
    initializer: str = "default"
    single_path: bool = False
    rolled: bool = False


@runtime_checkable
class SearchSpace(Protocol):
    """A search space: its masks, their notation and their networks.

    A supernet or an architecture is a boolean mask of shape `shape`: which operators are kept on
    which edge of which cell type. `tenas_jax.CellSpace` and `tenas_jax.ChoiceSpace` are two kinds.
    """

    @property
    def name(self) -> str:
        """The name in files and on the screen."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a mask: (cell types, edges, operators)."""

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names along the first axis of a mask."""

    @property
    def edge_names(self) -> tuple[str, ...]:
        """Names along the second axis of a mask."""

    @property
    def image_multiple(self) -> int:
        """The sides of the images must be multiples of this."""

    @property
    def has_single_paths(self) -> bool:
        """Whether `supernet` has a faster network for masks with at most one operator per edge."""

    def op_names(self, edge: int) -> tuple[str, ...]:
        """Names of the operators of an edge; there may be fewer than `shape` has."""

    def initial_mask(self) -> Mask:
        """The supernet that a search starts from."""

    def decisions(self) -> list[Decision]:
        """The independent decisions that together make an architecture."""

    def groups(self, mask: Mask, prune_number: int) -> list[Group]:
        """Where the next pruning step prunes; none where a single path is left."""

    def to_string(self, mask: Mask) -> str:
        """The notation of an architecture; raises `InputError` if the mask is not a single path."""

    def from_string(self, text: str) -> Mask:
        """The mask of an architecture; raises `InputError` for text that is none."""

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like the notation of this space."""

    def connected(self, mask: Bool[Array | np.ndarray, "cell edge op"]) -> Bit:
        """Whether any image reaches the output of the network; the mask may be traced."""

    def on_paths(self, mask: Mask) -> Mask:
        """The operators that lie on a path from an input to an output."""

    def supernet(self, size: ProxySize, layout: Any) -> Any:
        """The Flax module that metrics are measured on, called with `(images, mask)`."""

    def region_network(self, size: ProxySize, layout: Any) -> Any:
        """The Flax module that linear regions are counted on, called like `supernet`, or None."""

    @property
    def network(self) -> Callable[..., Any]:
        """Makes the Flax module of an architecture, of `(mask, *, num_classes, ...)`."""

    def costs(self, masks: Bool[np.ndarray, "*batch cell edge op"]) -> Costs:
        """Parameters and FLOPs of the networks of many masks."""


def require_mask(space: Any, mask: Any) -> None:
    """Refuse a mask of another shape.

    Args:
        space: the search space.
        mask: an array, which may be traced.

    Raises:
        InputError: its shape is not `space.shape`.
    """
    if tuple(mask.shape) != space.shape:
        raise InputError(
            f"the mask has shape {tuple(mask.shape)}: {space.name} needs {space.shape} "
            "(cell types, edges, operators)"
        )


def require_masks(space: Any, masks: Any) -> None:
    """Refuse an array of masks of another shape.

    Args:
        space: the search space.
        masks: an array, whose last axes are those of a mask.

    Raises:
        InputError: they are not `space.shape`.
    """
    if masks.shape[-3:] != space.shape:
        raise InputError(f"masks of shape {masks.shape} do not end in {space.shape}")


def place(space: SearchSpace, cell: int, edge: int, op: int) -> dict[str, Any]:
    """An operator of a mask as it is written in files, by the names of cell type and operator."""
    return {"cell": space.cell_types[cell], "edge": int(edge), "op": space.op_names(edge)[op]}


def index(space: SearchSpace, place: Mapping[str, Any]) -> tuple[int, int, int]:
    """The inverse of `place`: indices into a mask."""
    edge = place["edge"]
    return (
        space.cell_types.index(place["cell"]),
        edge,
        space.op_names(edge).index(place["op"]),
    )
