"""Named weight initializers of convolution and classifier kernels.

The original passes a misspelt name and falls through in silence to PyTorch's default; here an unknown
name raises and lists the choices.
"""

from jax.nn.initializers import variance_scaling
from jax.nn.initializers import Initializer

from tenas_jax.errors import InputError

INITIALIZERS: dict[str, Initializer] = {
    # kaiming_uniform(a=sqrt(5)), PyTorch's default: uniform with bound 1 / sqrt(fan_in).
    "pytorch": variance_scaling(1.0 / 3.0, "fan_in", "uniform"),
    "kaiming_normal_fan_in": variance_scaling(2.0, "fan_in", "normal"),
    "kaiming_normal_fan_out": variance_scaling(2.0, "fan_out", "normal"),
}


def get_initializer(name: str) -> Initializer:
    """The initializer of that name, for kernels of shape [..., in, out].

    Args:
        name: a key of `INITIALIZERS`.

    Returns:
        A function of (key, shape, dtype).

    Raises:
        InputError: the name is unknown.

    Example:
        >>> get_initializer("kaiming_normal")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown initializer 'kaiming_normal': choose one of \
kaiming_normal_fan_in, kaiming_normal_fan_out, pytorch
    """
    if name not in INITIALIZERS:
        choices = ", ".join(sorted(INITIALIZERS))
        raise InputError(f"unknown initializer {name!r}: choose one of {choices}")
    return INITIALIZERS[name]
