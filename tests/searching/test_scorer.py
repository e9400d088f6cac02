"""Rows are measured with one compilation, the same on any number of devices."""

import dataclasses
import time

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from measuring import measure_all
from smaller import SMALL_NAS_BENCH_201 as SPACE
from smaller import with_edges

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures.space import ProxySize
from tenas_jax.data.images import ImageSet
from tenas_jax.searching import scorer as scoring
from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig
from tenas_jax.searching.loop import measure, run_search
from tenas_jax.searching.measurement import Images, initialized, make_measure
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.rows import Row
from tenas_jax.searching.scorer import SupernetScorer, make_scorer
from tenas_jax.spaces import NAS_BENCH_201

CONFIG = SearchConfig(
    images=16,
    image_size=8,
    padding=1,
    repeats=2,
    ntk=NTKConfig(batch_size=6),
    regions=RegionsConfig(batch_size=20, batches=2),
)

PROBLEM = look_up(CONFIG, space=SPACE)


@pytest.fixture(scope="module")
def image_set():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    return ImageSet(pixels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise")


@pytest.fixture(scope="module")
def traced(image_set):
    """A scorer on four devices that counts how often a row is traced."""
    count = []

    def make_counting(problem, **options):
        measured = make_measure(problem, **options)

        def counting(*arguments):
            count.append(1)
            return measured(*arguments)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "make_measure", make_counting)
        scorer = SupernetScorer(PROBLEM, image_set, jax.devices()[:4])
        scorer.compile()
    return scorer, count


@pytest.fixture(scope="module")
def rows():
    """Eight keys and masks: the supernet, and others with some operators pruned."""
    masks = np.tile(SPACE.initial_mask(), (8, 1, 1, 1))
    masks[1:] &= np.random.default_rng(0).random(masks[1:].shape) < 0.7
    return jax.random.split(jax.random.key(0), 2)[np.arange(8) // 4], masks


def measured(scorer, rows):
    keys, masks = rows
    starts = range(0, len(masks), scorer.batch_rows)
    batches = [slice(start, start + scorer.batch_rows) for start in starts]
    return np.concatenate([scorer(keys[batch], masks[batch]) for batch in batches])


def test_a_row_does_not_depend_on_the_number_of_devices(traced, rows, image_set):
    scorer, _ = traced
    pair = make_scorer(PROBLEM, image_set, jax.devices()[:2])
    pair.compile()
    np.testing.assert_array_equal(measured(scorer, rows), measured(pair, rows))


def test_rows_that_keep_nothing_are_not_measured(traced, rows):
    scorer, _ = traced
    keys, masks = rows[0][:4], rows[1][:4].copy()
    whole = scorer(keys, masks)
    masks[2] = False
    np.testing.assert_array_equal(scorer(keys, masks)[[0, 1, 3]], whole[[0, 1, 3]])
    assert (scorer(keys, masks)[2] == 0).all()


@hypothesis.given(
    work=st.lists(st.integers(0, 1000), min_size=16, max_size=16),
    devices=st.sampled_from([1, 2, 4]),
)
def test_devices_have_equally_many_rows_and_about_equal_work(work, devices):
    order = scoring.balanced(np.array(work), devices)
    assert sorted(order) == list(range(16))
    by_device = np.array(work)[order].reshape(-1, devices).sum(0)
    assert by_device.max() - by_device.min() <= max(work)


def test_work_is_that_of_operators_on_a_path():
    masks = np.zeros((3, *NAS_BENCH_201.shape), bool)
    masks[1:, 0, 3, 3] = True  # a convolution from the input to the output
    masks[2, 0, 0, 3] = True  # one from which nothing goes on
    nothing, path, dead_end = scoring.work(NAS_BENCH_201, masks)
    assert nothing < path == dead_end


def test_tracing_counts_as_compilation(image_set, monkeypatch):
    problem = look_up(dataclasses.replace(CONFIG, metrics="flops"), space=SPACE)
    scorer = make_scorer(problem, image_set, jax.devices()[:1])
    monkeypatch.setattr(scorer, "lower", lambda: time.sleep(0.05) or iter(()))
    scorer.begin()
    scorer.compile()
    assert scorer.compile_seconds >= 0.05


def test_sizes_alone_need_no_measurement(image_set):
    config = dataclasses.replace(CONFIG, metrics="flops,parameters")
    scorer = make_scorer(
        look_up(config, space=SPACE), image_set, jax.devices()[:4], single_path=True
    )
    scorer.compile()
    masks = np.zeros((scorer.batch_rows, *SPACE.shape), bool)
    masks[:3] = architectures.sample(SPACE, 3, np.random.default_rng(0))
    keys = jax.random.split(jax.random.key(0), scorer.batch_rows)
    expected = np.stack(SPACE.costs(masks)[::-1], 1)
    np.testing.assert_array_equal(scorer(keys, masks), expected)


def test_architectures_are_measured_as_supernets_are(traced, image_set):
    """Several rows on each device, only what they keep computed; also if they fill no batch."""
    supernets, _ = traced
    paths = make_scorer(PROBLEM, image_set, jax.devices()[:2], single_path=True)
    paths.compile()
    masks = architectures.sample(SPACE, 12, np.random.default_rng(0))
    rows = [Row(0, i, mask, {}) for i, mask in enumerate(masks)]
    key = jax.random.key(0)
    expected, actual = (
        np.concatenate([values for _, values in measure(scorer, rows, key)])
        for scorer in (supernets, paths)
    )
    assert paths.batch_rows > len(rows)
    np.testing.assert_array_equal(actual[:, 1], expected[:, 1])
    finite = np.isfinite(expected[:, 0])
    assert finite.sum() > 6
    np.testing.assert_array_equal(np.isfinite(actual[:, 0]), finite)
    np.testing.assert_allclose(actual[finite, 0], expected[finite, 0], rtol=1e-3)


def test_a_row_depends_on_its_key_and_mask_only(traced, rows):
    scorer, _ = traced
    keys, masks = rows
    order = np.array([5, 0, 7, 2, 1, 3, 4, 6])
    np.testing.assert_array_equal(
        measured(scorer, (keys[order], masks[order])), measured(scorer, rows)[order]
    )


def test_measurements_are_of_this_key_and_mask(traced, rows):
    values = measured(*traced[:1], rows)
    assert values.shape == (8, 2)
    assert len(np.unique(values[:, 0])) == 8
    assert (values[:, 0] > 1).all()
    assert ((values[:, 1] >= 1) & (values[:, 1] <= 40)).all()


def test_a_whole_search_traces_a_row_once(traced, tmp_path):
    scorer, count = traced
    result = run_search(
        PROBLEM,
        scorer,
        tmp_path,
        preset="test",
        data_fingerprint="noise",
        device="test",
    )
    assert result["evaluations"] == 27
    assert len(result["rounds"]) == 3
    assert len(count) == 2  # once for each program


def test_rows_with_one_key_share_weights():
    x = jnp.zeros((2, 8, 8, 3))
    mask = jnp.asarray(SPACE.initial_mask())
    pruned = mask.at[0, :, 3].set(False)
    key = jax.random.key(0)
    draw = jax.jit(lambda mask: initialized(SPACE.supernet, ProxySize(), key, x, mask))
    left, right = draw(mask), draw(pruned)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), left, right))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_row_lowers_for_accelerators(platform, image_set):
    space = with_edges(SPACE, 1)
    row = jax.jit(measure_all(look_up(CONFIG, space=space)))
    arguments = (jax.random.key(0), space.initial_mask(), Images.of(image_set))
    exported = export.export(row, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)


def test_photographs_of_another_seed_have_the_same_program(image_set):
    problem = look_up(dataclasses.replace(CONFIG, metrics="regions"), space=SPACE)
    other = ImageSet(255 - image_set.images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "noise")
    programs = [
        scorer._lower(problem.metrics).as_text()
        for each in (image_set, other)
        for scorer in [make_scorer(problem, each, jax.devices()[:2])]
    ]
    assert programs[0] == programs[1]
