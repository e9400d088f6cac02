"""Mixed choices: the mean of branches; pruned branches are not computed."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from tenas_jax.errors import InputError

Branch = nn.Module | Callable[[Any], Any]


def mixed(mask: Bool[Array | np.ndarray, "option"], branches: Sequence[Branch], x: Any) -> Array:
    """The mean of the kept branches, for the module of a `ChoiceSpace`.

    Pruned branches are not computed: they are skipped at run time if the mask is traced; otherwise
    they do not even have parameters.

    Args:
        mask: the options kept, a row of the mask passed to the module of a `ChoiceSpace`.
        branches: for each option a Flax module, or a function without parameters.
        x: the input of each branch.

    Returns:
        An array of the shape that all branches return; zeros if no branch is kept.

    Raises:
        InputError: the numbers of branches and options differ, or branches return different
            shapes.

    Example:
        >>> double, negative = lambda x: 2 * x, lambda x: -x
        >>> mixed(np.array([True, True]), [double, negative], jnp.ones(3)).tolist()
        [0.5, 0.5, 0.5]
        >>> mixed(np.array([False, True]), [double, negative], jnp.ones(3)).tolist()
        [-1.0, -1.0, -1.0]
    """
    if len(mask) != len(branches):
        raise InputError(
            f"mixed has {len(branches)} branches for {len(mask)} options: give one each"
        )
    weights: Any
    if isinstance(mask, np.ndarray):
        kept = np.flatnonzero(mask).tolist()
        outputs = [branches[i](x) for i in kept] or [jnp.zeros_like(branches[0](x))]
        shapes = [(output.shape, output.dtype) for output in outputs]
        weights = [1 / max(len(kept), 1)] * len(outputs)
    elif any(isinstance(branch, nn.Module) and branch.is_initializing() for branch in branches):
        outputs = [branch(x) for branch in branches]
        shapes = [(output.shape, output.dtype) for output in outputs]
        weights = [1 / len(branches)] * len(branches)
    else:
        runs = [_detached(branch) for branch in branches]
        abstract = [jax.eval_shape(run, x) for run in runs]
        shapes = [(output.shape, output.dtype) for output in abstract]
        weights = mask.astype(abstract[0].dtype) / jnp.maximum(mask.sum(), 1)
        outputs = [
            lax.cond(kept, run, lambda _, like=like: jnp.zeros(like.shape, like.dtype), x)
            for kept, run, like in zip(mask, runs, abstract, strict=True)
        ]
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{dtype} {shape}" for shape, dtype in shapes)
        raise InputError(f"the branches of mixed return {listed}: make them return one shape")
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return cast(Array, total)


def _detached(branch: Branch) -> Callable[[Any], Any]:
    """A branch as a pure function, for `lax.cond`."""
    if not isinstance(branch, nn.Module):
        return branch
    module, variables = branch.clone(parent=None), branch.variables
    return lambda x: module.apply(variables, x, mutable=["batch_stats"])[0]
