"""The operations of a program that are nonlinear in its samples, read from its jaxpr.

The primitive of an equation and the roles of its operands determine whether it is linear in the
samples, piecewise linear, or neither. The computation of a normalization's scale counts as linear.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

Atom = Var | Literal

# Primitives that call one jaxpr once, with their operands.
CALLS = ("jit", "closed_call", "remat2", "custom_jvp_call", "custom_vjp_call")
# Piecewise-linear primitives.
EXTREMA = ("argmax", "argmin", "reduce_max", "reduce_min")
WINDOWS = ("reduce_window_max", "reduce_window_min")
COMPARISONS = ("ge", "gt", "le", "lt")
_PIECEWISE = (*EXTREMA, *WINDOWS, *COMPARISONS, "abs", "clamp", "max", "min", "sign")
# Primitives whose results are constant but for jumps. Equality holds on no piece.
_STEPS = (*COMPARISONS, "argmax", "argmin", "eq", "is_finite", "ne", "random_bits", "sign")
_BROADCASTING = ("add", "broadcast_in_dim", "broadcast_to", "div", "max", "mul", "select_n", "sub")
_SUMS = ("psum", "psum_invariant", "reduce_sum", "reduce_window_sum")
_CONTRACTIONS = ("conv_general_dilated", "dot_general", "ragged_dot", "ragged_dot_general")
_POWERS = ("integer_pow", "square")
_ROOTS = ("cbrt", "pow", "rsqrt", "sqrt")
# Smooth primitives whose argument's sign is meaningless.
_NO_SIGNS = (*_CONTRACTIONS, *_POWERS, *_ROOTS, "mul", "div")
# Linear in all operands that may depend on samples, except indices and predicates.
_LINEAR = frozenset(
    """
    add add_any all_gather all_gather_invariant all_to_all broadcast_in_dim broadcast_to complex
    concatenate conj copy copy_p cumsum device_put dynamic_slice dynamic_update_slice expand_dims
    fft gather imag layout_constraint mesh_cast name neg optimization_barrier pad pbroadcast pcast
    ppermute psum psum_invariant pvary real reduce_precision reduce_scatter reduce_sum
    reduce_window_sum reduced_vary_cast_p reshape reshard rev scatter scatter-add scatter-sub
    select_and_gather_add select_and_scatter_add select_n sharding_constraint slice split squeeze
    stack stop_gradient sub tie tile transpose unreduced_psum unstack vary_unreduced_cast_p
    with_memory_space_constraint zeros_like
    """.split()  # noqa: SIM905
)


class Role(IntEnum):
    """How a value depends on the samples; a sum has the greatest role among its terms."""

    CONSTANT = 0
    """Not at all."""
    STEP = 1
    """Only through comparisons: piecewise constant."""
    SCALE = 2
    """A root of a shared value, which normalizations divide by."""
    ROOT = 3
    """A root of any other value."""
    SHARED = 4
    """A sum over elements, or a value broadcast to several."""
    ANY = 5
    """In any other way."""


class Reach(IntEnum):
    """How a value reaches the output of the program, other than by a normalization's scale."""

    NOT = 0
    CUT = 1
    """Only through `stop_gradient`."""
    WHOLE = 2


@dataclass(frozen=True)
class Scope:
    """A jaxpr, and how its values depend on the samples and reach the output of the program."""

    jaxpr: ClosedJaxpr
    roles: dict[Var, Role]
    reach: dict[Var, Reach] = field(default_factory=dict)
    inner: dict[int, tuple["Scope", ...]] = field(default_factory=dict)

    def role(self, atom: Atom) -> Role:
        """How a value depends on the samples."""
        return Role.CONSTANT if isinstance(atom, Literal) else self.roles[atom]

    def scopes(self, eqn: JaxprEqn) -> tuple["Scope", ...]:
        """The scopes of what an equation calls, if its operands depend on the samples."""
        return self.inner.get(id(eqn), ())

    def equations(self) -> Iterator[tuple["Scope", JaxprEqn]]:
        """All equations, including those of what they call, each with its scope."""
        for eqn in self.jaxpr.eqns:
            yield self, eqn
            yield from chain.from_iterable(scope.equations() for scope in self.scopes(eqn))

    def is_piecewise(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is a piecewise-linear nonlinearity of the samples."""
        return (
            eqn.primitive.name in _PIECEWISE
            and _is_real(eqn)
            and any(map(self.role, eqn.invars))
            and not _is_identity(eqn)
            # The maximum that a softmax subtracts cancels.
            and self._reaches(eqn) > (Reach.CUT if eqn.primitive.name in EXTREMA else Reach.NOT)
        )

    def is_smooth(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is a nonlinearity of the samples that is not piecewise linear."""
        if self._reaches(eqn) is Reach.NOT:
            return False
        return _is_smooth(eqn, self._operand_roles(eqn)) or self._is_smooth_function(eqn)

    def smooth_names(self) -> Iterator[str]:
        """The names of the smooth nonlinearities of the samples, in order of execution."""
        for eqn in self.jaxpr.eqns:
            if self.is_smooth(eqn):
                yield _name(eqn)
            else:
                yield from chain.from_iterable(each.smooth_names() for each in self.scopes(eqn))

    def argument(self, eqn: JaxprEqn) -> Atom | None:
        """The argument of a smooth function with one argument.

        For the exponential in a softmax, it is the value before the maximum is subtracted.
        """
        arguments = [atom for atom in eqn.invars if self.role(atom)]
        if len(arguments) != 1 or eqn.primitive.name in _NO_SIGNS or not _is_real(eqn):
            return None
        producers = {var: each for each in self.jaxpr.eqns for var in each.outvars}

        def made_by(atom: Any, name: str) -> JaxprEqn | None:
            producer = None if isinstance(atom, Literal) else producers.get(atom)
            return producer if producer and producer.primitive.name == name else None

        if shifted := made_by(arguments[0], "sub"):
            argument, shift = shifted.invars
            if broadcast := made_by(shift, "broadcast_in_dim"):
                shift = broadcast.invars[0]
            if made_by(shift, "stop_gradient"):
                return argument
        return arguments[0]

    def takes_roots(self) -> bool:
        """Whether the program takes a root of a sample-dependent value, as normalizations do."""
        return any(
            eqn.primitive.name in _ROOTS and any(scope._operand_roles(eqn))
            for scope, eqn in self.equations()
        )

    def _is_smooth_function(self, eqn: JaxprEqn) -> bool:
        """Whether an equation calls a function that is smooth as a whole.

        Those of `jax.nn` and those with custom derivatives: softplus, for example, has a maximum.
        """
        if not (eqn.primitive.name == "custom_jvp_call" or hasattr(jax.nn, _called(eqn) or "-")):
            return False
        inner = [each for scope in self.scopes(eqn) for each in scope.equations()]
        contracts = any(each.primitive.name in _CONTRACTIONS for _, each in inner)
        return not contracts and any(scope.is_smooth(each) for scope, each in inner)

    def _operand_roles(self, eqn: JaxprEqn) -> list[Role]:
        return list(map(self.role, eqn.invars))

    def _reaches(self, eqn: JaxprEqn) -> Reach:
        return max((self.reach.get(var, Reach.NOT) for var in eqn.outvars), default=Reach.NOT)


def analyze(jaxpr: ClosedJaxpr, is_sample: Sequence[bool]) -> Scope:
    """Find how the values of a program depend on the samples and reach its output.

    Args:
        jaxpr: the program.
        is_sample: which of its inputs are samples.

    Example:
        >>> jaxpr = jax.make_jaxpr(lambda p, x: abs(p) * jnp.tanh(abs(x)))(1.0, 2.0)
        >>> scope = analyze(jaxpr, [False, True])
        >>> [scope.is_piecewise(eqn) for eqn in jaxpr.eqns]
        [False, True, False, False]
        >>> list(scope.smooth_names())
        ['tanh']
    """
    scope = _forward(jaxpr, [Role.ANY if each else Role.CONSTANT for each in is_sample])
    _backward(scope, [Reach.WHOLE] * len(jaxpr.out_avals))
    return scope


def scan_arity(eqn: JaxprEqn) -> tuple[int, int]:
    """Numbers of constants and carries of a scan, which its body takes and returns whole.

    The parameters that contain them differ between versions of JAX.
    """

    def whole(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True))

    (body,) = _jaxprs(eqn)
    carries = whole(eqn.outvars, body.jaxpr.outvars)
    return whole(eqn.invars, body.jaxpr.invars) - carries, carries


def _forward(jaxpr: ClosedJaxpr, inputs: Sequence[Role]) -> Scope:
    """A scope with the roles of its values, from those of its inputs."""
    scope = Scope(jaxpr, dict.fromkeys(jaxpr.jaxpr.constvars, Role.CONSTANT))
    scope.roles.update(zip(jaxpr.jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        operands = scope._operand_roles(eqn)
        if not any(operands):
            outputs = [Role.CONSTANT] * len(eqn.outvars)
        elif eqn.primitive.name not in _LINEAR and any(_jaxprs(eqn)):
            outputs, scope.inner[id(eqn)] = _forward_call(eqn, operands)
        else:
            outputs = [_role(eqn, operands)] * len(eqn.outvars)
        scope.roles.update(zip(eqn.outvars, outputs, strict=True))
    return scope


def _forward_call(eqn: JaxprEqn, operands: list[Role]) -> tuple[list[Role], tuple[Scope, ...]]:
    """The roles of the outputs of an equation with jaxprs, and the scopes of these jaxprs."""
    jaxprs, name = list(_jaxprs(eqn)), eqn.primitive.name
    if name in CALLS:
        scope = _forward(jaxprs[0], operands)
        return _outputs(scope), (scope,)
    if name == "cond":
        scopes = tuple(_forward(each, operands[1:]) for each in jaxprs)
        chosen = min(operands[0], Role.STEP)
        return [max(chosen, *each) for each in zip(*map(_outputs, scopes), strict=True)], scopes
    if name == "scan":
        return _forward_loop(jaxprs[0], operands, *scan_arity(eqn))
    if name == "while":  # its predicate has no samples
        constants = eqn.params["body_nconsts"]
        operands = operands[eqn.params["cond_nconsts"] :]
        return _forward_loop(
            eqn.params["body_jaxpr"], operands, constants, len(operands) - constants
        )
    # For other primitives, which operands go to which jaxpr is unknown.
    scopes = tuple(_forward(each, [Role.ANY] * len(each.in_avals)) for each in jaxprs)
    return [Role.ANY] * len(eqn.outvars), scopes


def _forward_loop(
    body: ClosedJaxpr, operands: list[Role], constants: int, carries: int
) -> tuple[list[Role], tuple[Scope, ...]]:
    while True:
        scope = _forward(body, operands)
        before = operands[constants : constants + carries]
        after = list(map(max, before, _outputs(scope)))
        if after == before:
            return _outputs(scope), (scope,)
        operands = [*operands[:constants], *after, *operands[constants + carries :]]


def _outputs(scope: Scope) -> list[Role]:
    return list(map(scope.role, scope.jaxpr.jaxpr.outvars))


def _backward(scope: Scope, outputs: Sequence[Reach]) -> list[Reach]:
    """How the inputs of a scope reach the output, given its outputs; recorded for all values."""

    def reach(atom: Atom, how: Reach) -> None:
        if not isinstance(atom, Literal):
            scope.reach[atom] = max(how, scope.reach.get(atom, Reach.NOT))

    jaxpr = scope.jaxpr.jaxpr
    for atom, how in zip(jaxpr.outvars, outputs, strict=True):
        reach(atom, how)
    for eqn in reversed(jaxpr.eqns):
        after = [scope.reach.get(var, Reach.NOT) for var in eqn.outvars]
        if not any(after):
            continue
        if scope.scopes(eqn):
            before = _backward_call(eqn, scope.scopes(eqn), after)
        else:
            scales = _scales(eqn, scope._operand_roles(eqn))
            how = (
                min(max(after), Reach.CUT) if eqn.primitive.name == "stop_gradient" else max(after)
            )
            before = [Reach.NOT if i in scales else how for i in range(len(eqn.invars))]
        for atom, how in zip(eqn.invars, before, strict=True):
            reach(atom, how)
    return [scope.reach.get(var, Reach.NOT) for var in jaxpr.invars]


def _backward_call(eqn: JaxprEqn, scopes: Sequence[Scope], after: list[Reach]) -> list[Reach]:
    name = eqn.primitive.name
    if name in CALLS:
        return _backward(scopes[0], after)
    if name == "cond":  # its index does not depend on samples
        branches = [_backward(each, after) for each in scopes]
        return [Reach.NOT, *map(max, zip(*branches, strict=True))]
    if name == "scan":
        constants, carries = scan_arity(eqn)
        while True:
            before = _backward(scopes[0], after)
            joined = [*map(max, after, before[constants : constants + carries]), *after[carries:]]
            if joined == after:
                return before
            after = joined
    for scope in scopes:
        _backward(scope, [max(after)] * len(scope.jaxpr.out_avals))
    return [max(after)] * len(eqn.invars)


def _role(eqn: JaxprEqn, operands: list[Role]) -> Role:
    """The role of an equation's outputs, if an operand depends on the samples."""
    name, greatest = eqn.primitive.name, max(operands)
    if name in _STEPS or (name == "convert_element_type" and _is_boolean(eqn.outvars[0])):
        return Role.STEP
    if name in _ROOTS and not any(operands[1:]):
        return {Role.SHARED: Role.SCALE, Role.ANY: Role.ROOT}.get(greatest, greatest)
    if name in _CONTRACTIONS or _is_smooth(eqn, operands):
        return Role.ANY
    sizes = [
        _size(atom) for atom, role in zip(eqn.invars, operands, strict=True) if role is greatest
    ]
    if name in _BROADCASTING and max(sizes) < _size(eqn.outvars[0]):
        return {Role.ROOT: Role.SCALE, Role.ANY: Role.SHARED}.get(greatest, greatest)
    return min(greatest, Role.SHARED) if name in _SUMS else greatest


def _is_smooth(eqn: JaxprEqn, operands: list[Role]) -> bool:
    """Whether an equation is neither linear nor piecewise linear in operands of these roles."""
    name = eqn.primitive.name
    varying = [
        role > Role.STEP and _is_inexact(atom)
        for atom, role in zip(eqn.invars, operands, strict=True)
    ]
    if name in _LINEAR or name in _STEPS or any(_jaxprs(eqn)) or not any(varying):
        return False
    if name in _PIECEWISE:
        return not _is_real(eqn)
    if name == "convert_element_type":
        return not _is_inexact(eqn.outvars[0]) and not _is_boolean(eqn.outvars[0])
    if max(operands) < Role.SHARED and name in (*_POWERS, "mul", "div"):
        return False  # of roots: possibly an inverse standard deviation
    if name == "mul" or name in _CONTRACTIONS:
        return all(varying) and not _scales(eqn, operands)
    if name == "div":
        return varying[1] and not _scales(eqn, operands)
    return True


def _scales(eqn: JaxprEqn, operands: list[Role]) -> list[int]:
    """Which operands of a product or quotient are the scale of a normalization."""
    candidates = {"mul": (0, 1), "div": (1,)}.get(eqn.primitive.name, ())

    def is_scale(i: int) -> bool:
        broadcast = operands[i] is Role.ROOT and _size(eqn.invars[i]) < _size(eqn.outvars[0])
        return operands[i] is Role.SCALE or broadcast

    return [i for i in candidates if max(operands) >= Role.SHARED and is_scale(i)]


def _is_identity(eqn: JaxprEqn) -> bool:
    """Whether an equation is a maximum or minimum with an infinity."""
    thresholds = [atom.val for atom in eqn.invars if isinstance(atom, Literal)]
    return eqn.primitive.name in ("max", "min") and bool(np.isinf(thresholds).any())


def _is_real(eqn: JaxprEqn) -> bool:
    """Whether an equation's operands are real floating-point numbers."""
    return all(jnp.issubdtype(_dtype(atom), jnp.floating) for atom in eqn.invars)


def _is_inexact(atom: Any) -> bool:
    return jnp.issubdtype(_dtype(atom), jnp.inexact)


def _size(atom: Any) -> int:
    return int(atom.aval.size)


def _is_boolean(atom: Any) -> bool:
    return jnp.issubdtype(_dtype(atom), jnp.bool_)


def _dtype(atom: Any) -> Any:
    return getattr(atom.aval, "dtype", None)


def _name(eqn: JaxprEqn) -> str:
    """The function of `jax.nn` that an equation belongs to, or what it calls, or its primitive."""
    traceback = eqn.source_info.traceback
    frames: Any = traceback.frames if traceback else ()
    functions = [each.function_name for each in frames if "/jax/_src/nn/" in each.file_name]
    return functions[-1].strip("_") if functions else _called(eqn) or eqn.primitive.name


def _called(eqn: JaxprEqn) -> str:
    """The name of the function that an equation calls."""
    return str(eqn.params.get("name", "")).lstrip("_") if eqn.primitive.name in CALLS else ""


def _jaxprs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):  # the only kind in newer versions of JAX
                yield each
            elif isinstance(each, Jaxpr):
                yield ClosedJaxpr(each, ())
