"""Strict settings for every test."""

import importlib.util
import os
import sys
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest
import type_checks

# `bench` is not installed. Last, so that the package under test is the installed one.
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "docs"))  # my_nas.py
# Processes that tests start find the same package, also where it is not installed.
_package = Path(importlib.util.find_spec("tenas_jax").origin).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(_package), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# Most programs of tests, and of processes they start, run a few times: compiled in half the time.
_flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if jax.__version_info__ < (0, 11):  # later ones do not have the other emitters
    _flags += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)
# A busy machine is no reason to fail.
hypothesis.settings.register_profile("strict", deadline=None)
hypothesis.settings.load_profile("strict")
# Before anything imports the package.
jaxtyping.jaxtyped = type_checks.first_calls


@pytest.fixture(autouse=True)
def _types_are_checked_in_each_test():
    type_checks.counts.clear()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values from the original code."""
    return Path(os.environ.get("TENAS_GOLDEN", Path(__file__).parent / "golden"))
