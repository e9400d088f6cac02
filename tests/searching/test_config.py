"""Configurations: what is refused, the round trip through JSON, the presets."""

import dataclasses
import inspect
import itertools
import json

import pytest

from tenas_jax import configs
from tenas_jax.errors import InputError
from tenas_jax.networks.initializers import DEFAULT, INITIALIZERS
from tenas_jax.searching.config import GROUPS, NTKConfig, RegionsConfig, SearchConfig, differences
from tenas_jax.searching.problem import look_up
from tenas_jax.spaces import NAS_BENCH_201


@pytest.mark.parametrize(
    ("kind", "values", "fault"),
    [
        (SearchConfig, {"repeats": 0}, "repeats must be an integer of at least 1, not 0"),
        (SearchConfig, {"repeats": True}, "repeats must be an integer of at least 1, not True"),
        (SearchConfig, {"prune_number": 0}, "prune_number"),
        (SearchConfig, {"seed": -1}, "seed must be an integer of at least 0, not -1"),
        (SearchConfig, {"seed": 2**32}, "seed must be at most 4294967295"),
        (SearchConfig, {"padding": -1}, "padding"),
        (SearchConfig, {"num_classes": 0}, "num_classes"),
        (SearchConfig, {"image_size": 3}, "image_size"),
        (SearchConfig, {"decimals": -1}, "decimals"),
        (SearchConfig, {"images": 71}, "images 71 is less than ntk.batch_size 72"),
        (SearchConfig, {"regions": RegionsConfig(patch_size=33)}, "patch_size 33 is larger"),
        (NTKConfig, {"batch_size": 1}, "ntk.batch_size must be an integer of at least 2, not 1"),
        (NTKConfig, {"engine": "auto"}, "choose one of chunked, neural-tangents"),
        (NTKConfig, {"chunk_size": 0}, "ntk.chunk_size"),
        (RegionsConfig, {"batch_size": 1}, "regions.batch_size"),
        (RegionsConfig, {"batches": 0}, "regions.batches"),
        (RegionsConfig, {"patch_size": 0}, "regions.patch_size"),
        (RegionsConfig, {"cells": 1001}, "regions.cells must be at most 1000, not 1001"),
        (NTKConfig, {"cells": 10**9}, "ntk.cells must be at most 1000"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(kind, values, fault):
    with pytest.raises(InputError) as error:
        kind(**values)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"space": "nats"}, "'nats'"),
        ({"combination": "mean"}, "choose from sum, log_sum, min, max, kappa, regions"),
        ({"image_size": 30}, "image_size must be a multiple of 4 for nas-bench-201"),
        ({"ntk": NTKConfig(initializer="kaiming")}, "'kaiming'"),
        ({"regions": RegionsConfig(initializer="")}, "''"),
    ],
)
def test_what_a_configuration_names_has_to_exist_and_fit(values, fault):
    config = SearchConfig(**values)
    with pytest.raises(InputError) as error:
        look_up(config)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_the_smallest_values_are_accepted():
    config = SearchConfig(
        images=2,
        image_size=4,
        padding=0,
        seed=0,
        repeats=1,
        decimals=0,
        ntk=NTKConfig(batch_size=2),
    )
    assert SearchConfig(seed=2**32 - 1, decimals=None).decimals is None
    assert config.images == config.ntk.batch_size == 2
    assert look_up(config).config == config


def test_dictionaries_survive_json():
    config = SearchConfig(
        space="darts", seed=7, decimals=None, ntk=NTKConfig(batch_size=14, chunk_size=2)
    )
    assert SearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "name"), [({"sede": 1}, "sede"), ({"ntk": {"batch": 1}}, "ntk.batch")]
)
def test_unknown_fields_are_named(values, name):
    with pytest.raises(InputError, match=f"no field {name}:"):
        SearchConfig.from_dict(values)


def test_differences_names_fields_of_every_level():
    left = SearchConfig()
    right = dataclasses.replace(
        left, data="npz:x.npz", decimals=None, regions=RegionsConfig(batches=1)
    )
    assert differences(left, left) == ()
    assert differences(left, right) == ("data", "decimals", "regions.batches")


def test_every_field_has_help():
    for kind in (SearchConfig, *GROUPS.values()):
        source = {field.name for field in dataclasses.fields(kind)}
        lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
        helped = {
            line.partition(":")[0]
            for line, following in itertools.pairwise(lines)
            if following.startswith('"""')
        }
        assert source - set(GROUPS) <= helped


def test_initializer_help_lists_the_choices():
    source = inspect.getsource(NTKConfig)
    assert all(name in source for name in INITIALIZERS)


def test_the_defaults_are_the_original_codes():
    preset = configs.get_preset("nas-bench-201")
    assert differences(preset, SearchConfig()) == ("ntk.initializer", "regions.initializer")
    # The names of what the defaults stand for.
    initializers = {preset.ntk.initializer, preset.regions.initializer}
    assert initializers == {NAS_BENCH_201.initializer}
    assert SearchConfig().ntk.initializer == SearchConfig().regions.initializer == DEFAULT


@pytest.mark.parametrize(
    ("name", "space", "batch_size", "prune_number", "num_classes"),
    [
        ("nas-bench-201", "nas-bench-201", 72, 1, 10),
        ("darts-cifar10", "darts", 14, 3, 10),
        ("darts-imagenet", "darts", 24, 2, 1000),
    ],
)
def test_presets_are_the_published_settings(name, space, batch_size, prune_number, num_classes):
    code, paper = (configs.get_preset(preset) for preset in (name, f"{name}-paper"))
    assert (code.space, code.prune_number, code.num_classes) == (space, prune_number, num_classes)
    assert differences(code, paper) == (
        "images",
        "decimals",
        "ntk.batch_size",
        "ntk.initializer",
        "regions.batch_size",
        "regions.batches",
        "regions.initializer",
    )
    assert code.ntk.batch_size == batch_size
    assert code.regions.batch_size * code.regions.batches == 3000
    assert (paper.ntk.batch_size, paper.regions.batch_size * paper.regions.batches) == (32, 5000)
    assert paper.ntk.initializer == "kaiming_normal_fan_out"
    assert paper.regions.initializer == "kaiming_normal_fan_in"


PUBLISHED = {
    "nas-bench-201": "93.9 +- 0.47",
    "darts-cifar10": "2.63 +- 0.064",
    "darts-imagenet": "24.5 / 7.5",
}


@pytest.mark.parametrize("name", configs.PRESETS)
def test_presets_say_what_they_reproduce(name):
    text = configs.PRESETS[name].__doc__
    assert f"`tenas search {name} " in text
    assert PUBLISHED.get(name.removesuffix("-paper"), "Selected ") in text
    assert configs.summary(name).endswith(".")


@pytest.mark.parametrize("name", configs.PRESETS)
def test_the_presets_fit_into_2_gb(name, monkeypatch):
    monkeypatch.setattr("tenas_jax.host.memory.memory", lambda: 2 << 30)
    look_up(configs.get_preset(name))
