"""Runs an unmodified clone of VITA-Group/TENAS, patching device calls and removed functions.

On a machine without a GPU `.cuda()` does nothing; `torch.symeig` is `torch.linalg.eigvalsh`;
`a += a.T` adds a copy, as newer PyTorch requires; missing packages that only its data loading needs
are replaced by stubs.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tenas_jax.architectures.cell_space import CellSpace

PRUNED = -1000.0
STAND_INS = ("torchvision", "torchvision.transforms", "torchvision.datasets", "easydict", "tqdm")
NAS_BENCH_201 = {"name": "DARTS-V1", "N": 1, "max_nodes": 4}
DARTS = {
    "name": "DARTS-V1",
    "N": 1,
    "depth": 2,
    "super_type": "nasnet-super",
    "steps": 4,
    "multiplier": 4,
    "stem_multiplier": 1,
}
# prune_tenas.py, lines 340 to 374.
NTK_NETWORKS: Mapping[str, dict[str, Any]] = {
    "nas-bench-201": {**NAS_BENCH_201, "C": 3, "depth": -1, "use_stem": True},
    "darts": {**DARTS, "C": 1, "use_stem": True},
}
REGION_NETWORKS: Mapping[str, dict[str, Any]] = {
    "nas-bench-201": {**NAS_BENCH_201, "C": 1, "depth": 1, "use_stem": False},
    "darts": {**DARTS, "C": 1, "use_stem": False},
}


class Loader:
    """The data loader for the original: repeats the same batch, with a label that it ignores.

    Args:
        batch: images or patches, NCHW.
    """

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return self

    def __next__(self) -> tuple[Tensor, int]:
        return self.batch, 0

    next = __next__  # as Python 2 and old PyTorch have it


class Original:
    """The clone's functions.

    Args:
        clone: folder of the repository.
        device: the device it uses.
    """

    def __init__(self, clone: Path, device: torch.device) -> None:
        self.kernels: list[Tensor] = []
        if device.type == "cpu":
            identity = lambda x, *_, **__: x  # noqa: E731
            torch.Tensor.cuda = identity
            nn.Module.cuda = identity
            torch.cuda.current_device = lambda: 0
        torch.Tensor.__iadd__ = _add_in_place
        torch.symeig = self._symeig
        for name in STAND_INS:
            if name.partition(".")[0] in sys.modules or importlib.util.find_spec(name) is None:
                sys.modules.setdefault(name, MagicMock())
        sys.path[:0] = [str(clone), str(clone / "lib")]
        self.models = importlib.import_module("models")
        self.procedures = importlib.import_module("procedures")

    def _symeig(self, kernel: Tensor) -> tuple[Tensor, None]:
        self.kernels.append(kernel)
        return torch.linalg.eigvalsh(kernel), None

    def config(self, space: CellSpace, networks: Mapping[str, dict[str, Any]]) -> Any:
        """The original's description of a network.

        Args:
            space: the search space.
            networks: `NTK_NETWORKS` or `REGION_NETWORKS`.
        """
        return SimpleNamespace(
            **networks[space.name],
            num_classes=10,
            space=list(space.ops),
            affine=True,
            track_running_stats=True,
        )

    def network(self, config: Any, mask: Bool[np.ndarray, "cell edge op"]) -> nn.Module:
        """A network of the original with PyTorch's default weights.

        Args:
            config: the result of `config`.
            mask: the operators kept.
        """
        network: nn.Module = self.models.get_cell_based_tiny_net(config).cuda().train()
        network.set_alphas(alphas(mask))
        return network

    def condition_numbers(self, networks: Sequence[nn.Module], images: Tensor) -> list[float]:
        """The original's `get_ntk_n` of a batch; also stores the kernels in `kernels`.

        Args:
            networks: the networks, which share weights and images.
            images: images [n, 3, h, w].
        """
        self.kernels.clear()
        numbers: list[float] = self.procedures.get_ntk_n(
            Loader(images), networks, recalbn=0, train_mode=True, num_batch=1
        )
        return numbers

    def region_counter(self, patches: Tensor, batches: int) -> Any:
        """The original's collector of activation patterns.

        Args:
            patches: patches [n, 1, h, w] of every batch.
            batches: number of batches per count.
        """
        counter = self.procedures.Linear_Region_Collector(
            input_size=tuple(patches.shape), sample_batch=batches
        )
        counter.train_loader = counter.loader = Loader(patches)
        return counter


def _add_in_place(a: Tensor, b: Any) -> Tensor:
    overlaps = isinstance(b, Tensor) and a.data_ptr() == b.data_ptr()
    return a.add_(b.clone() if overlaps else b)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a network of the original.

    Args:
        network: a network of the original.
        weights: the result of `bench.pytorch_reference.state_dict`.
    """
    named = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            if not name.startswith("arch"):
                parameter.copy_(weights[name.replace("._ops", "")])


def alphas(mask: Bool[np.ndarray, "cell edge op"]) -> list[Tensor]:
    """The original's architecture parameters of a mask."""
    return [torch.from_numpy(np.where(cell, 0.0, PRUNED)).float() for cell in mask]
