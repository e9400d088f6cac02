"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import tenas_jax

MODULES = [tenas_jax.__name__] + [
    module.name for module in pkgutil.walk_packages(tenas_jax.__path__, "tenas_jax.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
