"""Compile programs once, even if their function is defined again."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

PROGRAMS = 16  # most recently used ones to keep; they hold neither functions nor arrays

_programs: OrderedDict[Any, jax.stages.Compiled] = OrderedDict()
_lock = threading.Lock()


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, run as one compiled program when called outside of a trace.

    `jax.jit` looks up programs by the identity of the function, so it compiles again for each new
    lambda. Here every call traces the function and looks up the program by its text: a second
    lambda with the same code is not compiled, and values in closures may change.

    Args:
        f: a function of pytrees; the arrays among their leaves are the program's arguments.

    Returns:
        The function. It is `f` itself under `jit`, `vmap` or `grad`, and if the Python code of `f`
        reads the values of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(compiled(lambda x: x + 1)(jnp.ones(()))) for _ in range(2)]  # compiled once
        [2.0, 2.0]
    """

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if _traced(leaves):
            return f(*args)
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]
        arrays = [leaves[i] for i in places]

        def of_arrays(*arrays: Any) -> Any:
            merged = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
            return f(*jax.tree.unflatten(structure, list(merged.values())))

        try:
            jaxpr, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            return f(*args)
        if _traced(jaxpr.consts):
            return f(*args)
        operands = [*jaxpr.consts, *arrays]

        def program(*operands: Any) -> Any:
            constants = operands[: len(jaxpr.consts)]
            return jax.core.eval_jaxpr(jaxpr.jaxpr, constants, *operands[len(constants) :])

        outputs = _compiled(jax.jit(program).lower(*operands), operands)(*operands)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _traced(leaves: list[Any]) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _compiled(lowered: jax.stages.Lowered, operands: list[Any]) -> jax.stages.Compiled:
    text = lowered.as_text()
    if "callback" in text:  # the text does not say which Python function is called
        return lowered.compile()
    places = tuple(getattr(operand, "sharding", None) for operand in operands)
    key = hashlib.sha256(text.encode()).digest(), places, jax.config.values["jax_default_device"]
    with _lock:
        program = _programs.pop(key, None)
    program = program or lowered.compile()
    with _lock:
        _programs[key] = program
        while len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    return program
