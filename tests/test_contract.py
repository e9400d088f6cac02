"""What every space, operator and metric promises, those of users included."""

import dataclasses

import jax
import jax.numpy as jnp
import my_nas
import numpy as np
import pytest
from measuring import measure_all

from tenas_jax.architectures import enumeration
from tenas_jax.architectures.genotype import EDGE_LIST
from tenas_jax.architectures.space import ProxySize, SearchSpace
from tenas_jax.data.images import ImageSet
from tenas_jax.errors import InputError
from tenas_jax.metrics.ntk import empirical_ntk
from tenas_jax.metrics.registry import METRICS, USUAL
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.layers import DEVIATIONS
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import OPS, operators
from tenas_jax.searching import pruning
from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig
from tenas_jax.searching.measurement import Images
from tenas_jax.searching.problem import look_up
from tenas_jax.spaces import DARTS, NAS_BENCH_201, SPACES

WITHOUT_NONE = dataclasses.replace(
    NAS_BENCH_201,
    name="without-none",
    operators=operators("skip_connect", "nor_conv_1x1"),
)
TWO_CELLS = dataclasses.replace(
    DARTS,
    name="two-cells",
    operators=operators("none", "skip_connect", "avg_pool_3x3"),
    edges_per_node=None,
    none_is_choice=True,
    notation=EDGE_LIST,
)
OWN_OPERATOR = dataclasses.replace(
    my_nas.CELLS,
    name="own-operator",
    operators=[*operators("none", "skip_connect"), my_nas.CELLS.operators[-1]],
)
ALL = [*SPACES.values(), my_nas.SPACE, OWN_OPERATOR, WITHOUT_NONE, TWO_CELLS]
every_space = pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)


def rng():
    return np.random.default_rng(0)


@every_space
def test_a_space_is_a_search_space(space):
    assert isinstance(space, SearchSpace)
    assert space == dataclasses.replace(space)
    assert hash(space) == hash(dataclasses.replace(space))
    assert space.initial_mask().shape == space.shape
    assert (len(space.cell_types), len(space.edge_names)) == space.shape[:2]
    assert max(len(space.op_names(edge)) for edge in range(space.shape[1])) == space.shape[2]


@every_space
def test_architectures_have_a_text_of_their_own(space):
    masks = enumeration.sample(space, 5, rng())
    texts = [space.to_string(mask) for mask in masks]
    assert len(set(texts)) == 5
    for mask, text in zip(masks, texts, strict=True):
        np.testing.assert_array_equal(space.from_string(text), mask)
        assert space.recognizes(text)
        assert space.to_string(enumeration.mutate(space, mask, rng())) != text


@every_space
def test_texts_and_masks_that_are_no_architecture_are_refused_in_a_line(space):
    for text in ("", "x", "a=b,c=d", "|x~0|", "Genotype()", "64-41414-9_99_999"):
        with pytest.raises(InputError) as error:
            space.from_string(text)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="not a single path"):
        space.to_string(space.initial_mask())
    with pytest.raises(InputError, match="the mask has shape"):
        space.to_string(np.ones((1, 2, 3), bool))


@every_space
@pytest.mark.parametrize("prune_number", [1, 3])
def test_pruning_ends_with_a_single_path(space, prune_number):
    state, draw = pruning.init(space), rng()
    while not pruning.done(space, state):
        candidates = pruning.candidates(space, state)
        groups = pruning.groups(space, state, prune_number)
        before = state.mask.sum()
        state, info = pruning.prune_step(
            state, candidates, draw.permutation(len(candidates)), groups
        )
        assert state.mask.sum() == before - len(info.pruned) < before
    space.from_string(space.to_string(state.mask))


def applied(network, params, x, mask):
    return network.apply({"params": params}, x, mask, mutable=["batch_stats"])[0]


@pytest.fixture(scope="module", params=ALL, ids=lambda space: space.name)
def network(request):
    """A space, its smallest supernet, weights, images."""
    space = request.param
    size = ProxySize(4) if space is my_nas.SPACE else ProxySize(4, cells=1)
    module, x = space.supernet(size, NHWC), jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(1), x, jnp.asarray(space.initial_mask()))
    draw = rng()
    params = jax.tree.map(
        lambda leaf: draw.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes["params"]
    )
    return space, module, params, x


def test_logits_kernels_and_eager_logits(network):
    """One program of both, which takes long to trace and to compile."""
    space, module, params, x = network

    @jax.jit
    def logits_and_kernel(params, mask):
        def f(params, x):
            return applied(module, params, x, mask)

        return f(params, x), empirical_ntk(f, params, x, chunk_size=3)

    for mask in (space.initial_mask(), *enumeration.sample(space, 2, rng())):
        kept = jnp.asarray(mask)
        logits, kernel = logits_and_kernel(params, kept)
        assert logits.shape == (3, 4)
        assert logits.dtype == x.dtype
        assert np.isfinite(logits).all()
        assert np.isfinite(kernel).all()
        assert np.trace(kernel) > 0
        if space in (my_nas.SPACE, WITHOUT_NONE):  # eager, others take up to half a minute
            eager = applied(module, params, x, kept)
            np.testing.assert_allclose(logits, eager, rtol=1e-3, atol=1e-4)


def test_a_mask_of_another_shape_is_refused(network):
    space, module, params, x = network
    cells, edges, ops = space.shape
    for shape in ((cells, edges, ops + 1), (cells + 1, edges, ops), (cells, edges - 1, ops)):
        with pytest.raises(InputError, match="the mask has shape"):
            applied(module, params, x, jnp.ones(shape, bool))


@every_space
def test_costs_are_those_of_the_network(space):
    masks = enumeration.sample(space, 2, rng())
    parameters, flops = space.costs(masks)
    assert parameters.shape == flops.shape == (2,)
    assert (parameters > 0).all()
    assert (flops > 0).all()
    alone = space.costs(masks[0])
    assert (alone.parameters, alone.flops) == (parameters[0], flops[0])


# The network of `my_nas`, which takes as long to compile as it has options.
FEWER = dict(list(my_nas.OPTIONS.items())[1:3])
FEWER_OPTIONS = dataclasses.replace(
    my_nas.SPACE, choices={name: tuple(FEWER) for name, _ in my_nas.SPACE.choices}
)
MEASURED = [
    (FEWER_OPTIONS, [*USUAL.split(","), "meco", "jacov", "my_nas:PROGRESSIVITY"]),
    (OWN_OPERATOR, ["kappa", "regions", "naswot", "synflow", "my_nas:PROGRESSIVITY"]),
    (WITHOUT_NONE, ["kappa", "regions", "swap", "flops"]),
    (TWO_CELLS, ["regions", "my_nas:PROGRESSIVITY"]),
]


@pytest.mark.parametrize(
    ("space", "metrics"), MEASURED, ids=lambda value: getattr(value, "name", "")
)
def test_metrics_of_a_row_are_numbers_of_its_mask(space, metrics, monkeypatch):
    # Which need a network of regions.
    names = [name for name in metrics if space is not FEWER_OPTIONS or name != "regions"]
    if space is FEWER_OPTIONS:
        monkeypatch.setattr(my_nas, "OPTIONS", FEWER)
    config = SearchConfig(
        images=12,
        image_size=8,
        padding=1,
        metrics=",".join(names),
        ntk=NTKConfig(batch_size=4),
        regions=RegionsConfig(batch_size=10, batches=2),
    )
    pixels = rng().integers(0, 256, (12, 8, 8, 3), np.uint8)
    images = ImageSet(pixels, (0.5,) * 3, (0.25,) * 3, "noise")
    problem = look_up(config, space=space)
    measure = jax.jit(measure_all(problem))
    (mask,) = enumeration.sample(space, 1, np.random.default_rng(3))
    kept = (space.initial_mask(), mask)
    rows = [measure(jax.random.key(0), each, Images.of(images)) for each in kept]
    for row in rows:
        assert set(row) == {m.name for m in problem.metrics if m.count is None}
        assert all(value.shape == () for value in row.values())
        assert not any(np.isnan(value) for value in row.values())
    assert rows[0] != rows[1]
    for metric in problem.metrics:
        if metric.count is not None:
            assert (np.asarray(metric.count(space, mask[None])) > 0).all()


def test_zen_of_an_operator_of_ones_own_is_refused_in_a_line():
    """Flax's batch normalization does not expose its variance."""
    size, x = ProxySize(4, cells=1), jnp.ones((2, 8, 8, 3))
    mask = jnp.asarray(OWN_OPERATOR.initial_mask())
    network = OWN_OPERATOR.supernet(size, NHWC)
    params = jax.eval_shape(network.init, jax.random.key(0), x, mask)
    with pytest.raises(InputError, match=r"^operator Dilated does not expose .* the metric zen"):
        jax.eval_shape(lambda params: network.apply(params, x, mask, mutable=[DEVIATIONS]), params)


def test_every_operator_has_an_entry_and_every_metric_a_source():
    assert all(op for op in OPS.values())
    assert all(metric.source and metric.label for metric in METRICS.values())
    assert {metric.direction for metric in METRICS.values()} == {-1, 1}


def test_layouts_agree_on_an_operator_of_ones_own():
    """`flax_op` under a mask: pruned edges are zero, whatever the layout."""
    op = dict(my_nas.CELLS.operators)["dil_conv_3x3"]
    x, weights = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([0.5, 0.0])
    for stride in (1, 2):
        plain = op(features=4, layout=NHWC, initializer="pytorch", edges=2, stride=stride)
        fast = op(features=4, layout=BATCH_MINOR, initializer="pytorch", edges=2, stride=stride)
        params = plain.init(jax.random.key(1), x, weights)
        expected = plain.apply(params, x, weights)
        assert expected.shape == (2, 8 // stride, 8 // stride, 8)
        assert (expected[..., 4:] == 0).all()
        assert (expected[..., :4] != 0).any()
        actual = BATCH_MINOR.to_nhwc(fast.apply(params, BATCH_MINOR.from_nhwc(x), weights))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
