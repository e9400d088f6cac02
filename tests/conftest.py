"""Strict settings for every test."""

import os
from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# A busy machine is no reason to fail.
hypothesis.settings.register_profile("strict", deadline=None)
hypothesis.settings.load_profile("strict")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values from the original code."""
    return Path(os.environ.get("TENAS_GOLDEN", Path(__file__).parent / "golden"))
