"""Multiply-adds of a program, read from its jaxpr.

As in the tables of NAS-Bench-201 and the papers on the DARTS space, convolutions and matrix
products count; batch normalization, activations and pooling do not.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from tenas_jax.errors import InputError

Path = tuple[str, ...]  # names of modules, from the outermost to the innermost
MARK = "@"  # prefix of module names among the scopes of a program


def flops(f: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of all convolutions and matrix products in one call of a function.

    Args:
        f: a function that JAX can trace.
        *args: its arguments; shapes suffice (`jax.ShapeDtypeStruct`).

    Raises:
        InputError: the number depends on values: a loop of unknown length, or branches that differ.

    Example:
        >>> flops(jax.numpy.matmul, jax.numpy.zeros((2, 3)), jax.numpy.zeros((3, 5)))
        30
    """
    return sum(products(jax.make_jaxpr(f)(*args).jaxpr, ()).values())


def products(jaxpr: core.Jaxpr, path: Path) -> Counter[Path]:
    """Multiply-adds of a program by the module they belong to.

    Args:
        jaxpr: the program. Modules are the scopes whose names start with `MARK`.
        path: the module that the whole program belongs to.

    Raises:
        InputError: see `flops`.
    """
    counts: Counter[Path] = Counter()
    for equation in jaxpr.eqns:
        primitive = equation.primitive.name
        scopes = str(equation.source_info.name_stack).split("/")
        marked = [scope for scope in scopes if scope.startswith(MARK)]
        here = tuple(marked[-1].removeprefix(MARK).split(".")) if marked else path
        if primitive in PRODUCTS:
            counts[here] += PRODUCTS[primitive](equation)
        programs = [products(part, here) for part in core.jaxprs_in_params(equation.params)]
        if primitive == "cond":
            if any(each != programs[0] for each in programs):
                raise InputError("the branches of a cond cost differently: there is no exact count")
            programs = programs[:1]
        if primitive == "while" and any(programs):
            raise InputError("a loop runs an unknown number of times: there is no exact count")
        times = equation.params["length"] if primitive == "scan" else 1
        for program in programs:
            for module, count in program.items():
                counts[module] += times * count
    return counts


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])
    outputs: int = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs


def _matrix_product(equation: core.JaxprEqn) -> int:
    left = _shape(equation.invars[0])
    (contracted, _), _ = equation.params["dimension_numbers"]
    each: int = math.prod(left[axis] for axis in contracted)
    return math.prod(_shape(equation.outvars[0])) * each


def _shape(variable: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = variable.aval.shape
    return shape


PRODUCTS: dict[str, Callable[[core.JaxprEqn], int]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _matrix_product,
}
