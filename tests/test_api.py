"""The Python API: what a notebook calls."""

import asyncio
import html.parser
import threading

import jax
import jax.numpy as jnp
import matplotlib
import my_nas
import numpy as np
import pytest
from fake_scorer import HashScorer, InterruptedByTest

import tenas_jax
from tenas_jax import InputError, Metric
from tenas_jax.host.files import read_json
from tenas_jax.networks.backends import network_layout
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.searching import scorer
from tenas_jax.spaces import NAS_BENCH_201

FREE = Metric("free", +1, count=lambda space, masks: masks.sum((1, 2, 3)))
MODEL = {"hidden": jnp.eye(3), "kernel": jnp.arange(6.0).reshape(3, 2)}
X = jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [-1.0, 0.2, 2.0], [2.0, 0.1, 0.7]])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


@pytest.fixture
def quick(images):
    """Settings of a search that takes no time: its metrics are counted."""
    return {
        "images": images,
        "metrics": ["parameters", FREE],
        "ntk": {"batch_size": 4},
        "repeats": 1,
        "progress": False,
    }


@pytest.fixture
def fake(monkeypatch):
    """Replaces what measures."""
    fake = HashScorer(batch_rows=4)
    monkeypatch.setattr(scorer, "make_scorer", lambda *_, **__: fake)
    return fake


def apply_fn(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["kernel"]


def test_a_search_of_a_space_at_hand(quick, tmp_path):
    result = tenas_jax.search(my_nas.SPACE, **quick, workdir=tmp_path / "run")
    assert my_nas.SPACE.to_string(result.mask) == result.genotype
    assert result.evaluations == 12 + 9 + 6
    assert len(result.rounds) == 3
    assert result.nonfinite == 0
    assert result.found == result.content["found"]
    assert list(result.found["metrics"]) == ["parameters", "free"]
    assert result.found["metrics"]["parameters"] > 0
    assert result.content["space"] == "my-net"
    assert tenas_jax.search(my_nas.SPACE, **quick, workdir=tmp_path / "run").content == (
        result.content
    )
    other = {**quick, "repeats": 2}
    with pytest.raises(InputError, match="holds a search that differs in repeats"):
        tenas_jax.search(my_nas.SPACE, **other, workdir=tmp_path / "run")


def test_a_search_is_made_for_the_devices_that_are_given(quick, tmp_path, monkeypatch):
    """Such as the CPU of a machine that has a GPU."""
    make_scorer, seen = scorer.make_scorer, []

    def recording(*arguments, **options):
        seen.append(network_layout())
        return make_scorer(*arguments, **options)

    monkeypatch.setattr(scorer, "make_scorer", recording)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cpus = {"devices": jax.devices("cpu")[:1]}
    tenas_jax.search(my_nas.SPACE, **quick, **cpus, workdir=tmp_path)
    tenas_jax.score(my_nas.SPACE, 2, **quick, **cpus)
    assert seen == [BATCH_MINOR] * 2
    environment = read_json(tmp_path / "config.json", remedy="")["environment"]
    assert environment["platform"] == "cpu"


def test_a_result_can_be_looked_at(quick, tmp_path):
    matplotlib.use("agg")
    result = tenas_jax.search(my_nas.SPACE, **quick)
    assert result.plot_trajectory().get_xlabel() == "free"
    assert len(result.plot_pruning()) == len(result.plot_cell()) == 1
    matplotlib.pyplot.close("all")
    columns = result.to_dict()
    assert {len(column) for column in columns.values()} == {27}
    assert sum(columns["pruned"]) == 9
    assert {"round", "cell", "edge", "op", "parameters", "parameters_error"} <= set(columns)
    page = result._repr_html_()
    html.parser.HTMLParser().feed(page)
    assert result.genotype in page
    assert "<td>found</td>" in page
    assert "data:image/png;base64," in page
    assert repr(result) == f"SearchResult({result.genotype!r}, space='my-net')"
    result.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "result.json",
        "cell.png",
        "pruning.png",
        "trajectory.png",
    }
    network, x = result.network(channels=2), jnp.zeros((2, 8, 8, 3))
    logits, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
    assert logits.shape == (2, 10)
    assert len(variables["params"]) == 1 + 3 + 1  # of each choice the one block that is kept


def test_searches_without_rounds_have_a_cell_alone(quick):
    result = tenas_jax.search("nas-bench-201", **quick, strategy="random", budget=3, seed=1)
    assert result.to_dict() == {}
    assert "<img" in result._repr_html_()
    with pytest.raises(InputError, match="no rounds of pruning"):
        result.plot_pruning()


def test_it_runs_in_a_thread_and_in_an_event_loop(quick):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(tenas_jax.search("nas-bench-201", **quick))
    )
    thread.start()
    thread.join()

    async def in_a_loop():
        return tenas_jax.search("nas-bench-201", **quick)

    assert asyncio.run(in_a_loop()).genotype == found[0].genotype


def test_an_interruption_leaves_something_to_resume(quick, fake, monkeypatch, tmp_path):
    settings = {**quick, "metrics": "kappa,regions"}
    expected = tenas_jax.search("nas-bench-201", **settings, workdir=tmp_path / "whole")
    interrupted = HashScorer(4, dies_at_call=3)
    monkeypatch.setattr(scorer, "make_scorer", lambda *_, **__: interrupted)
    monkeypatch.setattr("fake_scorer.InterruptedByTest", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt) as error:
        tenas_jax.search("nas-bench-201", **settings)
    (note,) = error.value.__notes__
    folder = note.partition("workdir=")[2].strip("'")
    last = HashScorer(4)
    monkeypatch.setattr(scorer, "make_scorer", lambda *_, **__: last)
    resumed = tenas_jax.search("nas-bench-201", **settings, workdir=folder)
    assert resumed.genotype == expected.genotype
    assert resumed.rounds == expected.rounds
    assert last.calls < expected.evaluations


def test_a_failed_search_without_a_folder_leaves_nothing(quick, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dying = HashScorer(4, dies_at_call=0)
    monkeypatch.setattr(scorer, "make_scorer", lambda *_, **__: dying)
    with pytest.raises(InterruptedByTest):
        tenas_jax.search("nas-bench-201", **quick | {"metrics": "kappa,regions"})
    assert list(tmp_path.iterdir()) == []


def test_progress_is_handed_on(quick):
    seen = []
    tenas_jax.search("nas-bench-201", **{**quick, "progress": seen.append})
    assert seen[0].done == 0
    assert seen[-1].done == seen[-1].total


def test_scores_of_texts_masks_and_samples(quick):
    masks = np.stack([NAS_BENCH_201.initial_mask()[..., ::-1] & (np.arange(5) == 2)] * 1)
    text = NAS_BENCH_201.to_string(masks[0])
    by_text = tenas_jax.score("nas-bench-201", [text], **quick)
    assert by_text.genotypes == (text,)
    by_mask = tenas_jax.score("nas-bench-201", masks, **quick)
    assert by_mask.to_dict() == by_text.to_dict()
    table = tenas_jax.score("nas-bench-201", 25, **quick)
    assert len(table) == len(set(table.genotypes)) == 25
    parameters = table["parameters"]
    assert table.best("parameters") == table.genotypes[int(np.argmax(parameters))]
    assert "and 5 more" in table._repr_html_()
    assert repr(table) == "ScoreTable(25 architectures by parameters, free)"
    with pytest.raises(InputError, match="no metric 'kappa' was measured"):
        table["kappa"]
    for architectures, fault in (
        ([text, text], "is given twice"),
        ([], "give at least one"),
        (0, "ask for at least 1"),
        (["|x~0|"], "not a genotype of nas-bench-201"),
    ):
        with pytest.raises(InputError, match=fault):
            tenas_jax.score("nas-bench-201", architectures, **quick)


def test_a_table_is_saved(quick, tmp_path):
    table = tenas_jax.score("nas-bench-201", 3, **quick)
    table.save(tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "genotype,parameters,free"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"space": "nas-bench"}, r"unknown search space or preset 'nas-bench' \(did you mean"),
        ({"images": np.zeros((20, 8, 8, 3))}, "give a uint8 array of shape"),
        ({"images": np.zeros((20, 8, 9, 3), np.uint8)}, "give a uint8 array of shape"),
        ({"images": np.zeros((20, 8, 8, 3), np.uint8)}, "has the same value in all of channel 0"),
        ({"images": "web:x"}, "unknown image source 'web:x'"),
        ({"metrics": []}, "no metric: name at least one"),
        ({"metrics": [FREE, FREE]}, "name a metric twice"),
        ({"combination": "mean"}, "unknown combination 'mean'"),
        ({"strategy": "prun"}, "unknown strategy 'prun'"),
        ({"budgt": 3}, "unknown setting budgt: choose from space, data"),
        ({"ntk": {"batchsize": 3}}, "unknown setting ntk.batchsize"),
        ({"ntk": {"batch_size": 30}}, "images 20 is less than ntk.batch_size 30"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_bad_arguments_are_one_line(quick, arguments, fault):
    arguments = {"space": "nas-bench-201", **quick, **arguments}
    with pytest.raises(InputError, match=fault) as error:
        tenas_jax.search(arguments.pop("space"), **arguments)
    assert "\n" not in str(error.value)


def measured(images, metric, space=my_nas.SPACE):
    return tenas_jax.score(
        space, 1, images, metrics=[metric], ntk={"batch_size": 4}, padding=1, progress=False
    )


@pytest.mark.parametrize(
    ("metric", "fault"),
    [
        (Metric("array", +1, lambda draw: draw.x[0, 0, 0]), r"returns float32 of shape \(3,\): it"),
        (Metric("nothing", +1, lambda draw: None), "returns None: it must return one real number"),
        (Metric("complex", +1, lambda draw: 1j * draw.x.sum()), "returns complex64"),
        (Metric("fails", +1, lambda draw: {}["x"]), r"KeyError: 'x' \(test_api.py, line"),
        (
            Metric("without", +1, lambda: 0),
            "TypeError: .* takes 0 positional arguments but 1",
        ),
        (Metric("regions2", +1, lambda draw: draw.region_patterns), "has no region network"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_metrics_that_are_no_number_are_one_line(images, metric, fault):
    with pytest.raises(InputError, match=fault):
        measured(images, metric)


def test_a_module_that_takes_no_mask_is_refused_in_a_line(images):
    class Module(my_nas.nn.Module):
        num_classes: int

        def __call__(self, images):
            return images

    space = tenas_jax.ChoiceSpace("mine", {"a": ("x", "y")}, Module)
    with pytest.raises(InputError, match="takes 2 positional arguments but 3 were given"):
        measured(images, Metric("mine", +1, lambda draw: draw.params), space)


def module(f):
    """A module of one choice that returns what `f` makes of the images."""

    class Module(my_nas.nn.Module):
        num_classes: int

        @my_nas.nn.compact
        def __call__(self, images, mask):
            return f(images, mask)

    return tenas_jax.ChoiceSpace("mine", {"a": ("x", "y"), "b": ("z",)}, Module)


@pytest.mark.parametrize(
    ("f", "fault"),
    [
        (
            lambda x, mask: x,
            r"returns shape \(2, 8, 8, 3\): it must return logits of shape \(2, 10",
        ),
        (lambda x, mask: None, "returns NoneType: it must return logits"),
        (lambda x, mask: {}["y"], "KeyError: 'y'"),
        (lambda x, mask: tenas_jax.mixed(mask[0], [jnp.tanh], x), "1 branches for 2 options"),
        (
            lambda x, mask: tenas_jax.mixed(mask[0], [jnp.tanh, jnp.sum], x),
            "make them return one shape",
        ),
        (lambda x, mask: jnp.zeros((len(x), 10)), "sows no features"),
        (lambda x, mask: jnp.zeros((len(x), 10)), "leave out the metric zen"),
    ],
)
def test_modules_that_return_something_else_are_one_line(images, f, fault):
    metric = Metric("mine", +1, lambda draw: draw.logits(draw.params, draw.x).sum())
    if "features" in fault:
        metric = my_nas.PROGRESSIVITY
    if "zen" in fault:
        metric = tenas_jax.metrics.get_metric("zen")
    with pytest.raises(InputError, match=fault) as error:
        measured(images, metric, module(f))
    assert "\n" not in str(error.value)


def test_measure_is_every_metric_of_a_model():
    labels = jnp.array([0, 1, 1, 0])
    of_cells = {"az_expressivity", "az_progressivity", "az_trainability", "meco", "zen"}
    metrics = [name for name in tenas_jax.metrics.METRICS if name not in of_cells]
    values = tenas_jax.measure(apply_fn, MODEL, X, labels=labels, metrics=metrics)
    assert values["kappa"] == pytest.approx(
        float(tenas_jax.ntk_condition_number(apply_fn, MODEL, X)), rel=1e-5
    )
    assert values["regions"] == int(tenas_jax.linear_regions(apply_fn, MODEL, X)) == 4
    assert values["parameters"] == 15
    assert values["flops"] == 9 + 6
    assert values["snip"] == pytest.approx(float(tenas_jax.snip(apply_fn, MODEL, X, labels)))
    assert values["grad_norm"] == pytest.approx(
        float(tenas_jax.grad_norm(apply_fn, MODEL, X, labels))
    )
    patterns = tenas_jax.activation_patterns(apply_fn)(MODEL, X)
    assert values["naswot"] == pytest.approx(float(tenas_jax.naswot(patterns)))
    assert all(isinstance(value, int | float) for value in values.values())


def test_measure_under_jit_is_the_same():
    jitted = jax.jit(lambda params: tenas_jax.measure(apply_fn, params, X))
    expected = tenas_jax.measure(apply_fn, MODEL, X)
    for name, value in jitted(MODEL).items():
        assert float(value) == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ("snip", "this metric needs labels: give labels="),
        (["kapa"], "unknown metric 'kapa'"),
        ([my_nas.PROGRESSIVITY], "features need a search space"),
        ("az_trainability", "features need a search space"),
        ("zen", "does not expose its variances: zen needs a search space"),
        ([FREE], "is of search spaces, not of single models"),
    ],
)
def test_what_measure_cannot_do_is_one_line(metrics, fault):
    with pytest.raises(InputError, match=fault):
        tenas_jax.measure(apply_fn, MODEL, X, metrics=metrics)
