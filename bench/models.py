"""One neural tangent kernel of an ordinary model, by this library and by the alternatives.

    python -m bench.models --models "ResNet-18, width 16" ViT --batches 32 8

The models are those of `bench.plain_models`. All contestants use the same weights, images and
threads. Kernels that differ from the first contestant's by more than 1e-3 are not timed: rounding
changes the sign of single inputs of a ReLU. (In double precision the kernel of ResNet-18 of width
16 with 32 images changes by 2.9e-4 if the images change by 1e-7.)
"""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import common
from bench.common import Contestant, Outcome, SkipError, Work
from bench.ntk import FUNC_CHUNK

if TYPE_CHECKING:
    from torch import Tensor

MODELS = ("ResNet-18, width 16", "ResNet-18", "WRN-10-2", "ViT", "MLP")
SAMPLES_INTERACT = MODELS[:3]  # in train-mode batch normalization
BATCHES = (8, 32)
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Problem(common.KernelInputs):
    """What all contestants compute.

    Args:
        model: a name of `bench.plain_models.MODELS`.
        batch: number of images.
        weights: file of the parameters, by path in the Flax tree.
    """

    model: str
    batch: int
    weights: Path


def write_weights(model: str, path: Path) -> None:
    """Draw the weights of a model and write them.

    Args:
        model: a name of `bench.plain_models.MODELS`.
        path: of the file.
    """
    from flax.traverse_util import flatten_dict

    from bench.plain_models import MODELS

    params = common.draw_weights(MODELS[model], np.zeros((2, 32, 32, 3), np.float32))
    np.savez(path, **flatten_dict(params, sep="/"))


def jax_arguments(problem: Problem) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """The model as a function of weights by path and images, the weights, the images."""
    import jax
    from flax.traverse_util import unflatten_dict

    from bench.plain_models import MODELS

    params, images = jax.device_put((problem.params(), problem.images()))
    weights = {path: leaf for path, leaf in params.items() if not path.endswith("bias")}
    biases = {path: leaf for path, leaf in params.items() if path.endswith("bias")}

    def logits(weights: Any, images: Any) -> Any:
        params = unflatten_dict({**weights, **biases}, sep="/")
        return MODELS[problem.model].apply({"params": params}, images, mutable=["batch_stats"])[0]

    return logits, weights, images


def build_engine(problem: Problem, *, jit: bool = True, **options: Any) -> Work:
    """This library: `empirical_ntk`, under `jax.jit` or called plainly with a new lambda."""
    import jax

    from tenas_jax.metrics.ntk import empirical_ntk

    if options.get("per_sample") and problem.model in SAMPLES_INTERACT:
        raise SkipError("samples interact")
    if options.get("engine") == "neural-tangents":
        common.require("neural-tangents")
    logits, weights, images = jax_arguments(problem)

    def kernel(weights: Any, images: Any) -> Any:
        def apply_fn(weights: Any, images: Any) -> Any:
            return logits(weights, images)

        return empirical_ntk(apply_fn, weights, images, **options)

    run = jax.jit(kernel) if jit else kernel
    return lambda: np.asarray(run(weights, images))


def build_jacrev(problem: Problem) -> Work:
    """`jax.jacrev` of the summed logits: all cotangents at once."""
    import jax
    import jax.numpy as jnp

    logits, weights, images = jax_arguments(problem)

    @jax.jit
    def kernel(weights: Any, images: Any) -> Any:
        rows = jax.jacrev(lambda weights: logits(weights, images).sum(1))(weights)
        jacobian = jnp.concatenate(
            [row.reshape(len(images), -1) for row in jax.tree.leaves(rows)], 1
        )
        return jnp.matmul(jacobian, jacobian.T, precision="highest")

    return lambda: np.asarray(kernel(weights, images))


def build_loop(problem: Problem) -> Work:
    """A Python loop over one compiled pullback."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    logits, weights, images = jax_arguments(problem)
    cotangents = np.eye(problem.batch, dtype=np.float32)

    @jax.jit
    def forward(weights: Any, images: Any) -> Any:
        return jax.vjp(lambda weights: logits(weights, images).sum(1), weights)[1]

    @jax.jit
    def row(pullback: Any, cotangent: Any) -> Any:
        return ravel_pytree(pullback(cotangent))[0]

    @jax.jit
    def product(jacobian: Any) -> Any:
        return jnp.matmul(jacobian, jacobian.T, precision="highest")

    def work() -> np.ndarray:
        pullback = forward(weights, images)
        return np.asarray(product(jnp.stack([row(pullback, each) for each in cotangents])))

    return work


def torch_arguments(
    problem: Problem,
) -> "tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]":
    """The summed logits as a function of weights by path, and the weights."""
    common.require("torch")
    import torch

    from bench.plain_models import MODELS, torch_logits, torch_parameters

    device = common.torch_device()
    forward = torch_logits(MODELS[problem.model])
    images = torch.from_numpy(problem.images()).permute(0, 3, 1, 2).contiguous().to(device)
    params = {path: leaf.to(device) for path, leaf in torch_parameters(problem.params()).items()}
    biases = {path: leaf for path, leaf in params.items() if path.endswith("bias")}
    weights = {path: leaf for path, leaf in params.items() if not path.endswith("bias")}
    return lambda weights: forward({**weights, **biases}, images).sum(1), weights


def torch_product(jacobian: "list[Tensor]") -> np.ndarray:
    """The kernel of gradients [n, ...] by parameter.

    One product of all of them at once has an error of 3e-4: PyTorch adds a million terms in order.
    """
    rows = [leaf.flatten(1) for leaf in jacobian]
    kernel: np.ndarray = sum(leaf @ leaf.T for leaf in rows).cpu().numpy()
    return kernel


def build_torch_loop(problem: Problem) -> Work:
    """A backward pass per image, in a Python loop."""
    outputs, weights = torch_arguments(problem)
    import torch

    leaves = [leaf.requires_grad_() for leaf in weights.values()]

    def work() -> np.ndarray:
        rows = [torch.autograd.grad(y, leaves, retain_graph=True) for y in outputs(weights)]
        return torch_product([torch.stack(gradients) for gradients in zip(*rows, strict=True)])

    return work


def build_torch_func(problem: Problem) -> Work:
    """`torch.func`: `vjp` and `vmap`, in chunks."""
    outputs, weights = torch_arguments(problem)
    import torch

    def work() -> np.ndarray:
        with torch.no_grad():
            values, pullback = torch.func.vjp(outputs, weights)
            cotangents = torch.eye(len(values), device=values.device)
            chunk = FUNC_CHUNK if values.device.type == "cpu" else len(values)
            rows = torch.func.vmap(lambda c: pullback(c)[0], chunk_size=chunk)(cotangents)
            return torch_product(list(rows.values()))

    return work


# Kernels are compared with the first one.
CONTESTANTS: dict[str, Callable[[Problem], Work]] = {
    "Python loop over a pullback": build_loop,
    "chunked": build_engine,
    "chunked, called plainly": functools.partial(build_engine, jit=False),
    "chunked, per_sample": functools.partial(build_engine, per_sample=True),
    "PyTorch loop": build_torch_loop,
    "torch.func": build_torch_func,
    "neural-tangents": functools.partial(build_engine, engine="neural-tangents"),
    "jax.jacrev": build_jacrev,
}


def compete(problem: Problem, names: list[str], *, budget: float, repeats: int) -> list[Outcome]:
    """The race for one model and batch size.

    Args:
        problem: what is computed.
        names: of the contestants.
        budget: seconds.
        repeats: timed runs of each.
    """
    contestants = [
        Contestant(name, functools.partial(CONTESTANTS[name], problem)) for name in names
    ]
    deadline = time.monotonic() + budget
    return common.race(contestants, deadline=deadline, repeats=repeats, tolerance=TOLERANCE)


def main() -> None:
    """Runs the benchmark."""
    parser = common.arguments(__doc__, budget=470)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="images")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    environment = common.prepare_environment(options.threads)
    races = [(model, batch) for model in options.models for batch in options.batches]
    rows, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i, (model, batch) in enumerate(races):
            weights = Path(folder) / f"{common.file_name(model)}.npz"
            common.call(write_weights, model, weights)
            # Larger batches get more of the remaining time.
            share = batch / sum(each for _, each in races[i:])
            budget = share * (end - time.monotonic())
            problem = Problem(model, batch, weights)
            found = compete(problem, options.contestants, budget=budget, repeats=options.repeats)
            rows += [
                [model, batch, *row] for row in common.outcome_rows(found, options.contestants[0])
            ]
            outcomes = [vars(outcome) for outcome in found]
            results.append({"model": model, "images": batch, "outcomes": outcomes})
    text = common.table(("model", "images", *common.OUTCOME_HEADER), rows)
    text += f"\n\nSpeed-up over the first contestant, {options.contestants[0]!r}, from which the "
    text += "error of the kernel is counted, too."
    common.write_results(options.results, "models", environment, results, text)


if __name__ == "__main__":
    main()
