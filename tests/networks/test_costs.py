"""Counts of parameters and multiply-adds against formulas, published numbers and brute force."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from genotypes import CIFAR10, IMAGENET, darts_mask
from jax import lax

from tenas_jax.errors import InputError
from tenas_jax.metrics.flops import flops
from tenas_jax.metrics.proxies import parameters as count_parameters
from tenas_jax.networks import costs
from tenas_jax.networks.costs import layer_costs, network_costs
from tenas_jax.spaces import DARTS, NAS_BENCH_201

# DARTS's own second architecture, whose count its authors print (github.com/quark0/darts).
DARTS_V2 = {
    "normal": [
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)],
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)],
        [("sep_conv_3x3", 1), ("skip_connect", 0)],
        [("skip_connect", 0), ("dil_conv_3x3", 2)],
    ],
    "reduce": [
        [("max_pool_3x3", 0), ("max_pool_3x3", 1)],
        [("skip_connect", 2), ("max_pool_3x3", 1)],
        [("max_pool_3x3", 0), ("skip_connect", 2)],
        [("skip_connect", 2), ("max_pool_3x3", 1)],
    ],
}


def random_masks(space, n):
    """Random genotypes; those that list only some edges have no `none`."""
    random = np.random.default_rng(0)
    masks = np.zeros((n, *space.shape), bool)
    first = 0 if space.edges_per_node is None else 1
    for mask, cell, node in itertools.product(
        masks, range(len(space.cell_types)), space.intermediate_nodes
    ):
        for edge in random.permutation(space.incoming(node))[: space.edges_kept(node)]:
            mask[cell, edge, random.integers(first, len(space.ops))] = True
    return masks


def test_nas_bench_201_costs_what_its_table_says():
    masks = random_masks(NAS_BENCH_201, 200)
    parameters, multiply_adds = NAS_BENCH_201.costs(masks)
    counts = masks.sum((1, 2))
    pointwise, full = (counts[:, NAS_BENCH_201.ops.index(f"nor_conv_{k}")] for k in ("1x1", "3x3"))
    np.testing.assert_array_equal(parameters, 73_306 + 28_000 * pointwise + 243_040 * full)
    np.testing.assert_array_equal(
        multiply_adds, 7_783_050 + 3_932_160 * pointwise + 35_389_440 * full
    )
    network = NAS_BENCH_201.network(masks[0], num_classes=10)
    assert network_costs(network, 32) == (parameters[0], multiply_adds[0])


def test_published_architectures():
    masks = np.stack([darts_mask(cells) for cells in (DARTS_V2, CIFAR10, IMAGENET)])
    parameters, _ = DARTS.costs(masks)
    # What the evaluation code of DARTS and of TE-NAS's authors counts for them
    # (github.com/chenwydj/DARTS_evaluation). The paper's 3.8 M is the third.
    assert parameters.tolist() == [3_349_342, 4_137_526, 3_779_398]
    network = DARTS.network(masks[2], num_classes=1000, stem="imagenet", auxiliary=True)
    imagenet = network_costs(network, 224)
    assert imagenet.parameters == 5_420_416  # 5.4 M in the paper
    assert 585e6 < imagenet.flops < 600e6  # the limit of the mobile setting


def test_costs_are_those_of_each_single_network(monkeypatch):
    for space, size in ((NAS_BENCH_201, (4, 1)), (DARTS, (4, 3))):
        monkeypatch.setitem(space.macro.published, "cifar", size)
        monkeypatch.setattr(costs, "_cost_table", costs._cost_table.__wrapped__)
        masks = random_masks(space, 3)
        table = space.costs(masks)
        for i, mask in enumerate(masks):
            network = space.network(mask, num_classes=10)
            assert network_costs(network, 32) == (table.parameters[i], table.flops[i])
        monkeypatch.undo()


def test_masks_of_another_space():
    with pytest.raises(InputError, match=r"masks of shape \(2, 14, 8\) do not end in \(1, 6, 5\)"):
        NAS_BENCH_201.costs(DARTS.initial_mask())


def test_layers_are_in_order_with_their_outputs():
    mask = random_masks(NAS_BENCH_201, 1)[0]
    layers = layer_costs(NAS_BENCH_201.network(mask, num_classes=7, channels=2, cells=1), 8)
    assert [(layer.name, layer.output) for layer in layers] == [
        ("stem", (8, 8, 2)),
        ("cell_0", (8, 8, 2)),
        ("block_1", (4, 4, 4)),
        ("cell_1", (4, 4, 4)),
        ("block_2", (2, 2, 8)),
        ("cell_2", (2, 2, 8)),
        ("norm", (2, 2, 8)),
        ("classifier", (7,)),
    ]
    assert layers[0].costs == (3 * 3 * 3 * 2 + 2 * 2, 3 * 3 * 3 * 2 * 8 * 8)
    assert layers[-1].costs == (9 * 7, 9 * 7)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_its_products(groups, stride):
    x, kernel = jnp.zeros((2, 9, 8, 6)), jnp.zeros((3, 2, 6 // groups, 12))

    def conv(kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    y = jax.eval_shape(conv, kernel)
    count = sum(3 * 2 * 6 // groups for _ in range(math.prod(y.shape)))
    assert flops(conv, kernel) == count
    if stride == 1:
        # The kernel's gradient has the products of the convolution; all of the latter's outputs
        # have a full window, so none is with zeros.
        assert flops(lambda k, dy: jax.linear_transpose(conv, k)(dy), kernel, y) == count


def test_products_inside_other_programs_count():
    a = jnp.zeros((4, 5))

    def product(x):
        return x @ a.T @ a  # 2 * 2 * 4 * 5

    @jax.custom_vjp
    def custom(x):
        return product(x)

    custom.defvjp(lambda x: (product(x), None), lambda _, dy: (dy,))
    x = jnp.zeros((2, 5))
    for f in (product, jax.jit(product), jax.remat(product), custom):
        assert flops(f, x) == 80
    assert flops(lambda x: lax.scan(lambda x, _: (product(x), None), x, length=7), x) == 560
    assert flops(lambda x: lax.cond(x.any(), product, product, x), x) == 80
    assert flops(lambda x: jnp.einsum("bij,bjk->bik", x, x), jnp.zeros((3, 4, 4))) == 192
    assert flops(jnp.sin, x) == 0
    assert flops(product, jax.ShapeDtypeStruct((2, 5), jnp.float32)) == 80


def test_what_cannot_be_counted_is_refused():
    def loop(x):
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

    def branches(x):
        return lax.cond(x.any(), lambda x: x @ x, lambda x: x @ x @ x, x)

    x = jnp.zeros((3, 3))
    with pytest.raises(InputError, match="unknown number of times"):
        flops(loop, x)
    with pytest.raises(InputError, match="branches of a cond cost differently"):
        flops(branches, x)


def test_parameters_count_without_arrays():
    tree = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": [jnp.zeros(())]}
    assert count_parameters(tree) == 13
