"""The parts shared by the macro networks of all cell spaces: trainable networks and costs."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.architectures.space import Costs, Mask
from tenas_jax.errors import InputError
from tenas_jax.networks.costs import architecture_costs
from tenas_jax.networks.discrete import Edge, Network, Stem, genotype_edges


class CellMacro:
    """A macro network of cells; a space adds `supernet` and `region_network`.

    Attributes:
        module: the trainable network.
        published: channels and cells of the published networks, by stem.
        counted: stem, classes and image size at which costs are counted.
        has_auxiliary_head: whether the trainable network has one.
        has_single_paths: whether `supernet` has a faster network for masks with at most one
            operator per edge.
    """

    module: ClassVar[type[Network]]
    published: ClassVar[dict[Stem, tuple[int, int]]]
    counted: ClassVar[tuple[Stem, int, int]] = ("cifar", 10, 32)
    has_auxiliary_head: ClassVar[bool] = False
    has_single_paths: ClassVar[bool] = False

    def supernet(self, space: CellSpace, size: Any, layout: Any) -> Any:
        """The network to measure metrics on."""
        raise NotImplementedError

    def region_network(self, space: CellSpace, size: Any, layout: Any) -> Any:
        """The network to count linear regions on, or None."""
        raise NotImplementedError

    def network(
        self,
        space: CellSpace,
        mask: Mask,
        *,
        num_classes: int,
        channels: int | None = None,
        cells: int | None = None,
        stem: Stem = "cifar",
        auxiliary: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> Network:
        """The network of a genotype, uninitialized.

        Args:
            space: the search space.
            mask: operators kept, one on each edge of the genotype.
            num_classes: outputs of the classifier.
            channels: channels of the nodes of the first cell; None: as published.
            cells: number of cells, per stage in NAS-Bench-201, per module in TransNAS-Bench-101;
                None: as published.
            stem: `cifar`, or in some spaces `imagenet`, which downsamples the images.
            auxiliary: whether to add DARTS's auxiliary head for training; it needs images of
                32 x 32 (CIFAR) or 224 x 224 (ImageNet) pixels.
            dtype: data type of the activations; parameters and logits are float32.

        Raises:
            InputError: there is no such network.
        """
        if auxiliary and not self.has_auxiliary_head:
            raise InputError(f"{space.name} has no auxiliary head: use auxiliary=False")
        if stem not in self.published:
            stems = ", ".join(self.published)
            raise InputError(f"{space.name} has no stem {stem!r}: choose from {stems}")
        published_channels, published_cells = self.published[stem]
        channels = published_channels if channels is None else channels
        cells = published_cells if cells is None else cells
        fewest_channels = 2 if stem == "imagenet" else 1  # the first convolution has half of them
        for name, value, minimum in (
            ("num_classes", num_classes, 1),
            ("channels", channels, fewest_channels),
            ("cells", cells, 1),
        ):
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, not {value}")
        edges = genotype_edges(space, mask)
        return self.module(space, edges, num_classes, channels, cells, stem, auxiliary, dtype)

    def costs(self, space: CellSpace, masks: np.ndarray) -> Costs:
        """Parameters and FLOPs of the published networks."""
        return architecture_costs(space, masks, self._published, self.counted[2])

    def _published(self, space: CellSpace, edges: tuple[tuple[Edge, ...], ...]) -> Network:
        stem, num_classes, _ = self.counted
        size = self.published[stem]
        return self.module(space, edges, num_classes, *size, stem, False, jnp.float32)
