"""The recipes are those published, and a field that cannot be used ends with one line."""

import dataclasses
import json

import pytest

from tenas_jax.errors import InputError
from tenas_jax.training.recipes import RECIPES, from_dict, get_recipe
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
        ("learning_rate", 0.0, "learning_rate must be more than 0, not 0.0"),
        ("weight_decay", float("nan"), "weight_decay must be at least 0, not nan"),
        ("drop_path", 1.0, "drop_path must be less than 1, not 1.0"),
        ("clip_norm", -1.0, "clip_norm must be more than 0, not -1.0"),
        ("seed", 2**32, "seed must be at most 4294967295"),
        ("warmup_epochs", 600, "warmup_epochs 600 leaves nothing of 600 epochs"),
        ("image_size", 30, "image_size must be a multiple of 4 with the stem cifar, not 30"),
        ("image_size", 16, "the auxiliary head needs image_size 32, not 16: give auxiliary 0"),
    ],
)
def test_unusable_fields_are_explained(name, value, fault):
    with pytest.raises(InputError, match=fault) as error:
        dataclasses.replace(RECIPES["cifar10"], **{name: value})
    assert "\n" not in str(error.value)


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
