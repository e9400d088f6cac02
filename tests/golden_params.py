"""The parameters of the original's networks as trees of ours."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from flax import traverse_util

from tenas_jax.architectures.space import SearchSpace
from tenas_jax.spaces import DARTS, NAS_BENCH_201

Weights = Mapping[str, np.ndarray]  # by PyTorch name
Path = tuple[str, ...]
Leaves = Iterator[tuple[Path, np.ndarray]]


def nas_bench_201_params(weights: Weights, dtype: type) -> dict[str, dict]:
    """The tree of `NASBench201Supernet`, or of `NASBench201Regions` when there is only one cell."""
    cells = [key.split(".")[1] for key in weights if key.startswith("cells.")]
    if len(set(cells)) == 1:
        return _tree(_regions_201(weights), dtype)
    return _tree(_supernet_201(weights), dtype)


def darts_params(weights: Weights, dtype: type) -> dict[str, dict]:
    """The tree of `DARTSSupernet`, a superset of that of `DARTSRegions`."""
    return _tree(_darts(weights), dtype)


def _tree(leaves: Leaves, dtype: type) -> dict[str, dict]:
    return traverse_util.unflatten_dict({path: value.astype(dtype) for path, value in leaves})


def _hwio(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0)


def _conv_batch_norm(weights: Weights, path: Path, prefix: str, conv: int = 1) -> Leaves:
    """A convolution and, right after it, its batch normalization; the leading axis is one edge."""
    yield (*path, "kernel"), _hwio(weights[f"{prefix}.{conv}.weight"])[None]
    yield from _norm(weights, path, [f"{prefix}.{conv + 1}"])


def _norm(weights: Weights, path: Path, prefixes: list[str]) -> Leaves:
    yield (*path, "scale"), np.stack([weights[f"{prefix}.weight"] for prefix in prefixes])
    yield (*path, "bias"), np.stack([weights[f"{prefix}.bias"] for prefix in prefixes])


def _kernels(weights: Weights, prefixes: list[str]) -> np.ndarray:
    return np.stack([_hwio(weights[f"{prefix}.weight"]) for prefix in prefixes])


def _head(weights: Weights) -> Leaves:
    yield ("classifier", "kernel"), weights["classifier.weight"].T
    yield ("classifier", "bias"), weights["classifier.bias"]


def _cell(
    weights: Weights, space: SearchSpace, path: Path, op_prefix: Callable[[int, int, int], str]
) -> Leaves:
    """All operators of a cell; `op_prefix` names an operator of an edge (source, target)."""
    for source in range(space.num_nodes - 1):
        for i, op in enumerate(space.ops):
            targets = [space.edges[edge][1] for edge in space.outgoing(source)]
            prefixes = [op_prefix(source, target, i) for target in targets]
            yield from _op(weights, op, (*path, f"node_{source}_{op}"), prefixes)


def _op(weights: Weights, op: str, path: Path, prefixes: list[str]) -> Leaves:
    def of(suffix: str) -> list[str]:
        return [prefix + suffix for prefix in prefixes]

    if op.startswith("nor_conv"):
        yield (*path, "conv", "kernel"), _kernels(weights, of(".op.1"))
        yield from _norm(weights, (*path, "conv"), of(".op.2"))
    elif op.startswith("sep_conv"):
        yield from _separable(weights, (*path, "conv_0"), of(".op_a.op"))
        yield from _separable(weights, (*path, "conv_1"), of(".op_b.op"))
    elif op.startswith("dil_conv"):
        yield from _separable(weights, (*path, "conv_0"), of(".op"))
    elif op == "skip_connect" and f"{prefixes[0]}.bn.weight" in weights:
        yield from _factorized_reduction(weights, (*path, "FactorizedReduction_0"), prefixes)


def _separable(weights: Weights, path: Path, prefixes: list[str]) -> Leaves:
    yield (*path, "depthwise"), _kernels(weights, [f"{prefix}.1" for prefix in prefixes])
    yield (*path, "pointwise"), _kernels(weights, [f"{prefix}.2" for prefix in prefixes])
    yield from _norm(weights, path, [f"{prefix}.3" for prefix in prefixes])


def _factorized_reduction(weights: Weights, path: Path, prefixes: list[str]) -> Leaves:
    """Each half normalizes its own channels: the original's one batch normalization, split."""
    for i in range(2):
        half = (*path, f"half_{i}")
        kernels = _kernels(weights, [f"{prefix}.convs.{i}" for prefix in prefixes])
        yield (*half, "kernel"), kernels
        for (*_, leaf), values in _norm(weights, half, [f"{prefix}.bn" for prefix in prefixes]):
            yield (*half, leaf), np.split(values, [values.shape[1] - kernels.shape[-1]], 1)[i]


def _regions_201(weights: Weights) -> Leaves:
    yield from _cell_201(weights, 0, "cell")
    yield from _norm(weights, ("norm",), ["lastact.0"])


def _cell_201(weights: Weights, index: int, name: str) -> Leaves:
    return _cell(
        weights,
        NAS_BENCH_201,
        (name,),
        lambda source, target, op: f"cells.{index}.edges.{target}<-{source}.{op}",
    )


def _supernet_201(weights: Weights) -> Leaves:
    yield from _conv_batch_norm(weights, ("stem",), "stem", 0)
    for stage, index in enumerate((0, 2, 4)):
        yield from _cell_201(weights, index, f"cell_{stage}_0")
    for stage, index in ((1, 1), (2, 3)):
        block = f"block_{stage}"
        for conv in ("conv_a", "conv_b"):
            path = (block, conv, "conv")
            yield from _conv_batch_norm(weights, path, f"cells.{index}.{conv}.op")
        shortcut = _hwio(weights[f"cells.{index}.downsample.1.weight"])
        yield (block, "shortcut", "kernel"), shortcut[None]
    yield from _norm(weights, ("norm",), ["lastact.0"])
    yield from _head(weights)


def _darts(weights: Weights) -> Leaves:
    yield from _conv_batch_norm(weights, ("stem",), "stem", 0)
    for index in range(len(DARTS.cell_types)):
        for i in range(2):
            path = ("cells", f"input_{index}_{i}", "conv")
            yield from _conv_batch_norm(weights, path, f"cells.{index}.preprocess{i}.op")
        yield from _cell(weights, DARTS, ("cells", f"cell_{index}"), partial(_darts_op, index))
    yield from _norm(weights, ("norm",), ["lastact.0"])
    yield from _head(weights)


def _darts_op(cell: int, source: int, target: int, op: int) -> str:
    return f"cells.{cell}.edges.{target - DARTS.input_nodes}<-{source}._ops.{op}"
