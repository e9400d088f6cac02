"""Genotypes that several tests are about."""

from itertools import chain

import numpy as np

from tenas_jax.spaces import DARTS

# The architectures that TE-NAS publishes: (op, input) of nodes 2 to 5.
CIFAR10 = {
    "normal": [
        [("dil_conv_3x3", 0), ("sep_conv_5x5", 1)],
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 2)],
        [("skip_connect", 0), ("dil_conv_5x5", 1)],
        [("sep_conv_3x3", 1), ("sep_conv_5x5", 3)],
    ],
    "reduce": [
        [("sep_conv_5x5", 0), ("sep_conv_5x5", 1)],
        [("sep_conv_5x5", 1), ("sep_conv_5x5", 2)],
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 3)],
        [("sep_conv_5x5", 2), ("sep_conv_3x3", 4)],
    ],
}
IMAGENET = {
    "normal": [
        [("sep_conv_3x3", 0), ("skip_connect", 1)],
        [("dil_conv_5x5", 1), ("sep_conv_3x3", 2)],
        [("sep_conv_3x3", 0), ("dil_conv_5x5", 3)],
        [("sep_conv_3x3", 0), ("dil_conv_3x3", 4)],
    ],
    "reduce": [
        [("dil_conv_3x3", 0), ("sep_conv_5x5", 1)],
        [("dil_conv_3x3", 0), ("sep_conv_3x3", 2)],
        [("sep_conv_3x3", 0), ("dil_conv_3x3", 1)],
        [("sep_conv_3x3", 0), ("sep_conv_5x5", 4)],
    ],
}


def darts_text(cells, concat="range(2, 6)"):
    normal, reduce = ([*chain.from_iterable(cells[name])] for name in ("normal", "reduce"))
    return (
        f"Genotype(normal={normal}, normal_concat={concat}, "
        f"reduce={reduce}, reduce_concat={concat})"
    )


def darts_mask(cells):
    mask = np.zeros(DARTS.shape, bool)
    for cell, name in enumerate(["normal", "reduce"]):
        for node, pairs in enumerate(cells[name], start=2):
            for op, source in pairs:
                mask[cell, DARTS.edges.index((source, node)), DARTS.ops.index(op)] = True
    return mask


def bench_text(*ops: str) -> str:
    nodes = [ops[:1], ops[1:3], ops[3:]]
    return "+".join("|" + "".join(f"{op}~{i}|" for i, op in enumerate(node)) for node in nodes)
