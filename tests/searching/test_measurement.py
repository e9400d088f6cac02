"""All metrics of a row: each is computed whatever the others are, and of this mask."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measuring import measure_all
from smaller import SMALL_DARTS, SMALL_NAS_BENCH_201, with_edges

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures.space import ProxySize
from tenas_jax.data.images import ImageSet
from tenas_jax.errors import InputError
from tenas_jax.metrics.ntk import empirical_ntk
from tenas_jax.metrics.registry import METRICS
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import operators
from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig
from tenas_jax.searching.measurement import (
    Images,
    SupernetDraw,
    initialized,
    make_measure,
)
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.scorer import make_scorer
from tenas_jax.spaces import NAS_BENCH_201

CONFIG = SearchConfig(
    images=16,
    image_size=8,
    padding=1,
    metrics=",".join(METRICS),
    ntk=NTKConfig(batch_size=6),
    regions=RegionsConfig(batch_size=20, batches=2),
)
# Fewer operators, which compile sooner.
SMALL = dataclasses.replace(
    SMALL_NAS_BENCH_201, name="small", operators=operators("none", "skip_connect", "nor_conv_1x1")
)
SMALL_DARTS_OF_FEW = dataclasses.replace(
    SMALL_DARTS, operators=operators("none", "skip_connect", "sep_conv_3x3")
)
# An architecture, one that is a single operator, one without operators, the supernet.
MASKS = [np.eye(3, dtype=bool)[[kept]] for kept in ([1, 2, 2], [0, 2, 0], [0, 0, 0])]
MASKS.append(SMALL.initial_mask())


@pytest.fixture(scope="module")
def image_set():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    return ImageSet(pixels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise")


@pytest.fixture(scope="module")
def measured(image_set):
    """All metrics that depend on weights, of each mask."""
    compiled = jax.jit(measure_all(look_up(CONFIG, space=SMALL)))
    images = Images.of(image_set)
    return [jax.device_get(compiled(jax.random.key(1), mask, images)) for mask in MASKS]


def test_every_metric_is_measured(measured):
    assert {*measured[0], "parameters", "flops"} == set(METRICS)


def quick_measure(space, image_set, metrics, *, single_path):
    """A function of a mask that measures a row, as `tenas score` does."""
    config = dataclasses.replace(CONFIG, metrics=",".join(metrics))
    problem = look_up(config, space=space)
    measure = make_measure(problem, single_path=single_path)
    compiled = jax.jit(partial(measure, problem.metrics))
    images = Images.of(image_set)
    return lambda mask: jax.device_get(compiled(jax.random.key(1), mask, images))


def test_a_metric_does_not_depend_on_what_else_is_measured(measured, image_set):
    values = quick_measure(SMALL, image_set, ("regions", "naswot"), single_path=False)(MASKS[0])
    assert set(values) == {"regions", "naswot"}
    for name, value in values.items():
        np.testing.assert_allclose(value, measured[0][name], rtol=2e-4, err_msg=name)


def test_labels_of_ones_own_are_those_of_the_images_of_a_draw(image_set):
    pixels = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    labels = np.arange(16)[::-1] % 10
    own = dataclasses.replace(image_set, images=pixels, labels=labels)

    def draw(images, **settings):
        problem = look_up(dataclasses.replace(CONFIG, padding=0, **settings))
        mask = jnp.asarray(NAS_BENCH_201.initial_mask())
        return SupernetDraw(problem, False, jax.random.key(3), mask, Images.of(images))

    drawn = draw(own, labels="own")
    shown = np.round((np.asarray(drawn.x)[:, 0, 0, 0] * 0.25 + 0.5) * 255).astype(int)
    assert drawn.labels.tolist() == labels[shown].tolist()
    assert draw(own).labels.tolist() == draw(image_set).labels.tolist() != labels[shown].tolist()
    with pytest.raises(InputError, match="the images have no labels of their own: use labels ra"):
        _ = draw(image_set, labels="own").labels
    problem = look_up(dataclasses.replace(CONFIG, labels="own", num_classes=9))
    with pytest.raises(InputError, match="noise has the label 9, the network 9 classes"):
        make_scorer(problem, own, jax.devices("cpu")[:1])
    with pytest.raises(InputError, match="unknown labels 'mine': choose one of random, own"):
        SearchConfig(labels="mine")


def test_a_network_without_connections(measured):
    nothing = measured[2]
    assert nothing["kappa"] == np.inf
    assert nothing["regions"] == 1
    assert nothing["ntk_trace"] == 0
    assert nothing["naswot"] == nothing["synflow"] == -np.inf
    assert nothing["swap"] == 1
    assert np.isnan([nothing["jacov"], nothing["epe_nas"]]).all()
    assert nothing["az_expressivity"] == nothing["az_progressivity"] == -np.inf
    assert nothing["az_trainability"] == pytest.approx(-1e6, rel=1e-5)
    assert nothing["meco"] == 0
    for name in ("grad_norm", "snip", "zico", "log_synflow", "plain", "l2_norm"):
        assert nothing[name] == 0, name
    assert nothing["zen"] == -np.inf


@pytest.mark.parametrize("space", [SMALL_NAS_BENCH_201, SMALL_DARTS], ids=lambda space: space.name)
def test_a_kernel_is_zero_where_no_image_reaches_the_output(space):
    """Which is why it is not computed there."""
    network = space.supernet(ProxySize(), NHWC)
    pruned = np.zeros(space.shape, bool)
    pruned[..., 0] = True
    if space is SMALL_NAS_BENCH_201:
        pruned[0, 0] = np.arange(5) == 3  # into node 1, from which nothing goes on
    dead_ends, supernet = map(jnp.asarray, (pruned, space.initial_mask()))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    params = initialized(space.supernet, ProxySize(), jax.random.key(1), x, dead_ends)

    def logits(params, x, mask):
        return network.apply({"params": params}, x, mask)

    kernel = jax.jit(lambda p, x, mask: empirical_ntk(lambda p, x: logits(p, x, mask), p, x))
    assert (kernel(params, x, dead_ends) == 0).all()
    assert (kernel(params, x, supernet) != 0).all()


def test_a_connected_network_has_finite_positive_scores(measured):
    for row in (measured[0], measured[3]):
        assert all(np.isfinite(list(row.values())))
        assert row["ntk_trace"] == pytest.approx(6 * row["ntk_mean_eigenvalue"], rel=1e-5)
        assert row["kappa"] > 1
        assert row["grad_norm"] > 0
        assert row["swap"] > 1
        assert row["jacov"] < -6
        assert row["epe_nas"] > 0
        assert 0 < row["az_expressivity"] < np.log(3 * 6 * 12)
        assert -np.log(6) < row["az_progressivity"] < np.log(6)
        assert -100 < row["az_trainability"] < 1e-5
        assert 0 < row["meco"] < 3


JACOBIANS_AND_FEATURES = [
    name
    for name, metric in METRICS.items()
    if metric.shares in ("input_jacobian", "features") or name in ("az_trainability", "zen")
]
OF_WEIGHTS = ("log_synflow", "plain", "l2_norm", "grasp", "grad_sign", "fisher", "vkdnw")


def test_a_single_path_has_the_scores_of_the_supernet_that_keeps_it(measured, image_set):
    """In loops over edges, of which only those that are kept are computed."""
    metrics = (*JACOBIANS_AND_FEATURES, *OF_WEIGHTS)
    of_path = quick_measure(SMALL, image_set, metrics, single_path=True)
    rows = [of_path(mask) for mask in MASKS[:3]]
    for expected, row in zip(measured, rows, strict=False):
        assert set(row) == set(metrics)
        for name, value in row.items():
            np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=1e-5, err_msg=name)
    for row in rows[:2]:
        assert all(row[name] != 0 for name in OF_WEIGHTS)
    for name in OF_WEIGHTS:
        assert np.isnan(rows[2][name]) if name == "vkdnw" else rows[2][name] == 0, name
    # Operators on a dead end are not in the network.
    dead_end = of_path(np.eye(3, dtype=bool)[[[2, 2, 0]]])
    assert dead_end["l2_norm"] == rows[1]["l2_norm"] < rows[0]["l2_norm"] < measured[3]["l2_norm"]


def test_single_paths_of_darts(image_set):
    masks = architectures.sample(SMALL_DARTS_OF_FEW, 2, np.random.default_rng(0))
    metrics = (*JACOBIANS_AND_FEATURES, "grad_sign", "fisher")
    first, second = map(
        quick_measure(SMALL_DARTS_OF_FEW, image_set, metrics, single_path=True), masks
    )
    assert np.isfinite([*first.values(), *second.values()]).all()
    assert all(first[name] != second[name] for name in first)
    assert first["grad_sign"] == round(float(first["grad_sign"])) > 0
    assert first["fisher"] > 0


def test_costs_are_those_of_the_discrete_networks():
    space, only_none = SMALL_NAS_BENCH_201, np.tile(np.arange(5) == 0, (1, 3, 1))
    masks = np.stack([*architectures.sample(space, 1, np.random.default_rng(1)), only_none])
    parameters, flops = space.costs(masks)
    np.testing.assert_array_equal(METRICS["parameters"].count(space, masks), parameters)
    np.testing.assert_array_equal(METRICS["flops"].count(space, masks), flops)
    assert parameters[1] == 73306


def test_a_row_is_the_same_in_the_layout_of_a_gpu(image_set, monkeypatch):
    rows = {}
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        measure = quick_measure(SMALL, image_set, ("kappa", "regions"), single_path=False)
        rows[backend] = [measure(mask) for mask in (MASKS[0], MASKS[3])]
    for actual, expected in zip(rows["gpu"], rows["cpu"], strict=True):
        np.testing.assert_allclose(actual["kappa"], expected["kappa"], rtol=1e-3)
        assert actual["regions"] == expected["regions"] > 1


def test_nothing_in_a_network_waits_for_the_host_of_a_gpu(image_set, monkeypatch):
    """Of a row all or nothing is measured, and all or nothing of its kernel."""
    config = dataclasses.replace(CONFIG, metrics="kappa,regions")
    problem = look_up(config, space=with_edges(SMALL, 1))

    def texts(backend, *, single_path):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        scorer = make_scorer(problem, image_set, jax.devices()[:1], single_path=single_path)
        return [program.as_text() for program in scorer.lower()]

    regions, kappa = texts("gpu", single_path=False)
    assert (regions.count("stablehlo.case"), kappa.count("stablehlo.case")) == (1, 2)
    assert texts("gpu", single_path=True) == [regions, kappa]
    for single_path in (False, True):
        assert texts("cpu", single_path=single_path)[1].count("stablehlo.case") > 2
