"""One neural tangent kernel of a supernet, by this library and by the alternatives.

    python -m bench.ntk --space nas-bench-201 --batches 72 8 16 32

All contestants use the same weights, images and threads. Kernels that differ from the first
contestant's by more than 1e-4 are not timed.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import common
from bench.common import SPACES, Contestant, Outcome, SkipError, Work
from tenas_jax.architectures.space import ProxySize

if TYPE_CHECKING:
    from torch import Tensor

    from bench.pytorch_reference import Network
    from tenas_jax.networks.layouts import Layout

BATCHES = {"nas-bench-201": (72, 8, 16, 32), "darts": (14, 24)}
FUNC_CHUNK = 8  # the fastest of 1, 8, 72 on a CPU; all cotangents at once on a GPU
NUM_CLASSES = 10


@dataclass(frozen=True)
class Problem(common.KernelInputs):
    """The task of all contestants.

    Args:
        space: name of the search space; the full supernet is measured.
        batch: number of images.
        weights: file of the parameters, by path in our tree.
        original: a clone of VITA-Group/TENAS.
    """

    space: str
    batch: int
    weights: Path
    original: Path | None = None


def write_weights(space: str, path: Path) -> None:
    """Draw the weights of a supernet and write them.

    Args:
        space: name of the search space.
        path: path of the file.
    """
    from flax.traverse_util import flatten_dict

    from tenas_jax.networks.layouts import NHWC

    network = SPACES[space].supernet(ProxySize(NUM_CLASSES), NHWC)
    images, mask = np.zeros((2, 32, 32, 3), np.float32), SPACES[space].initial_mask()
    params = common.draw_weights(network, images, mask)
    np.savez(path, **flatten_dict(params, sep="/"))


def jax_arguments(problem: Problem) -> tuple[Any, Any, Any]:
    """Parameters, images and mask on JAX's device."""
    import jax
    from flax.traverse_util import unflatten_dict

    params = unflatten_dict(problem.params(), sep="/")
    mask = SPACES[problem.space].initial_mask()
    return jax.device_put((params, problem.images(), mask))  # type: ignore[no-any-return]


def find_layout(name: str | None) -> "Layout":
    """The layout with a name, for an accelerator on which it is not the usual one.

    Args:
        name: `NHWC` or `batch-minor`; None: the backend's own.

    Raises:
        SkipError: it is the backend's own, or the backend is a CPU.
    """
    from tenas_jax.networks.backends import NHWC_ON_GPU, network_layout
    from tenas_jax.networks.batch_minor import BATCH_MINOR
    from tenas_jax.numerics import backend

    own = network_layout()
    if name is None:
        return own
    if backend() == "cpu":
        raise SkipError("for GPUs and TPUs only")
    layouts: dict[str, Layout] = {"NHWC": NHWC_ON_GPU, "batch-minor": BATCH_MINOR}
    if layouts[name] is own:
        raise SkipError("the usual layout here, timed above")
    return layouts[name]


def build_engine(problem: Problem, engine: str, layout: str | None = None) -> Work:
    """This library: `empirical_ntk`; the mask is an argument, as in a search."""
    if engine == "neural-tangents":
        common.require("neural-tangents")
    import jax

    from tenas_jax.host.devices import compiler_options
    from tenas_jax.metrics.ntk import empirical_ntk
    from tenas_jax.networks.backends import chunk_size

    network = SPACES[problem.space].supernet(ProxySize(NUM_CLASSES), find_layout(layout))

    @jax.jit
    def kernel(params: Any, images: Any, mask: Any) -> Any:
        def logits(params: Any, images: Any) -> Any:
            return network.apply({"params": params}, images, mask)

        chunk = chunk_size(problem.batch, rolled=network.rolled)
        return empirical_ntk(logits, params, images, engine=engine, chunk_size=chunk)

    arguments = jax_arguments(problem)
    options = compiler_options(jax.default_backend())
    compiled = kernel.lower(*arguments).compile(options)
    return lambda: np.asarray(compiled(*arguments))


def build_jacrev(problem: Problem, plain: bool) -> Work:
    """`jax.jacrev` of a plain Flax network, or of our network on the NHWC layout."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict, unflatten_dict

    from tenas_jax.networks.layouts import NHWC

    params, images, mask = jax_arguments(problem)
    if plain:
        if problem.space != "nas-bench-201":
            raise SkipError(f"not written for {problem.space}")
        from bench import plain_flax

        network: Any = plain_flax.Supernet(NUM_CLASSES)
        params = plain_flax.from_supernet(params)
    else:
        network = SPACES[problem.space].supernet(ProxySize(NUM_CLASSES), NHWC)
    flat = flatten_dict(params)
    biases = {path: value for path, value in flat.items() if path[-1] == "bias"}
    weights = {path: value for path, value in flat.items() if path[-1] != "bias"}

    @jax.jit
    def kernel(weights: Any, images: Any, mask: Any) -> Any:
        def summed_logits(weights: Any) -> Any:
            params = unflatten_dict({**weights, **biases})
            logits: Any = network.apply({"params": params}, images, mask, mutable=["batch_stats"])[
                0
            ]
            return logits.sum(1)

        rows = jax.tree.leaves(jax.jacrev(summed_logits)(weights))
        jacobian = jnp.concatenate([row.reshape(len(images), -1) for row in rows], 1)
        return jnp.matmul(jacobian, jacobian.T, precision="highest")

    return lambda: np.asarray(kernel(weights, images, mask))


def torch_arguments(problem: Problem) -> "tuple[Network, Tensor]":
    """Our PyTorch network with the weights, and the images, on PyTorch's device."""
    common.require("torch")
    import torch

    from bench import pytorch_reference as reference

    space, device = SPACES[problem.space], common.torch_device()
    network = reference.NTK_NETWORKS[problem.space](space.initial_mask())
    network.load_state_dict(reference.state_dict(space, problem.params()))
    images = torch.from_numpy(problem.images()).permute(0, 3, 1, 2).contiguous()
    return network.to(device).train(), images.to(device)


def build_torch_loop(problem: Problem) -> Work:
    """The original's loop over samples, reimplemented."""
    from bench import pytorch_reference as reference

    network, images = torch_arguments(problem)
    return lambda: reference.ntk_loop(network, network, images).cpu().numpy()


def build_torch_compile(problem: Problem) -> Work:
    """The same loop over a network compiled by `torch.compile`."""
    network, images = torch_arguments(problem)
    import torch
    import torch._functorch.config

    from bench import pytorch_reference as reference

    # The loop runs many backward passes through one forward pass.
    torch._functorch.config.donated_buffer = False
    compiled = torch.compile(network)
    return lambda: reference.ntk_loop(compiled, network, images).cpu().numpy()


def build_torch_func(problem: Problem) -> Work:
    """`torch.func`: `vjp` and `vmap`, in chunks."""
    network, images = torch_arguments(problem)
    from bench import pytorch_reference as reference

    chunk = FUNC_CHUNK if images.device.type == "cpu" else problem.batch
    return lambda: reference.ntk_func(network, images, chunk).cpu().numpy()


def build_cuda_graph(problem: Problem) -> Work:
    """`torch.func` for all cotangents at once, recorded once and replayed by the GPU alone."""
    network, images = torch_arguments(problem)
    if images.device.type != "cuda":
        raise SkipError("for CUDA GPUs only")
    import torch

    from bench import pytorch_reference as reference

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # libraries allocate and choose their kernels before the recording
            reference.ntk_func(network, images, problem.batch)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel = reference.ntk_func(network, images, problem.batch)

    def work() -> np.ndarray:
        graph.replay()
        replayed: np.ndarray = kernel.cpu().numpy()
        return replayed

    return work


def build_original(problem: Problem) -> Work:
    """The original itself, `get_ntk_n` with its eigenvalues."""
    common.require("torch")
    from bench import original as tenas
    from bench import pytorch_reference as reference

    assert problem.original is not None
    space, device = SPACES[problem.space], common.torch_device()
    original = tenas.Original(problem.original, device)
    config = original.config(space, tenas.NTK_NETWORKS)
    network = original.network(config, space.initial_mask())
    tenas.load_weights(network, reference.state_dict(space, problem.params()))
    _, images = torch_arguments(problem)

    def work() -> np.ndarray:
        original.condition_numbers([network], images)
        kernel: np.ndarray = original.kernels[0].cpu().numpy()
        return kernel

    return work


# Kernels are compared with the first one; slow compilers come late.
CONTESTANTS: dict[str, Callable[[Problem], Work]] = {
    "PyTorch loop": build_torch_loop,
    "original": build_original,
    "chunked": functools.partial(build_engine, engine="chunked"),
    "neural-tangents": functools.partial(build_engine, engine="neural-tangents"),
    **{
        f"{engine}, {layout}": functools.partial(build_engine, engine=engine, layout=layout)
        for layout in ("NHWC", "batch-minor")
        for engine in ("chunked", "neural-tangents")
    },
    "jacrev, plain Flax": functools.partial(build_jacrev, plain=True),
    "torch.func": build_torch_func,
    "torch.func, CUDA graph": build_cuda_graph,
    "jacrev, NHWC": functools.partial(build_jacrev, plain=False),
    "torch.compile": build_torch_compile,
}


def baseline(problem: Problem) -> str:
    """The contestant that speed-ups are relative to."""
    return "original" if problem.original else "PyTorch loop"


def compete(
    problem: Problem, names: Sequence[str], *, deadline: float, repeats: int
) -> list[Outcome]:
    """The race for one batch size.

    Args:
        problem: the task.
        names: names of the contestants.
        deadline: a value of `time.monotonic`.
        repeats: timed runs per contestant.
    """
    contestants = [
        Contestant(name, functools.partial(CONTESTANTS[name], problem)) for name in names
    ]
    return common.race(contestants, deadline=deadline, repeats=repeats)


def main() -> None:
    """Runs the benchmark."""
    parser = common.arguments(__doc__, budget=600)
    parser.add_argument("--space", choices=SPACES, default="nas-bench-201")
    parser.add_argument("--batches", type=int, nargs="+", help="images, in the order of running")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    environment = common.prepare_environment(options.threads)
    batches = options.batches or BATCHES[options.space]
    names = options.contestants or list(CONTESTANTS)
    if options.original is None:
        names = [name for name in names if name != "original"]

    outcomes: dict[int, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        common.call(write_weights, options.space, weights)
        for i, batch in enumerate(batches):
            problem = Problem(options.space, batch, weights, options.original)
            # Larger batches get more of the remaining time.
            share = batch / sum(batches[i:])
            deadline = time.monotonic() + share * (end - time.monotonic())
            outcomes[batch] = compete(problem, names, deadline=deadline, repeats=options.repeats)
    report(options.results, options.space, baseline(problem), environment, outcomes)


def report(
    folder: Path,
    space: str,
    base: str,
    environment: dict[str, Any],
    outcomes: dict[int, list[Outcome]],
) -> None:
    """Write the results of all batch sizes.

    Args:
        folder: folder of all results.
        space: name of the search space.
        base: the contestant that speed-ups are relative to.
        environment: of the run.
        outcomes: by batch size.
    """
    sizes = sorted(outcomes)
    rows = [[n, *row] for n in sizes for row in common.outcome_rows(outcomes[n], base)]
    text = common.table(("images", *common.OUTCOME_HEADER), rows)
    text += f"\n\nSpeed-up over {base}; error of the kernel against the first contestant."
    results = [{"images": n, "outcomes": [vars(o) for o in outcomes[n]]} for n in sizes]
    name = f"ntk-{space}"
    place = common.write_results(folder, name, environment, results, text)
    names = [outcome.name for outcome in outcomes[sizes[0]]]
    lines = {
        name: {n: o.seconds for n in sizes for o in outcomes[n] if o.name == name and o.seconds}
        for name in names
    }
    common.plot_lines(
        place / f"{name}.png",
        lines,
        title=f"One neural tangent kernel, {space} supernet",
        x_label="images",
        y_label="seconds",
    )


if __name__ == "__main__":
    main()
