"""Loads neural-tangents 0.6.5, which is archived, on newer versions of JAX.

Names that JAX has removed are supplied during the import and taken away afterwards. The package
`experimental`, which imports TensorFlow, is replaced by an empty module during the import.
"""

import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
from jaxtyping import Array, Float, Num, PyTree

from tenas_jax.errors import InputError

# The implementations that work on current JAX, by neural-tangents' names.
IMPLEMENTATIONS = ("jacobian_contraction", "ntk_vector_products")

_import_lock = threading.Lock()


def empirical_ntk(
    apply_fn: Callable[[PyTree, Num[Array, "n ..."]], Float[Array, "n classes"]],
    params: PyTree,
    x: Num[Array, "n ..."],
    x2: Num[Array, "m ..."] | None = None,
    *,
    implementation: str = "jacobian_contraction",
    trace: bool = False,
    per_sample: bool = False,
) -> Float[Array, "n m"]:
    """Empirical NTK of the summed outputs or its trace over outputs, computed by neural-tangents.

    With f_i the sum over classes of the outputs for sample i (TE-NAS, eq. 3, as its code sums
    them): K_ij = <df_i / dparams, df_j / dparams>. The derivatives are those of the whole batch,
    because train-mode batch normalization couples the samples, unless `per_sample` says otherwise.
    The trace is the sum of the kernels of single outputs, where neural-tangents takes their mean.

    Args:
        apply_fn: maps `(params, x)` to the outputs `[n, classes]`.
        params: the parameters the kernel is taken over.
        x: the batch, samples along the first axis.
        x2: another batch, for the kernel between the two; None: `x` itself.
        implementation: `jacobian_contraction`, or `ntk_vector_products`, which needs forward-mode
            differentiation and so rejects an `apply_fn` containing a `jax.custom_vjp`.
        trace: whether to sum the kernels of the outputs instead of the outputs (`trace_axes`).
        per_sample: whether each sample is differentiated alone (`vmap_axes`), which is wrong where
            samples interact; nothing is checked here.

    Returns:
        The kernel `[n, m]`, `[n, n]` without `x2`, in the data type of the outputs.

    Raises:
        InputError: the implementation is unknown or does not work on current JAX.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> empirical_ntk(lambda w, x: x @ w, jnp.ones((2, 1)), x).tolist()
        [[1.0, 1.0], [1.0, 5.0]]
    """
    choices = " or ".join(IMPLEMENTATIONS)
    if implementation in ("structured_derivatives", "auto"):
        raise InputError(
            f"neural-tangents' {implementation!r} does not work on current JAX: use {choices}"
        )
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"unknown NTK implementation {implementation!r}: use {choices}")

    def summed_outputs(params: PyTree, x: Num[Array, "n ..."]) -> Float[Array, " n"]:
        return apply_fn(params, x).sum(axis=-1)

    def scaled_outputs(params: PyTree, x: Num[Array, "n ..."]) -> Float[Array, "n classes"]:
        outputs = apply_fn(params, x)
        scaled: Array = outputs * outputs.shape[-1] ** 0.5  # their trace is a mean
        return scaled

    neural_tangents = load_neural_tangents()
    ntk_fn = neural_tangents.empirical_ntk_fn(
        scaled_outputs if trace else summed_outputs,
        trace_axes=(-1,) if trace else (),
        vmap_axes=0 if per_sample else None,
        implementation=neural_tangents.NtkImplementation[implementation.upper()],
    )
    with warnings.catch_warnings():
        # NTK-vector products take `jnp.size` of a `ShapeDtypeStruct`; deprecated in JAX 0.11.
        warnings.filterwarnings("ignore", "size requires ndarray", DeprecationWarning)
        kernel: Array = ntk_fn(x, x2, params)
    return kernel


def load_neural_tangents() -> ModuleType:
    """Import the module `neural_tangents` at the first call, and return it.

    Returns:
        The module, without its `experimental` package.

    Example:
        >>> load_neural_tangents().__version__
        '0.6.5'
    """
    with _import_lock:  # the patches below are global
        return _import_neural_tangents()


@functools.cache
def _import_neural_tangents() -> ModuleType:
    if "neural_tangents" in sys.modules:
        return sys.modules["neural_tangents"]
    with ExitStack() as stack:
        for module, names in _removed_names():
            for name, value in names.items():
                stack.enter_context(_missing_attribute(module, name, value))
        stack.enter_context(_missing_module(_jax_util()))
        stack.enter_context(_missing_module(ModuleType("neural_tangents.experimental")))
        module = importlib.import_module("neural_tangents")
        del module.experimental
        return module


def _removed_names() -> tuple[tuple[ModuleType, dict[str, Any]], ...]:
    extend = jax.extend.core
    return (
        (
            jax.core,
            {
                "Jaxpr": extend.Jaxpr,
                "JaxprEqn": extend.JaxprEqn,
                "Literal": extend.Literal,
                "Primitive": extend.Primitive,
                "Var": extend.Var,
            },
        ),
        # Only a key in the table of rules for structured derivatives; nothing emits it.
        (jax.interpreters.ad, {"zeros_like_p": extend.Primitive("zeros_like")}),
    )


def _jax_util() -> ModuleType:
    module = ModuleType("jax.util")
    vars(module)["safe_map"] = lambda f, *args: [f(*xs) for xs in zip(*args, strict=True)]
    vars(module)["safe_zip"] = lambda *args: list(zip(*args, strict=True))
    return module


@contextmanager
def _missing_attribute(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    if hasattr(module, name):
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)


@contextmanager
def _missing_module(module: ModuleType) -> Iterator[None]:
    name = module.__name__
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
