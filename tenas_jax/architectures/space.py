"""The search space protocol, which every search, metric and command works with."""

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
    """One independent decision of an architecture: its cell type and its choices."""

    cell: int
    choices: Sequence[Choice]


class Costs(NamedTuple):
    """Numbers of parameters and of multiply-adds for one image."""

    parameters: Any  # an int, or an integer array with the leading axes of the masks
    flops: Any


@dataclass(frozen=True)
class ProxySize:
    """Size of the proxy network that metrics are measured on.

    Args:
        num_classes: outputs of the classifier.
        channels: of the first cells; None: the space's default.
        cells: number of cells (in NAS-Bench-201 per stage); None: the space's default.
        initializer: name of the kernels' initializer; `default`: the space's own.
        single_path: every mask keeps at most one operator per edge. Spaces with a network for
            this case compute only that operator.
        rolled: prefer a network that compiles in a fraction of the time but runs slower in some
            spaces.
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

    A supernet or an architecture is a boolean mask of shape `shape`. It says which operators are
    kept on each edge of each cell type. `tenas_jax.CellSpace` and `tenas_jax.ChoiceSpace`
    implement this protocol.
    """

    @property
    def name(self) -> str:
        """The name used in files and messages."""

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
        """Image sides must be multiples of this."""

    @property
    def has_single_paths(self) -> bool:
        """Whether `supernet` has a faster network for masks with at most one operator per edge."""

    def op_names(self, edge: int) -> tuple[str, ...]:
        """Names of the operators of an edge, possibly fewer than the mask's last axis holds."""

    def initial_mask(self) -> Mask:
        """The mask of the supernet that a search starts from."""

    def decisions(self) -> list[Decision]:
        """The independent decisions that define an architecture."""

    def groups(self, mask: Mask, prune_number: int) -> list[Group]:
        """The groups that the next step prunes; empty once a single path is left."""

    def to_string(self, mask: Mask) -> str:
        """The notation of an architecture; raises `InputError` if the mask is not a single path."""

    def from_string(self, text: str) -> Mask:
        """The mask of an architecture; raises `InputError` if the text is not one."""

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like the notation of this space."""

    def connected(self, mask: Bool[Array | np.ndarray, "cell edge op"]) -> Bit:
        """Whether the input reaches the output of the network; the mask may be traced."""

    def on_paths(self, mask: Mask) -> Mask:
        """The operators that lie on a path from an input to an output."""

    def supernet(self, size: ProxySize, layout: Any) -> Any:
        """The Flax module that metrics are measured on; its inputs are `(images, mask)`."""

    def region_network(self, size: ProxySize, layout: Any) -> Any:
        """The Flax module for linear regions, called like `supernet`; or None."""

    @property
    def network(self) -> Callable[..., Any]:
        """A function of `(mask, *, num_classes, ...)` that returns the trainable Flax module."""

    def costs(self, masks: Bool[np.ndarray, "*batch cell edge op"]) -> Costs:
        """Parameters and FLOPs of the network of each mask."""


def require_mask(space: Any, mask: Any) -> None:
    """Check the shape of a mask.

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
    """Check the trailing shape of an array of masks.

    Args:
        space: the search space.
        masks: an array whose last axes are those of a mask.

    Raises:
        InputError: they are not `space.shape`.
    """
    if masks.shape[-3:] != space.shape:
        raise InputError(f"masks of shape {masks.shape} do not end in {space.shape}")


def place(space: SearchSpace, cell: int, edge: int, op: int) -> dict[str, Any]:
    """An operator of a mask as files store it: by the names of its cell type and operator."""
    return {"cell": space.cell_types[cell], "edge": int(edge), "op": space.op_names(edge)[op]}


def index(space: SearchSpace, place: Mapping[str, Any]) -> tuple[int, int, int]:
    """The inverse of `place`: indices into a mask."""
    edge = place["edge"]
    return (
        space.cell_types.index(place["cell"]),
        edge,
        space.op_names(edge).index(place["op"]),
    )
