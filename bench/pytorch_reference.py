"""A PyTorch implementation of TE-NAS's measurements, written for this project as a baseline.

The networks are those of the paper's code. Parameters have the names of its state dictionaries
without `_ops`, so that one set of weights works for these networks, the original's own classes and,
through `state_dict`, this library's. Batch normalization has no running statistics, which train
mode never reads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.spaces import DARTS, NAS_BENCH_201

Mask = Bool[np.ndarray, "cell edge op"]


def batch_norm(features: int) -> nn.BatchNorm2d:
    """Batch normalization by the statistics of the batch."""
    return nn.BatchNorm2d(features, track_running_stats=False)


def conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the image size, up to its stride."""
    padding = kernel_size // 2
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch normalization."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        layers = nn.ReLU(), conv(inputs, outputs, kernel_size, stride), batch_norm(outputs)
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The images after the operator."""
        return self.op(x)


class SeparableConv(nn.Module):
    """ReLU, depthwise convolution, pointwise convolution, batch normalization."""

    def __init__(self, features: int, kernel_size: int, stride: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        depthwise = nn.Conv2d(
            features, features, kernel_size, stride, padding, dilation, features, bias=False
        )
        pointwise = conv(features, features, 1)
        self.op = nn.Sequential(nn.ReLU(), depthwise, pointwise, batch_norm(features))

    def forward(self, x: Tensor) -> Tensor:
        """The images after the operator."""
        return self.op(x)


class TwiceSeparableConv(nn.Module):
    """Two separable convolutions, the stride in the first."""

    def __init__(self, features: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.op_a = SeparableConv(features, kernel_size, stride, dilation=1)
        self.op_b = SeparableConv(features, kernel_size, 1, dilation=1)

    def forward(self, x: Tensor) -> Tensor:
        """The images after the operator."""
        return self.op_b(self.op_a(x))


class FactorizedReduction(nn.Module):
    """ReLU, two 1 x 1 convolutions of stride 2, one shifted by a pixel, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        halves = outputs // 2, outputs - outputs // 2
        self.convs = nn.ModuleList(conv(inputs, half, 1, stride=2) for half in halves)
        self.bn = batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The images, halved."""
        x = self.relu(x)
        further = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        halves = self.convs[0](x), self.convs[1](further)
        return self.bn(torch.cat(halves, 1))


def operator(name: str, features: int, stride: int) -> nn.Module:
    """Make a candidate operator by name."""
    identity = nn.Identity() if stride == 1 else FactorizedReduction(features, features)
    make: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,  # always pruned
        "skip_connect": lambda: identity,
        "nor_conv_1x1": lambda: ReLUConvBN(features, features, 1, stride),
        "nor_conv_3x3": lambda: ReLUConvBN(features, features, 3, stride),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        "max_pool_3x3": lambda: nn.MaxPool2d(3, stride, 1),
        "sep_conv_3x3": lambda: TwiceSeparableConv(features, 3, stride),
        "sep_conv_5x5": lambda: TwiceSeparableConv(features, 5, stride),
        "dil_conv_3x3": lambda: SeparableConv(features, 3, stride, dilation=2),
        "dil_conv_5x5": lambda: SeparableConv(features, 5, stride, dilation=2),
    }
    return make[name]()


class Edge(nn.ModuleList):
    """The mean of the operators kept on an edge; zero if none is kept."""

    def __init__(self, space: CellSpace, features: int, stride: int) -> None:
        super().__init__(operator(name, features, stride) for name in space.ops)

    def forward(self, x: Tensor, kept: Sequence[bool]) -> Tensor | float:
        """The mean; pruned operators are not run."""
        outputs = [op(x) for op, keep in zip(self, kept, strict=True) if keep]
        return sum(outputs, start=0.0) / max(len(outputs), 1)


class NASBench201Cell(nn.Module):
    """A cell of NAS-Bench-201 with all operators on all edges."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{target}<-{source}": Edge(NAS_BENCH_201, features, stride=1)
                for source, target in NAS_BENCH_201.edges
            }
        )

    def forward(self, x: Tensor, mask: Bool[np.ndarray, "edge op"]) -> Tensor:
        """The last node."""
        return nodes_of(NAS_BENCH_201, self.edges, [x], mask)[-1]


def nodes_of(
    space: CellSpace,
    edges: nn.ModuleDict,
    inputs: Sequence[Tensor],
    mask: Bool[np.ndarray, "edge op"],
) -> list[Tensor]:
    """The values of a cell's nodes, its inputs first."""
    nodes: dict[int, Any] = dict(enumerate(inputs))
    kept = mask.tolist()
    for i, ((source, target), edge) in enumerate(zip(space.edges, edges.values(), strict=True)):
        nodes[target] = nodes.get(target, 0) + edge(nodes[source], kept[i])
    return list(nodes.values())


class ResidualBlock(nn.Module):
    """The block between two stages, which doubles the channels and halves the image size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(inputs, outputs, 3, stride=2)
        self.conv_b = ReLUConvBN(outputs, outputs, 3)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), conv(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The images, halved."""
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class Network(nn.Module):
    """The base of the supernets: a mask, and the layers around the cells.

    Args:
        channels: channels of the stem.
        features: channels of the last cell's output.
        num_classes: outputs of the classifier.
        mask: the operators kept; may be replaced at any time.
    """

    def __init__(self, channels: int, features: int, num_classes: int, mask: Mask) -> None:
        super().__init__()
        self.mask = mask
        self.stem = nn.Sequential(conv(3, channels, 3), batch_norm(channels))
        self.cells = nn.ModuleList()
        self.lastact = nn.Sequential(batch_norm(features), nn.ReLU())
        self.classifier = nn.Linear(features, num_classes)

    def run_cells(self, x: Tensor) -> Tensor:
        """The output of the last cell."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images [n, 3, h, w]."""
        x = self.lastact(self.run_cells(self.stem(images)))
        return self.classifier(x.mean((2, 3)))

    def activations(self, patches: Tensor) -> None:
        """Run the region network, which has no stem and no classifier."""
        self.lastact(self.run_cells(patches))


class NASBench201(Network):
    """The supernet of NAS-Bench-201, with one cell per stage.

    Args:
        mask: the operators kept.
        channels: of the first stage; 3 for the kernel, 1 for the regions.
        num_classes: outputs of the classifier.
        stages: 3 for the kernel, 1 for the regions.
    """

    def __init__(
        self, mask: Mask, channels: int = 3, num_classes: int = 10, stages: int = 3
    ) -> None:
        super().__init__(channels, channels * 2 ** (stages - 1), num_classes, mask)
        self.cells.append(NASBench201Cell(channels))
        for features in (channels * 2**stage for stage in range(1, stages)):
            self.cells.extend([ResidualBlock(features // 2, features), NASBench201Cell(features)])

    def run_cells(self, x: Tensor) -> Tensor:
        """The output of the last cell."""
        for cell in self.cells:
            x = cell(x, self.mask[0]) if isinstance(cell, NASBench201Cell) else cell(x)
        return x


class DARTSCell(nn.Module):
    """A cell of the DARTS space with all operators on all edges."""

    def __init__(self, inputs: tuple[int, int], features: int, *, reduction: bool) -> None:
        super().__init__()
        self.preprocess0 = ReLUConvBN(inputs[0], features, 1)
        self.preprocess1 = ReLUConvBN(inputs[1], features, 1)
        self.edges = nn.ModuleDict(
            {
                f"{target - 2}<-{source}": Edge(
                    DARTS, features, stride=2 if reduction and source < 2 else 1
                )
                for source, target in DARTS.edges
            }
        )

    def forward(self, inputs: Sequence[Tensor], mask: Bool[np.ndarray, "edge op"]) -> Tensor:
        """The intermediate nodes, concatenated."""
        processed = [self.preprocess0(inputs[0]), self.preprocess1(inputs[1])]
        return torch.cat(nodes_of(DARTS, self.edges, processed, mask)[2:], 1)


class DARTSNetwork(Network):
    """The supernet of the DARTS space: a normal cell, then a reduction cell.

    Args:
        mask: the operators kept.
        channels: of the normal cell's nodes and of the stem.
        num_classes: outputs of the classifier.
    """

    def __init__(self, mask: Mask, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__(channels, 4 * 2 * channels, num_classes, mask)
        self.cells.append(DARTSCell((channels, channels), channels, reduction=False))
        self.cells.append(DARTSCell((channels, 4 * channels), 2 * channels, reduction=True))

    def run_cells(self, x: Tensor) -> Tensor:
        """The output of the last cell."""
        previous, current = x, x
        for cell, mask in zip(self.cells, self.mask, strict=True):
            previous, current = current, cell((previous, current), mask)
        return current


NTK_NETWORKS: dict[str, Callable[[Mask], Network]] = {
    "nas-bench-201": NASBench201,
    "darts": DARTSNetwork,
}
REGION_NETWORKS: dict[str, Callable[[Mask], Network]] = {
    "nas-bench-201": lambda mask: NASBench201(mask, channels=1, stages=1),
    "darts": DARTSNetwork,
}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of a kernel: those that the original selects by name."""
    return {name: p for name, p in network.named_parameters() if "weight" in name}


def ntk_loop(forward: Callable[[Tensor], Tensor], network: Network, images: Tensor) -> Tensor:
    """Compute the kernel with one backward pass per sample, like the original's loop.

    Args:
        forward: the network itself, or compiled.
        network: the network, for its weights.
        images: images [n, 3, h, w].

    Returns:
        The kernel [n, n].
    """
    logits = forward(images)
    one = torch.ones_like(logits[:1])
    rows = []
    for i in range(len(images)):
        torch.autograd.backward(logits[i : i + 1], one, retain_graph=True)
        used = [p.grad for p in weights_of(network).values() if p.grad is not None]
        rows.append(torch.cat([gradient.reshape(-1).detach() for gradient in used]))
        network.zero_grad()
        torch.cuda.empty_cache()  # as the original does; without a GPU it does nothing
    jacobian = torch.stack(rows)
    return torch.einsum("nc,mc->nm", jacobian, jacobian)


@torch.no_grad()  # `vjp` differentiates nonetheless; biases need no graph
def ntk_func(network: Network, images: Tensor, chunk_size: int) -> Tensor:
    """Compute the kernel with `torch.func`: `vjp` of the batch, `vmap` over chunks of cotangents.

    Args:
        network: the network.
        images: images [n, 3, h, w].
        chunk_size: cotangents at a time.

    Returns:
        The kernel [n, n].
    """
    weights = {name: p.detach() for name, p in weights_of(network).items()}

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = torch.func.functional_call(network, weights, (images,))
        return logits.sum(1)

    values, pullback = torch.func.vjp(outputs, weights)
    cotangents = torch.eye(len(images), device=images.device, dtype=values.dtype)
    rows = torch.func.vmap(lambda c: pullback(c)[0], chunk_size=chunk_size)(cotangents)
    jacobian = torch.cat([row.flatten(1) for row in rows.values()], 1)
    return jacobian @ jacobian.T


def condition_number(kernel: Tensor) -> float:
    """Largest eigenvalue over the smallest, as in the original."""
    eigenvalues = torch.linalg.eigvalsh(kernel)
    return float(eigenvalues[-1] / eigenvalues[0])


@torch.no_grad()
def activation_patterns(
    network: Network, batches: Sequence[Tensor], copies: int = 1
) -> Float[Tensor, "n neurons"]:
    """Signs of all ReLU outputs, samples of all batches pooled.

    Args:
        network: a region network.
        batches: patches [n, 1, h, w].
        copies: copies of every column; the original registers its hooks again in every repeat.

    Returns:
        0 or 1 in float32.
    """
    found: list[Tensor] = []
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    hooks = [
        relu.register_forward_hook(lambda _, __, output: found.append(output.flatten(1)))
        for relu in relus
        for _ in range(copies)
    ]
    pooled = []
    for batch in batches:
        found.clear()
        network.activations(batch)
        pooled.append(torch.sign(torch.cat(found, 1)))
    for hook in hooks:
        hook.remove()
    return torch.cat(pooled)


@torch.no_grad()
def count_regions(patterns: Float[Tensor, "n neurons"]) -> float:
    """Count distinct rows with the original's products in half precision.

    If A are the patterns, A (1 - A)^T plus its transpose counts the bits in which two samples
    differ. A sample that shares its pattern with m - 1 others contributes 1 / m.

    Args:
        patterns: 0 or 1.

    Returns:
        The number, up to rounding errors of the sum.
    """
    differing = patterns.half() @ (1 - patterns).T.half()
    same = 1 - torch.sign(differing + differing.T)
    return float((1 / same.sum(1).float()).sum())


def state_dict(
    space: CellSpace, params: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, Tensor]:
    """Our parameters under PyTorch's names and in its layouts.

    Args:
        space: the search space.
        params: parameters of the kernel's network by path, with keys joined by `/`.

    Returns:
        A state dictionary for `load_state_dict` of the kernel's network.
    """
    names = NTK_NETWORKS[space.name](space.initial_mask()).state_dict()
    return {name: torch.from_numpy(_parameter(space, params, name)) for name in names}


def _parameter(
    space: CellSpace, params: Mapping[str, Float[np.ndarray, "..."]], name: str
) -> Float[np.ndarray, "..."]:
    if name.startswith("classifier"):
        leaf = "kernel" if name.endswith("weight") else "bias"
        return np.array(params[f"classifier/{leaf}"].T)
    path, edge = location(space, name)
    # The two halves of a factorized reduction have one batch normalization in PyTorch.
    halves = [params[path.replace("half_*", f"half_{i}")][edge] for i in range(1 + ("*" in path))]
    value = np.concatenate(halves)
    return np.array(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)


_AROUND = {
    "stem.0.weight": "stem/kernel",
    "stem.1.weight": "stem/scale",
    "stem.1.bias": "stem/bias",
    "lastact.0.weight": "norm/scale",
    "lastact.0.bias": "norm/bias",
}
_PLAIN = {"1.weight": "kernel", "2.weight": "scale", "2.bias": "bias"}
_SEPARABLE = {
    "1.weight": "depthwise",
    "2.weight": "pointwise",
    "3.weight": "scale",
    "3.bias": "bias",
}


def location(space: CellSpace, name: str) -> tuple[str, int]:
    """The location in our tree of a parameter of a PyTorch network.

    Args:
        space: the search space.
        name: PyTorch's name of the parameter.

    Returns:
        Its path, and its index on the leading axis, that of parallel edges.

    Example:
        >>> location(NAS_BENCH_201, "cells.2.edges.3<-1.3.op.1.weight")
        ('cell_1_0/node_1_nor_conv_3x3/conv/kernel', 1)
    """
    if name in _AROUND:
        return _AROUND[name], 0
    _, index, part, rest = name.split(".", 3)
    cell = int(index)
    if part == "downsample":
        return f"block_{(cell + 1) // 2}/shortcut/kernel", 0
    if part.startswith("conv"):
        return f"block_{(cell + 1) // 2}/{part}/conv/{_PLAIN[rest.removeprefix('op.')]}", 0
    if part.startswith("preprocess"):
        path = f"cells/input_{cell}_{part[-1]}"
        return f"{path}/conv/{_PLAIN[rest.removeprefix('op.')]}", 0
    edge, op, rest = rest.split(".", 2)
    target, source = (int(node) for node in edge.split("<-"))
    if space is DARTS:
        path, target = f"cells/cell_{cell}", target + DARTS.input_nodes
    else:
        path = f"cell_{cell // 2}_0"
    kind = space.ops[int(op)]
    parallel = space.outgoing(source).index(space.edges.index((source, target)))
    return f"{path}/node_{source}_{kind}/{_leaf(kind, rest)}", parallel


def _leaf(kind: str, rest: str) -> str:
    """The path below an operator."""
    *_, module, leaf = rest.split(".")
    if kind.startswith(("sep", "dil")):
        return f"conv_{int(rest.startswith('op_b'))}/{_SEPARABLE[f'{module}.{leaf}']}"
    if kind == "skip_connect":
        half, leaf = (
            ("*", {"weight": "scale", "bias": "bias"}[leaf])
            if module == "bn"
            else (
                module,
                "kernel",
            )
        )
        return f"FactorizedReduction_0/half_{half}/{leaf}"
    return f"conv/{_PLAIN[f'{module}.{leaf}']}"
