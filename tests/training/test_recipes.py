"""The recipes are those published, and a field that cannot be used ends with one line."""

import dataclasses
import json
import time

import pytest

from tenas_jax.errors import InputError
from tenas_jax.training.recipes import RECIPES, from_dict, get_recipe, require_fits
from tenas_jax.training.steps import make_network


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cifar10", (36, 20, 96, 0.025, 3e-4, 16, 0.3, 0.4, 5, False, 10)),
        ("cifar100", (36, 20, 96, 0.025, 3e-4, 16, 0.3, 0.4, 5, False, 100)),
        ("imagenet", (48, 14, 768, 0.5, 3e-5, 0, 0.0, 0.4, 5, False, 1000)),
        ("nas-bench-201", (16, 5, 256, 0.1, 5e-4, 0, 0.0, 0.0, None, True, 10)),
    ],
)
def test_recipes_are_those_published(name, published):
    fields = (
        "channels cells batch_size learning_rate weight_decay cutout drop_path auxiliary clip_norm "
        "nesterov num_classes"
    )
    assert tuple(getattr(RECIPES[name], field) for field in fields.split()) == published
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(RECIPES[name])))) == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("epochs", 0, "epochs must be at least 1, not 0"),
        ("learning_rate", 0.0, "learning_rate must be more than 0 and finite, not 0.0"),
        ("weight_decay", float("nan"), "weight_decay must be at least 0, not nan"),
        ("drop_path", 1.0, "drop_path must be less than 1, not 1.0"),
        ("clip_norm", -1.0, "clip_norm must be more than 0 and finite, not -1.0"),
        ("seed", 2**32, "seed must be at most 4294967295"),
        ("learning_rate", float("inf"), "learning_rate must be more than 0 and finite, not inf"),
        ("learning_rate", float("nan"), "learning_rate must be more than 0 and finite, not nan"),
        ("clip_norm", float("inf"), "clip_norm must be more than 0 and finite, not inf"),
        ("cells", 10**6, "cells must be at most 1000, not 1000000"),
        ("warmup_epochs", 600, "warmup_epochs 600 leaves nothing of 600 epochs"),
        ("image_size", 30, "image_size must be a multiple of 4 with the stem cifar, not 30"),
        ("image_size", 16, "the auxiliary head needs image_size 32, not 16: give auxiliary 0"),
    ],
)
def test_unusable_fields_are_explained(name, value, fault):
    with pytest.raises(InputError, match=fault) as error:
        dataclasses.replace(RECIPES["cifar10"], **{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"batch_size": 10**9},
            "batch_size 1000000000 with image_size 32 and padding 4: use less;",
        ),
        ({"padding": 10**8}, "image_size 32 and padding 100000000: use less; the images take"),
        ({"image_size": 10**7, "auxiliary": 0.0}, "image_size 10000000 and padding 4: use less"),
        ({"channels": 10**8}, "channels 100000000 with batch_size 96: use fewer; the activations"),
        ({"num_classes": 10**11}, "num_classes 100000000000 with 36 channels: use fewer; the weig"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused(changes, fault):
    recipe = dataclasses.replace(RECIPES["cifar10"], **changes)
    started = time.perf_counter()
    with pytest.raises(InputError, match=fault):
        require_fits(recipe)
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_fit_into_4_gb(name, monkeypatch):
    monkeypatch.setattr("tenas_jax.host.memory.memory", lambda: 4 << 30)
    require_fits(RECIPES[name])


def test_a_space_that_does_not_exist_has_no_network():
    recipe = dataclasses.replace(RECIPES["cifar10"], space="nats")
    with pytest.raises(InputError, match="unknown search space 'nats'") as error:
        make_network("Genotype()", recipe)
    assert "\n" not in str(error.value)


def test_unknown_recipes_and_fields_are_refused():
    with pytest.raises(InputError, match="unknown recipe 'svhn': choose from cifar10, cifar100"):
        get_recipe("svhn")
    with pytest.raises(InputError, match="another version"):
        from_dict({**dataclasses.asdict(RECIPES["cifar10"]), "mixup": 0.2})
