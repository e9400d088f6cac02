"""Programs that do not fit into memory are made smaller, and what happens where memory runs out."""

import json
import math
import re
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest
from fake_scorer import timeless

from tenas_jax import ChoiceSpace, mixed
from tenas_jax.data.images import ImageSet
from tenas_jax.errors import InputError
from tenas_jax.searching import planning
from tenas_jax.searching import scorer as scoring
from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig
from tenas_jax.searching.loop import run_search
from tenas_jax.searching.planning import Need, fewer_cotangents, largest_batch, memory_need
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.scorer import make_scorer
from tenas_jax.searching.workdir import read_plan
from tenas_jax.spaces import NAS_BENCH_201

IMAGES = ImageSet(
    np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8),
    (0.5,) * 3,
    (0.25,) * 3,
    "noise",
)
OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes\nmore")


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, mask):
        x = images.reshape(len(images), -1)
        return nn.Dense(self.num_classes)(nn.relu(mixed(mask[0], [nn.Dense(16)] * 3, x)))


SPACE = ChoiceSpace("tiny", {"layer": ("a", "b", "c")}, Net)


def problem(batch_size=32, chunk_size=32):
    config = SearchConfig(
        images=40,
        image_size=8,
        padding=1,
        metrics="kappa",
        strategy="exhaustive",
        repeats=2,
        ntk=NTKConfig(batch_size=batch_size, chunk_size=chunk_size),
    )
    return look_up(config, space=SPACE)


def compiled(limit=None, *, monkeypatch, **fields):
    monkeypatch.setattr(planning, "device_memory", lambda _: limit)
    scorer = make_scorer(problem(**fields), IMAGES, jax.devices()[:1])
    scorer.compile()
    return scorer


def need(scorer):
    return memory_need(scorer._programs[0], jax.devices()[:1])


def kappa(scorer):
    masks = SPACE.initial_mask()[None]
    return scorer(jax.random.split(jax.random.key(0), 1), masks)[0, 0]


def test_what_does_not_fit_is_measured_by_smaller_passes(monkeypatch, capfd):
    whole = compiled(monkeypatch=monkeypatch)
    assert whole.plan == {}
    assert capfd.readouterr().err == ""
    limit = int(0.8 * need(whole).needed)
    smaller = compiled(limit, monkeypatch=monkeypatch)
    [chunk] = smaller.plan.values()
    assert chunk < 32
    assert need(smaller).needed <= limit < need(whole).needed
    err = capfd.readouterr().err
    assert re.fullmatch(
        rf"tenas: kappa: {chunk} cotangents at once, as 32 take .* GB of memory, of .* on a .*\n",
        err,
    )
    np.testing.assert_allclose(kappa(smaller), kappa(whole), rtol=1e-3)


def test_a_batch_that_cannot_fit_ends_with_one_that_does(monkeypatch):
    limit = int(0.7 * need(compiled(chunk_size=1, monkeypatch=monkeypatch)).needed)
    with pytest.raises(InputError, match=r"ntk.batch_size 32: kappa takes .* GB of") as refused:
        compiled(limit, chunk_size=4, monkeypatch=monkeypatch)
    found = re.search(r": use (\d+) or less$", str(refused.value))
    largest = int(found[1])
    assert 16 <= largest < 32
    fits = compiled(limit, batch_size=largest, chunk_size=1, monkeypatch=monkeypatch)
    assert need(fits).needed > 0.7 * limit


def test_a_batch_that_no_number_of_cotangents_helps(monkeypatch):
    """Its size is named by the field that it depends on."""
    config = SearchConfig(
        images=16,
        image_size=8,
        metrics="regions",
        ntk=NTKConfig(batch_size=4),
        regions=RegionsConfig(batch_size=40, batches=1),
    )
    monkeypatch.setattr(planning, "device_memory", lambda _: 1)
    monkeypatch.setattr(scoring, "largest_batch", lambda *_: None)
    scorer = make_scorer(look_up(config), IMAGES, jax.devices()[:1])
    with pytest.raises(InputError, match=r"^regions.batch_size 40: regions takes .*: use smaller"):
        scorer.compile()
    assert scorer.plan == {}


def test_a_compiler_that_refuses_is_asked_for_less(monkeypatch):
    answers = [None, None]
    compile_one = scoring.SupernetScorer._compiled

    def refusing(scorer, lowered):
        return answers.pop() if answers else compile_one(scorer, lowered)

    monkeypatch.setattr(scoring.SupernetScorer, "_compiled", refusing)
    assert compiled(monkeypatch=monkeypatch).plan == {"kappa": 2}


class Exhausted:
    """A program that runs out of memory at some calls."""

    __class__ = jax.stages.Compiled

    def __init__(self, program, calls):
        self.program, self.calls, self.count = program, calls, 0
        self.memory_analysis = program.memory_analysis

    def __call__(self, *arguments):
        self.count += 1
        if self.count in self.calls:
            raise OUT_OF_MEMORY
        return self.program(*arguments)


def search(folder, monkeypatch, *, exhausted=(), again=(), **options):
    """A search whose program runs out of memory, and that with half of the cotangents, too."""
    scorer = make_scorer(problem(), IMAGES, jax.devices()[:1])
    monkeypatch.setattr(planning, "device_memory", lambda _: None)
    if exhausted:
        scorer.compile()
        scorer._programs[0] = Exhausted(scorer._programs[0], exhausted)
        compile_one = scorer._compiled
        scorer._compiled = lambda lowered: Exhausted(compile_one(lowered), again)
    settings = {"preset": "test", "data_fingerprint": "noise", "device": "test"}
    return timeless(run_search(problem(), scorer, folder, **settings, **options)), scorer


def test_a_search_that_runs_out_of_memory_goes_on_with_half(tmp_path, monkeypatch, capfd):
    whole, _ = search(tmp_path / "whole", monkeypatch)
    assert not (tmp_path / "whole" / "memory.json").exists()
    half, scorer = search(tmp_path / "half", monkeypatch, exhausted=(3,))
    assert scorer.plan == {"kappa": 16}
    assert read_plan(tmp_path / "half") == {"kappa": 16}
    err = capfd.readouterr().err
    assert err == "tenas: out of memory: kappa continues with 16 cotangents at once, not 32\n"
    lines = [
        (tmp_path / name / "trace.jsonl").read_text().splitlines() for name in ("whole", "half")
    ]
    assert lines[0][:2] == lines[1][:2]
    for expected, actual in zip(*(map(json.loads, each) for each in lines), strict=True):
        assert actual.get("kappa") == pytest.approx(expected.get("kappa"), rel=1e-3)

    # Once more: nothing is lost, and a resumed search ends as the one above.
    with pytest.raises(InputError, match=r"^out of memory \(RESOURCE_EX.*: 9 bytes\): .* --resume"):
        search(tmp_path / "twice", monkeypatch, exhausted=(3,), again=(2,))
    trace = tmp_path / "twice" / "trace.jsonl"
    assert trace.read_text().splitlines() == lines[1][:3]
    resumed, scorer = search(tmp_path / "twice", monkeypatch, resume=True)
    assert scorer.plan == {"kappa": 16}
    assert trace.read_text().splitlines() == lines[1]
    assert resumed == half
    assert resumed["genotype"] == whole["genotype"]


def test_one_cotangent_cannot_be_halved(tmp_path, monkeypatch):
    scorer = compiled(chunk_size=1, monkeypatch=monkeypatch)
    scorer._programs[0] = Exhausted(scorer._programs[0], {1})
    with pytest.raises(InputError, match=r"or start again with ntk.batch_size below 32$"):
        kappa(scorer)


def test_a_plan_is_of_one_search_and_a_damaged_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "trace.jsonl").touch()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "memory.json").write_text("{}")
    _, scorer = search(tmp_path, monkeypatch)
    assert scorer.plan == {}
    (tmp_path / "memory.json").write_text('{"cotangents": {"kappa": 0}}')
    with pytest.raises(InputError, match=r"memory.json .*: delete it; it will be made again"):
        search(tmp_path, monkeypatch, resume=True)


def test_all_processes_decide_by_the_most_and_the_least(monkeypatch):
    monkeypatch.setattr(planning, "device_memory", lambda _: 100)
    monkeypatch.setattr(planning, "exchange", lambda own: [own, "[80.0, 90]", "[Infinity, 95]"])
    assert memory_need(None, jax.devices()) == Need(math.inf, 90)
    monkeypatch.setattr(planning, "exchange", lambda own: ["[80.0, Infinity]", "[70.0, 95]"])
    assert memory_need(None, jax.devices()) == Need(80, 95)


def test_all_processes_halve_their_passes_where_one_is_out_of_memory(monkeypatch, capfd):
    scorer = compiled(monkeypatch=monkeypatch)
    of_others = iter(["RESOURCE_EXHAUSTED: 9 bytes", ""])
    monkeypatch.setattr(scoring, "exchange", lambda own: [own, next(of_others)])
    assert kappa(scorer) > 1
    assert scorer.plan == {"kappa": 16}
    err = capfd.readouterr().err
    assert err == "tenas: out of memory: kappa continues with 16 cotangents at once, not 32\n"


@pytest.mark.parametrize("n", [2, 14, 72, 97, 256])
def test_passes_are_of_about_equal_size_and_end_with_one_cotangent(n):
    chunks = [n]
    while chunks[-1] > 1:
        chunks.append(fewer_cotangents(n, chunks[-1], 0.9))
        assert chunks[-1] <= max(1, chunks[-2] // 2)
        passes = -(-n // chunks[-1])
        assert passes * chunks[-1] - n < passes
    assert fewer_cotangents(n, 1) == 1


@pytest.mark.parametrize("grows", [lambda n: 3 * n * n, lambda n: 5000 + 40 * n, lambda n: 50 * n])
@pytest.mark.parametrize("known", [True, False])
def test_the_largest_batch_is_found_by_few_programs(grows, known):
    tried = []

    def need_of(n):
        tried.append(n)
        needed = grows(n)
        return Need(needed if known or needed <= 20_000 else math.inf, 20_000)

    found = largest_batch(need_of, 2000, need_of(2000))
    exact = max(n for n in range(2000) if grows(n) <= 20_000)
    assert (0.8 if known else 0.4) * exact < found <= exact
    assert len(tried) < 8


def test_the_cotangents_of_networks_of_this_library(monkeypatch):
    """The default of a CPU is what it was; only what does not fit is compiled again."""
    traced = []
    make_measure = scoring.make_measure

    def counting(planned, **options):
        traced.append(planned.config.ntk.chunk_size)
        return make_measure(planned, **options)

    monkeypatch.setattr(scoring, "make_measure", counting)
    needs = iter([9.0, 5.0])
    monkeypatch.setattr(scoring, "memory_need", lambda *_: Need(next(needs), 6.0))
    fake = mock.Mock(spec=jax.stages.Compiled)
    monkeypatch.setattr(scoring.SupernetScorer, "_compiled", lambda *_: fake)
    config = SearchConfig(images=16, image_size=8, metrics="kappa", ntk=NTKConfig(batch_size=6))
    scorer = make_scorer(look_up(config), IMAGES, jax.devices()[:1])
    assert scorer.space is NAS_BENCH_201
    scorer.compile()
    assert traced == [None, 1]
    assert scorer.plan == {"kappa": 1}
