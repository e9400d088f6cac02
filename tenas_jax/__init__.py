"""Training-free neural architecture search (TE-NAS) in JAX."""

from tenas_jax.activations import activation_patterns
from tenas_jax.errors import InputError
from tenas_jax.linear_regions import count_linear_regions, linear_regions
from tenas_jax.ntk import condition_number, empirical_ntk, ntk_condition_number

__all__ = [
    "InputError",
    "activation_patterns",
    "condition_number",
    "count_linear_regions",
    "empirical_ntk",
    "linear_regions",
    "ntk_condition_number",
]
