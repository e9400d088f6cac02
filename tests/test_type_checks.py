"""The types of this package are checked while its tests run."""

import pytest
import type_checks
from jaxtyping import TypeCheckError

from tenas_jax.spaces import NAS_BENCH_201


def test_the_first_calls_are_checked():
    for _ in range(type_checks.CALLS):
        with pytest.raises(TypeCheckError, match="mask"):
            NAS_BENCH_201.to_string("no mask")
    with pytest.raises(AttributeError):  # of the function itself
        NAS_BENCH_201.to_string("no mask")
