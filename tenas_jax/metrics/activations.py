"""Activation patterns of any JAX model, read off its jaxpr: no hooks, no changes to the model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, Bool

from tenas_jax.errors import InputError

# Primitives that call one jaxpr with their operands, once.
CALLS = ("jit", "closed_call", "remat2", "custom_jvp_call", "custom_vjp_call")
# Primitives that leave zeros zeros, whatever their parameters.
RESHAPING = (
    "broadcast_in_dim",
    "convert_element_type",
    "pvary",
    "reshape",
    "squeeze",
    "transpose",
)

_REMEDY = "apply the ReLU outside, or loop with lax.scan instead of lax.while_loop"

Found = list[tuple[Bool[Array, "n neurons"], Bool[Array, "neurons"]]]
"""For each ReLU its pattern, and which of its neurons were executed."""


def activation_patterns(f: Callable[..., Any]) -> Callable[..., Bool[Array, "n neurons"]]:
    """Transform a model into its activation patterns: which ReLUs are active for which sample.

    A_ij = [z_j(x_i) > 0] with z_j the output of neuron j (TE-NAS, equation 4). Neurons are the
    elements of every `jax.nn.relu` and every other floating-point maximum with a constant zero
    (`jnp.maximum(x, 0)`; so a `relu6` counts by the maximum in it, a leaky ReLU has none), also in
    `jit`, `vmap`, `remat` and functions with derivatives of their own. In a `scan` the neurons of
    each step count. A maximum that a square root is taken of, perhaps averaged before, is no
    neuron: normalization layers clamp variances so.

    Args:
        f: a function of pytrees of arrays that returns one array [n, ...], samples first. Where the
            output of a ReLU has n samples on its first axis or on one other axis, these are the
            samples. (`jax.vmap` may move them from the first axis: there, take an n that is not
            also a width of the model.)

    Returns:
        A function of the same arguments that returns the patterns [n, neurons], the ReLUs in order
        of execution. It can be transformed by `jit` and `vmap`. It raises `InputError` if `f`
        returns something else, has no ReLU, has one inside `lax.while_loop` or another primitive
        that cannot be followed, or has one without an axis of samples. NaN is inactive, and so is
        every neuron in a branch of `lax.cond` that was not taken.

    Example:
        >>> weights = jnp.array([[1.0, -1.0]])
        >>> x = jnp.array([[2.0], [-2.0]])
        >>> activation_patterns(lambda x: jax.nn.relu(x @ weights))(x).tolist()
        [[True, False], [False, True]]
    """
    return lambda *args: executed_patterns(f)(*args)[0]


def executed_patterns(
    f: Callable[..., Any], *, required: bool = True
) -> Callable[..., tuple[Bool[Array, "n neurons"], Bool[Array, "neurons"]]]:
    """Transform a model into its activation patterns, and into which of its neurons were executed.

    Args:
        f: see `activation_patterns`.
        required: whether a model without a ReLU is an error; otherwise it has 0 neurons.

    Returns:
        A function of the same arguments that returns the patterns [n, neurons], and for each neuron
        whether it was executed: in a branch of `lax.cond` that was not taken it was not. It raises
        `InputError` where `activation_patterns` does.

    Example:
        >>> def f(use, x):
        ...     return jax.lax.cond(use, jax.nn.relu, lambda x: x, x)
        >>> patterns, executed = executed_patterns(f)(False, jnp.ones((3, 2)))
        >>> patterns.any().item(), executed.tolist()
        (False, [False, False])
    """

    def patterns(*args: Any) -> tuple[Bool[Array, "n neurons"], Bool[Array, "neurons"]]:
        scope = _Scope(jax.make_jaxpr(f)(*args), lambda _: False)
        n = _num_samples(scope.jaxpr)
        _, found = _interpret(scope, jax.tree.leaves(args), n)
        if not found and required:
            raise InputError("the model has no ReLU: use jax.nn.relu or jnp.maximum(x, 0)")
        if not found:
            return jnp.zeros((n, 0), bool), jnp.zeros(0, bool)
        parts, executed = zip(*found, strict=True)
        return jnp.concatenate(parts, 1), jnp.concatenate(executed)

    return patterns


@dataclass(frozen=True)
class _Scope:
    """A jaxpr, and which of its inputs are known to be zero wherever it is called."""

    jaxpr: ClosedJaxpr
    is_zero_input: Callable[[int], bool]

    @cached_property
    def _constants(self) -> dict[Var, Any]:
        return dict(zip(self.jaxpr.jaxpr.constvars, self.jaxpr.consts, strict=True))

    @cached_property
    def _inputs(self) -> dict[Var, int]:
        return {var: i for i, var in enumerate(self.jaxpr.jaxpr.invars)}

    @cached_property
    def _producers(self) -> dict[Var, JaxprEqn]:
        return {var: eqn for eqn in self.jaxpr.eqns for var in eqn.outvars}

    def is_zero(self, atom: Var | Literal) -> bool:
        """Whether a value is zero, whatever the arguments; only a maximum's operand needs it."""
        if isinstance(atom, Literal):
            return not np.any(atom.val)
        if atom in self._constants:
            constant = self._constants[atom]
            return not isinstance(constant, jax.core.Tracer) and not np.asarray(constant).any()
        if atom in self._inputs:
            return self.is_zero_input(self._inputs[atom])
        eqn = self._producers[atom]
        return eqn.primitive.name in RESHAPING and self.is_zero(eqn.invars[0])

    def is_relu(self, eqn: JaxprEqn) -> bool:
        """Whether it is a maximum with zero that makes neurons."""
        result: Any = eqn.outvars[0].aval
        return (
            eqn.primitive.name == "max"
            and jnp.issubdtype(result.dtype, jnp.floating)
            and any(map(self.is_zero, eqn.invars))
            and not self._is_rooted(eqn.outvars[0])
        )

    def _is_rooted(self, var: Var) -> bool:
        """Whether a square root is taken of a value or of an average in which it is."""
        reached = {var}
        for eqn in self.jaxpr.eqns:
            if any(not isinstance(atom, Literal) and atom in reached for atom in eqn.invars):
                if eqn.primitive.name in ("sqrt", "rsqrt"):
                    return True
                if _averages(eqn):
                    reached.update(eqn.outvars)
        return False

    def has_relu(self, eqn: JaxprEqn) -> bool:
        """Whether there is a ReLU in what an equation calls, or it is one itself."""
        return self.is_relu(eqn) or any(
            inner.has_relu(each) for inner in self.inner_scopes(eqn) for each in inner.jaxpr.eqns
        )

    def inner_scopes(self, eqn: JaxprEqn) -> Iterator["_Scope"]:
        """What an equation calls, in the order of its parameters."""
        name = eqn.primitive.name
        for jaxpr in _jaxprs(eqn):
            operands: Sequence[Var | Literal] = ()
            # A zero handed to `custom_jvp` does not count: softplus(x) is logaddexp(x, 0), which
            # has a maximum of its two arguments and is smooth.
            if name in CALLS and name != "custom_jvp_call":
                operands = eqn.invars
            elif name == "cond":
                operands = eqn.invars[1:]
            elif name == "scan":
                operands = eqn.invars[: _scan_arity(eqn, jaxpr)[0]]
            yield _Scope(jaxpr, partial(self._is_zero_operand, operands))

    def _is_zero_operand(self, operands: Sequence[Var | Literal], i: int) -> bool:
        return i < len(operands) and self.is_zero(operands[i])


def _interpret(scope: _Scope, args: Sequence[Any], n: int) -> tuple[list[Any], Found]:
    """The outputs of a jaxpr and the patterns of its ReLUs."""
    jaxpr = scope.jaxpr.jaxpr
    values = dict(zip(jaxpr.constvars, scope.jaxpr.consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)
    found: Found = []

    def read(atom: Var | Literal) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if scope.is_relu(eqn):
            outputs = _bind(eqn, operands)
            pattern = _pattern(outputs[0], n)
            found.append((pattern, jnp.ones(pattern.shape[1], bool)))
        elif not scope.has_relu(eqn):
            outputs = _bind(eqn, operands)
        else:
            outputs, inner = _interpret_call(scope, eqn, operands, n)
            found.extend(inner)
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars], found


def _interpret_call(
    scope: _Scope, eqn: JaxprEqn, operands: Sequence[Any], n: int
) -> tuple[list[Any], Found]:
    name = eqn.primitive.name
    if name == "scan":
        return _interpret_scan(scope, eqn, operands, n)
    if name == "cond":
        return _interpret_cond(scope, eqn, operands, n)
    if name not in CALLS:
        raise InputError(f"a ReLU inside the primitive {name!r} cannot be followed: {_REMEDY}")
    (inner,) = scope.inner_scopes(eqn)
    return _interpret(inner, operands, n)


def _interpret_cond(
    scope: _Scope, eqn: JaxprEqn, operands: Sequence[Any], n: int
) -> tuple[list[Any], Found]:
    """Every branch returns the neurons of all: its own, and zeros for those of the others."""
    index, *args = operands
    inner = list(scope.inner_scopes(eqn))
    shapes = [jax.eval_shape(lambda *args, b=b: _interpret(b, args, n)[1], *args) for b in inner]

    def branch(chosen: int) -> Callable[..., tuple[list[Any], list[Found]]]:
        def run(*args: Any) -> tuple[list[Any], list[Found]]:
            outputs, own = _interpret(inner[chosen], args, n)
            absent = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return outputs, [own if i == chosen else each for i, each in enumerate(absent)]

        return run

    outputs, found = lax.switch(index, [branch(i) for i in range(len(inner))], *args)
    return outputs, [each for part in found for each in part]


def _interpret_scan(
    scope: _Scope, eqn: JaxprEqn, operands: Sequence[Any], n: int
) -> tuple[list[Any], Found]:
    (inner,) = scope.inner_scopes(eqn)
    constants, carries = _scan_arity(eqn, inner.jaxpr)

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], tuple[list[Any], Any]]:
        outputs, found = _interpret(inner, [*operands[:constants], *carry, *xs], n)
        parts, executed = zip(*found, strict=True)
        neurons = jnp.concatenate(parts, 1), jnp.concatenate(executed)
        return outputs[:carries], (outputs[carries:], neurons)

    carry, (ys, (patterns, executed)) = lax.scan(
        step,
        list(operands[constants : constants + carries]),
        list(operands[constants + carries :]),
        **{name: eqn.params[name] for name in ("length", "reverse", "unroll")},
    )
    # All ReLUs of the first step, then those of the second: the order of execution.
    order = slice(None, None, -1 if eqn.params["reverse"] else 1)
    by_step = jnp.moveaxis(patterns[order], 0, 1).reshape(n, -1)
    return [*carry, *ys], [(by_step, executed[order].reshape(-1))]


def _scan_arity(eqn: JaxprEqn, body: ClosedJaxpr) -> tuple[int, int]:
    """Numbers of constants and of carries: what the body takes whole and what it returns whole.

    The parameters that hold them differ among versions of JAX.
    """

    def whole(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True))

    carries = whole(eqn.outvars, body.jaxpr.outvars)
    return whole(eqn.invars, body.jaxpr.invars) - carries, carries


def _jaxprs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):  # in newer versions of JAX the only kind
                yield each
            elif isinstance(each, Jaxpr):
                yield ClosedJaxpr(each, ())


def _bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _pattern(output: Array, n: int) -> Bool[Array, "n _"]:
    axes = [axis for axis, length in enumerate(output.shape) if length == n]
    if not axes or (axes[0] > 0 and len(axes) > 1):
        raise InputError(
            f"a ReLU's output has shape {output.shape} where the model returns {n} samples: "
            "it must have them on its first axis or on the only one of that length"
        )
    return jnp.moveaxis(output > 0, axes[0], 0).reshape(n, -1)


def _num_samples(jaxpr: ClosedJaxpr) -> int:
    shapes = [aval.shape for aval in jaxpr.out_avals]
    if len(shapes) != 1 or not shapes[0]:
        raise InputError(
            f"the model returns arrays of shapes {shapes}: it must return one array [n, ...]"
        )
    return int(shapes[0][0])


def _averages(eqn: JaxprEqn) -> bool:
    """Whether an equation may be a step of a running average, or adds an epsilon to it."""
    name = eqn.primitive.name
    scales = name == "mul" and any(isinstance(atom, Literal) for atom in eqn.invars)
    return scales or name in ("add", "select_n", *RESHAPING)
