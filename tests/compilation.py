"""How tests compile what they run a few times, in an eighth of the time, and what they run long."""

from functools import partial

import jax

from tenas_jax.host.devices import compiler_options

QUICK = {**compiler_options(jax.default_backend()), "xla_backend_optimization_level": 0}
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}

quick_jit = partial(jax.jit, compiler_options=QUICK)
optimized_jit = partial(jax.jit, compiler_options=OPTIMIZED)  # `conftest.py` turns it off
