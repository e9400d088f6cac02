"""How tests compile what they run a few times: hardly optimized, in an eighth of the time."""

from functools import partial

import jax

from tenas_jax.host.devices import compiler_options

QUICK = {**compiler_options(jax.default_backend()), "xla_backend_optimization_level": 0}

quick_jit = partial(jax.jit, compiler_options=QUICK)
