"""Activation patterns of any JAX model, read from its jaxpr without hooks or changes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, Bool

from tenas_jax.errors import InputError, quantity
from tenas_jax.metrics.nonlinearities import (
    CALLS,
    EXTREMA,
    WINDOWS,
    Scope,
    analyze,
    scan_arity,
)
from tenas_jax.numerics import highest_precision, require_arrays

SMOOTH = ("refuse", "ignore", "sign")

_REMEDY = "apply the nonlinearity outside, or loop with lax.scan instead of lax.while_loop"

Found = list[tuple[Bool[Array, "n neurons"], Bool[Array, "neurons"]]]
"""The pattern of each nonlinearity, and which of its neurons were executed."""


def activation_patterns(
    f: Callable[..., Any],
    *,
    argnum: int = -1,
    sample_axis: int | None = None,
    smooth: str = "refuse",
    max_pooling: bool = False,
) -> Callable[..., Bool[Array, "n neurons"]]:
    """Transform a model into its activation patterns: which neurons are active for which sample.

    A_ij = [z_j(x_i) > 0] with z_j the output of neuron j (TE-NAS, equation 4). Neurons are the
    elements of every piecewise-linear nonlinearity of the samples, however it is written:

    - a maximum, a minimum or a comparison of floating-point values (`jax.nn.relu`, leaky ReLU,
      `jnp.where(x > 0, x, 0)`, `x * (x > 0)`) is active if the first operand that depends on the
      samples is chosen, or is the greater one;
    - a `clamp`, a ReLU6 or a hard tanh has two thresholds, and two neurons per element;
    - an absolute value or a sign is active if its argument is positive;
    - a maximum over an axis (maxout, global pooling) has a neuron per element, active if it is the
      greatest.

    Values that do not depend on the samples have no neurons, such as a ReLU of a parameter or the
    random numbers of a dropout. The scales of normalization layers, which clamp variances, have
    none either. The transform looks into `jit`, `vmap`, `remat` and functions with custom
    derivatives. In a `scan` the neurons of each step count.

    Args:
        f: a function of pytrees of arrays that returns one array [n, ...], samples first.
        argnum: index of the argument with the samples; by default the last.
        sample_axis: the axis of the samples in the output of a nonlinearity, if several axes have n
            elements and tracing `f` for 2 n samples does not tell them apart.
        smooth: how to treat a smooth nonlinearity (GELU, SiLU, softmax, products of samples), which
            has no linear regions: `refuse` the model, `ignore` the nonlinearity, or use the `sign`
            of its argument as the pattern.
        max_pooling: whether pooling windows count, by which of their elements is the greatest.

    Returns:
        A function of the same arguments that returns the patterns [n, neurons], with nonlinearities
        in order of execution. It can be transformed by `jit` and `vmap`. It raises `InputError` if
        `f` returns something else, has no such nonlinearity, has one inside `lax.while_loop` or
        another primitive that cannot be followed, or has one with an unknown sample axis. NaN is
        inactive, and so are all neurons in a branch of `lax.cond` that was not taken.

    Raises:
        InputError: `smooth` is unknown.

    Example:
        >>> weights = jnp.array([[1.0, -1.0]])
        >>> x = jnp.array([[2.0], [-2.0]])
        >>> activation_patterns(lambda x: jax.nn.relu(x @ weights))(x).tolist()
        [[True, False], [False, True]]
        >>> activation_patterns(lambda x: jax.nn.gelu(x @ weights), smooth="sign")(x).tolist()
        [[True, False], [False, True]]
    """
    patterns = executed_patterns(
        f, argnum=argnum, sample_axis=sample_axis, smooth=smooth, max_pooling=max_pooling
    )
    return lambda *args: patterns(*args)[0]


def executed_patterns(
    f: Callable[..., Any],
    *,
    required: bool = True,
    argnum: int = -1,
    sample_axis: int | None = None,
    smooth: str = "refuse",
    max_pooling: bool = False,
) -> Callable[..., tuple[Bool[Array, "n neurons"], Bool[Array, "neurons"]]]:
    """Like `activation_patterns`, but also return which neurons were executed.

    Args:
        f: see `activation_patterns`.
        required: whether a model without neurons is an error.
        argnum: see `activation_patterns`.
        sample_axis: see `activation_patterns`.
        smooth: see `activation_patterns`.
        max_pooling: see `activation_patterns`.

    Returns:
        A function of the same arguments that returns the patterns [n, neurons], and for each neuron
        whether it was executed: it was not if it is in a branch of `lax.cond` that was not taken.
        It raises `InputError` in the same cases as `activation_patterns`.

    Raises:
        InputError: `smooth` is unknown.

    Example:
        >>> def f(use, x):
        ...     return jax.lax.cond(use, jax.nn.relu, lambda x: x, x)
        >>> patterns, executed = executed_patterns(f)(False, jnp.ones((3, 2)))
        >>> patterns.any().item(), executed.tolist()
        (False, [False, False])
    """
    if smooth not in SMOOTH:
        raise InputError(f"unknown smooth={smooth!r}: choose one of {', '.join(SMOOTH)}")

    @highest_precision()
    def patterns(*args: Any) -> tuple[Bool[Array, "n neurons"], Bool[Array, "neurons"]]:
        require_arrays(arguments=args)
        position = argnum % len(args)
        program = analyze(jax.make_jaxpr(f)(*args), _is_sample(args, position))
        n = _num_samples(program.jaxpr)
        names = list(dict.fromkeys(program.smooth_names()))
        if names and smooth == "refuse":
            raise InputError(
                f"the model is smooth in {', '.join(names)} (or has pieces there that are not "
                "counted): give smooth='sign' to count the signs of the arguments, or "
                "smooth='ignore' to leave it out"
            )
        reader = _Reader(n, smooth == "sign", max_pooling)

        twice = _twice_the_samples(f, args, position, n)
        reader.find_axes(program, twice, sample_axis)
        _, found = reader.interpret(program, jax.tree.leaves(args))
        if not found and required:
            raise InputError(
                f"the model has no piecewise-linear nonlinearity of its argument {position}, the "
                "samples: use one such as jax.nn.relu, or give argnum= if another has the samples"
            )
        if not found:
            return jnp.zeros((n, 0), bool), jnp.zeros(0, bool)
        parts, executed = zip(*found, strict=True)
        return jnp.concatenate(parts, 1), jnp.concatenate(executed)

    return patterns


@dataclass(frozen=True)
class _Reader:
    """Reads the patterns of a program while executing it.

    Args:
        n: number of samples.
        sign: whether smooth functions of one argument have neurons.
        max_pooling: whether pooling windows have neurons.
        axes: the sample axis of each equation with neurons, by its identity and that of its scope.
    """

    n: int
    sign: bool
    max_pooling: bool
    axes: dict[tuple[int, int], int] = field(default_factory=dict)

    def has_neurons(self, scope: Scope, eqn: JaxprEqn) -> bool:
        """Whether an equation is itself a nonlinearity that counts."""
        if scope.is_piecewise(eqn):
            return self.max_pooling or eqn.primitive.name not in WINDOWS
        return self.sign and scope.is_smooth(eqn) and scope.argument(eqn) is not None

    def neurons(self, scope: Scope) -> Iterator[tuple[Scope, JaxprEqn]]:
        """All equations that have neurons, in order of execution."""
        for eqn in scope.jaxpr.eqns:
            if self.has_neurons(scope, eqn):
                yield scope, eqn
            else:
                yield from self.inner_neurons(scope, eqn)

    def inner_neurons(self, scope: Scope, eqn: JaxprEqn) -> Iterator[tuple[Scope, JaxprEqn]]:
        """The equations with neurons in what an equation calls, unless that is smooth."""
        if not scope.is_smooth(eqn):
            yield from chain.from_iterable(map(self.neurons, scope.scopes(eqn)))

    def find_axes(self, program: Scope, twice: Scope | None, sample_axis: int | None) -> None:
        """Find the sample axis of all neurons, if necessary from the program of 2 n samples."""
        neurons = list(self.neurons(program))
        shapes = [_pattern_shape(*each) for each in neurons]
        doubled = [_pattern_shape(*each) for each in self.neurons(twice)] if twice else []
        told = list(map(len, doubled)) == list(map(len, shapes))
        for (scope, eqn), shape, larger in zip(
            neurons, shapes, doubled if told else shapes, strict=True
        ):
            sizes = (self.n, 2 * self.n if told else self.n)
            axes = [i for i, size in enumerate(zip(shape, larger, strict=True)) if size == sizes]
            if len(axes) != 1 and sample_axis is not None:
                given = [i for i in range(len(shape)) if sample_axis in (i, i - len(shape))]
                axes = [i for i in given if shape[i] == self.n] or axes
            if len(axes) != 1:
                remedy = "keep the samples on an axis of their own"
                if axes or not told:
                    remedy = "give sample_axis= to say which axis has them"
                raise InputError(
                    f"the output of {eqn.primitive.name} has shape {shape} where the model returns "
                    f"{quantity(self.n, 'sample')}: {remedy}"
                )
            self.axes[id(scope), id(eqn)] = axes[0]

    def interpret(self, scope: Scope, args: Sequence[Any]) -> tuple[list[Any], Found]:
        """The outputs of a jaxpr and the patterns of its nonlinearities."""
        jaxpr = scope.jaxpr.jaxpr
        values = dict(zip(jaxpr.constvars, scope.jaxpr.consts, strict=True))
        values |= zip(jaxpr.invars, args, strict=True)
        found: Found = []

        def read(atom: Var | Literal) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            if self.has_neurons(scope, eqn):
                outputs = bind(eqn, operands)
                axis = self.axes[id(scope), id(eqn)]
                for bits in self._patterns(scope, eqn, operands, outputs[0], read):
                    pattern = jnp.moveaxis(bits, axis, 0).reshape(self.n, -1)
                    found.append((pattern, jnp.ones(pattern.shape[1], bool)))
            elif any(True for _ in self.inner_neurons(scope, eqn)):
                outputs, inner = self._interpret_call(scope, eqn, operands)
                found.extend(inner)
            else:
                outputs = bind(eqn, operands)
            values |= zip(eqn.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars], found

    def _patterns(
        self,
        scope: Scope,
        eqn: JaxprEqn,
        operands: Sequence[Any],
        output: Array,
        read: Callable[[Any], Any],
    ) -> Iterator[Bool[Array, "..."]]:
        """The patterns of an equation, one per threshold."""
        name = eqn.primitive.name
        if not scope.is_piecewise(eqn):
            yield jnp.greater(read(scope.argument(eqn)), 0)
        elif name in WINDOWS:
            yield _windows(eqn, operands[0]) == output[..., None]
        elif name in EXTREMA:
            axes = eqn.params["axes"]
            best = lax.expand_dims(output, axes)
            if name.startswith("arg"):
                yield lax.broadcasted_iota(best.dtype, operands[0].shape, axes[0]) == best
            else:
                yield operands[0] == best
        else:
            for active in _comparisons(scope, eqn, operands):
                yield jnp.broadcast_to(active, output.shape)

    def _interpret_call(
        self, scope: Scope, eqn: JaxprEqn, operands: Sequence[Any]
    ) -> tuple[list[Any], Found]:
        name = eqn.primitive.name
        if name == "scan":
            return self._interpret_scan(scope, eqn, operands)
        if name == "cond":
            return self._interpret_cond(scope, eqn, operands)
        if name not in CALLS:
            raise InputError(
                f"a nonlinearity inside the primitive {name!r} cannot be followed: {_REMEDY}"
            )
        (inner,) = scope.scopes(eqn)
        return self.interpret(inner, operands)

    def _interpret_cond(
        self, scope: Scope, eqn: JaxprEqn, operands: Sequence[Any]
    ) -> tuple[list[Any], Found]:
        """Every branch returns the neurons of all branches, with zeros for those of the others."""
        index, *args = operands
        inner = scope.scopes(eqn)
        shapes = [
            jax.eval_shape(lambda *args, b=b: self.interpret(b, args)[1], *args) for b in inner
        ]

        def branch(chosen: int) -> Callable[..., tuple[list[Any], list[Found]]]:
            def run(*args: Any) -> tuple[list[Any], list[Found]]:
                outputs, own = self.interpret(inner[chosen], args)
                absent = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
                return outputs, [own if i == chosen else each for i, each in enumerate(absent)]

            return run

        outputs, found = lax.switch(index, [branch(i) for i in range(len(inner))], *args)
        return outputs, [each for part in found for each in part]

    def _interpret_scan(
        self, scope: Scope, eqn: JaxprEqn, operands: Sequence[Any]
    ) -> tuple[list[Any], Found]:
        (inner,) = scope.scopes(eqn)
        constants, carries = scan_arity(eqn)

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], tuple[list[Any], Any]]:
            outputs, found = self.interpret(inner, [*operands[:constants], *carry, *xs])
            parts, executed = zip(*found, strict=True)
            neurons = jnp.concatenate(parts, 1), jnp.concatenate(executed)
            return outputs[:carries], (outputs[carries:], neurons)

        carry, (ys, (patterns, executed)) = lax.scan(
            step,
            list(operands[constants : constants + carries]),
            list(operands[constants + carries :]),
            **{name: eqn.params[name] for name in ("length", "reverse", "unroll")},
        )
        # In order of execution: all nonlinearities of the first step, then those of the second.
        order = slice(None, None, -1 if eqn.params["reverse"] else 1)
        by_step = jnp.moveaxis(patterns[order], 0, 1).reshape(self.n, -1)
        return [*carry, *ys], [(by_step, executed[order].reshape(-1))]


def _comparisons(scope: Scope, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Bool[Array, "..."]]:
    """The patterns of an elementwise equation, one per threshold."""
    name = eqn.primitive.name
    if name in ("abs", "sign"):
        return [jnp.greater(operands[0], 0)]
    if name == "clamp":
        low, value, high = operands
        return [jnp.greater(value, low), jnp.less(value, high)]
    value, threshold = operands
    varies = [bool(scope.role(atom)) for atom in eqn.invars]
    if not varies[0] or (all(varies) and name in ("lt", "le")):
        value, threshold = threshold, value
    return [(jnp.less if name == "min" else jnp.greater)(value, threshold)]


def _windows(eqn: JaxprEqn, x: Array) -> Array:
    """The elements of each pooling window, on a new last axis."""
    params = eqn.params
    fill = -jnp.inf if eqn.primitive.name.endswith("max") else jnp.inf
    padding = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["base_dilation"], strict=True)
    ]
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), padding)
    windows: Any = eqn.outvars[0].aval
    slices = [
        tuple(
            slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
            for at, dilation, count, stride in zip(
                offset,
                params["window_dilation"],
                windows.shape,
                params["window_strides"],
                strict=True,
            )
        )
        for offset in np.ndindex(*params["window_dimensions"])
    ]
    return jnp.stack([padded[each] for each in slices], -1)


def _pattern_shape(scope: Scope, eqn: JaxprEqn) -> tuple[int, ...]:
    """The shape of an equation's patterns before the sample axis is moved to the front."""
    name = eqn.primitive.name
    if name in WINDOWS:
        windows: Any = eqn.outvars[0].aval
        return (*windows.shape, int(np.prod(eqn.params["window_dimensions"])))
    elements: Any = eqn.outvars[0] if name not in EXTREMA else eqn.invars[0]
    if not scope.is_piecewise(eqn):
        elements = scope.argument(eqn)
    return tuple(elements.aval.shape)


def bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Evaluate an equation of a jaxpr."""
    outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _num_samples(jaxpr: ClosedJaxpr) -> int:
    shapes = [aval.shape for aval in jaxpr.out_avals]
    if len(shapes) != 1 or not shapes[0]:
        raise InputError(
            f"the model returns arrays of shapes {shapes}: it must return one array [n, ...]"
        )
    if not shapes[0][0]:
        raise InputError("the model returns no samples: give at least one")
    return int(shapes[0][0])


def _twice_the_samples(
    f: Callable[..., Any], args: Sequence[Any], position: int, n: int
) -> Scope | None:
    """The program of 2 n samples; None if `f` accepts only n."""

    def doubled(leaf: Any) -> Any:
        shape = list(jnp.shape(leaf))
        if n not in shape:
            return leaf
        shape[shape.index(n)] *= 2
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    samples = jax.tree.map(doubled, args[position])
    if jax.tree.map(jnp.shape, samples) == jax.tree.map(jnp.shape, args[position]):
        return None
    try:
        jaxpr = jax.make_jaxpr(f)(*args[:position], samples, *args[position + 1 :])
    except Exception:  # the model may raise anything for another number of samples
        return None
    return analyze(jaxpr, _is_sample(args, position))


def _is_sample(args: Sequence[Any], position: int) -> list[bool]:
    """Which of the leaves of the arguments are samples."""
    return [i == position for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
