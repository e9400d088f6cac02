"""The networks against the original's: logits, kernels, activation patterns."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import darts_params, nas_bench_201_params
from smaller import SMALL_DARTS, SMALL_NAS_BENCH_201

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures.cell_space import has_dead_operators
from tenas_jax.architectures.space import ProxySize
from tenas_jax.networks.backends import NHWC_ON_GPU, chunk_size
from tenas_jax.networks.banded import BANDED
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.initializers import initialize, quick_key
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import PATTERNS, READERS
from tenas_jax.networks.supernet import FEATURES, Cell
from tenas_jax.spaces import DARTS, darts, get_space

FILES = {"nas-bench-201": "nas201", "darts": "darts"}
PARAMS = {"nas-bench-201": nas_bench_201_params, "darts": darts_params}
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
LAYOUTS = {"float32": BATCH_MINOR, "float64": NHWC}
# Against the flags of `conftest.py`.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
# In the other layouts, single cells are compared below.
CASES = [("nas-bench-201", "float32"), ("nas-bench-201", "float64"), ("darts", "float64")]


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def read_cases(folder, space, network):
    """(mask, initialization, values of the original) of each golden file."""
    files = sorted(folder.glob(f"{FILES[space]}_{network}_*_seed0.npz"))
    names = [file.stem.split("_")[2:4] for file in files]
    assert {mask for mask, _ in names} >= {"few", "half", "single", "weights"}
    for file, (mask, init) in zip(files, names, strict=True):
        if mask != "weights":
            with np.load(file) as original:
                yield mask, init, dict(original)


def read_mask(folder, space, name):
    with np.load(folder / f"{FILES[space]}_alphas.npz") as alphas:
        types = range(len(get_space(space).cell_types))
        return jnp.stack([jnp.asarray(alphas[f"{name}_ct{i}"] == 0) for i in types])


def read_params(folder, space, network, init, dtype):
    with np.load(folder / f"{FILES[space]}_{network}_weights_{init}_seed0.npz") as weights:
        return PARAMS[space](weights, dtype)


def read_images(folder, name, dtype):
    with np.load(folder / "inputs.npz") as inputs:
        return jnp.asarray(inputs[name].transpose(0, 2, 3, 1), dtype)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def ntk_case(request):
    """A space, a type, and the compiled logits and kernel, from gradients of some images a time."""
    space, dtype = request.param
    layout = LAYOUTS[dtype]
    network = get_space(space).supernet(ProxySize(10), layout)

    # The plain layout takes longer to run, the others to compile.
    @(partial(jax.jit, compiler_options=OPTIMIZED) if layout is NHWC else jax.jit)
    def logits_and_kernel(params, images, mask):
        logits, vjp = jax.vjp(lambda p: network.apply({"params": p}, images, mask), params)

        def row(i):
            gradient = vjp(jnp.zeros_like(logits).at[i].set(1))[0]
            leaves = jax.tree_util.tree_leaves_with_path(gradient)
            return jnp.concatenate([g.ravel() for path, g in leaves if path[-1].key != "bias"])

        rows = jax.lax.map(row, jnp.arange(len(logits)), batch_size=chunk_size(len(logits)))
        return logits, jnp.matmul(rows, rows.T, precision="highest")

    with jax.enable_x64(dtype == "float64"):
        yield space, dtype, logits_and_kernel


def test_logits_and_kernels_are_the_originals(ntk_case, golden):
    space, dtype, logits_and_kernel = ntk_case
    images = read_images(golden, "ntk_input_0", dtype)
    for mask, init, original in read_cases(golden, space, "ntk"):
        params = read_params(golden, space, "ntk", init, dtype)
        logits, kernel = logits_and_kernel(params, images, read_mask(golden, space, mask))
        for actual, name in ((logits, "logits"), (kernel, "ntk")):
            error = relative_error(actual, original[f"{name}_f64"])
            assert error < TOLERANCES[dtype], (mask, init, name)


@pytest.mark.parametrize("layout", [BATCH_MINOR, NHWC_ON_GPU], ids=["batch_minor", "gpu"])
@pytest.mark.parametrize("space", FILES)
def test_patterns_distinguish_the_same_samples_as_the_originals(space, layout, golden):
    with jax.enable_x64(True):
        network = get_space(space).region_network(ProxySize(), layout)
        patches = read_images(golden, "lr_input_0", "float64")

        @jax.jit
        def patterns(params, mask):
            _, state = network.apply({"params": params}, patches, mask, mutable=PATTERNS)
            return jnp.concatenate(jax.tree.leaves(state[PATTERNS]), 1)

        for mask, init, original in read_cases(golden, space, "lr"):
            params = read_params(golden, space, "lr", init, "float64")
            ours = np.asarray(patterns(params, read_mask(golden, space, mask)))
            signs = np.unpackbits(original["signs_packed_f64"], 1)[:, : original["n_neuron"]]
            assert len(np.unique(ours, axis=0)) == original["n_unique_f64"]
            np.testing.assert_array_equal(groups(ours), groups(signs))


def groups(patterns):
    """For each sample the first one that has the same pattern."""
    first, inverse = np.unique(patterns, axis=0, return_index=True, return_inverse=True)[1:]
    return first[inverse]


@pytest.mark.parametrize("layout", [NHWC, BATCH_MINOR], ids=["nhwc", "batch_minor"])
def test_a_cell_after_a_reduction_halves_its_older_input(layout):
    network = darts.Supernet(DARTS, 1, 3, layout, "pytorch", ("normal", "reduce", "normal"))
    images = jnp.ones((2, 8, 8, 3))
    mask = jnp.asarray(DARTS.initial_mask())
    variables = jax.eval_shape(network.init, jax.random.key(0), images, mask)
    cells = variables["params"]["cells"]
    assert cells["input_2_0"]["half_0"]["kernel"].shape == (1, 1, 1, 4, 1)
    assert cells["input_2_1"]["conv"]["kernel"].shape == (1, 1, 1, 8, 2)
    logits = jax.eval_shape(network.apply, variables, images, mask)
    assert logits.shape == (2, 3)


# With two nodes instead of three, or of four in DARTS: a space, and the stride of its edges.
CELLS = {
    "nas-bench-201": (SMALL_NAS_BENCH_201, 1),
    "darts-normal": (SMALL_DARTS, 1),
    "darts-reduce": (SMALL_DARTS, 2),
}
# A cell, a layout, whether it computes what a single path keeps only, whether in loops.
FORMS = {
    "nas-bench-201": ("nas-bench-201", BATCH_MINOR, False, False),
    "nas-bench-201-path": ("nas-bench-201", BATCH_MINOR, True, False),
    "nas-bench-201-tpu": ("nas-bench-201", BANDED, False, False),
    "darts-normal-path-nhwc": ("darts-normal", NHWC, True, True),
    "darts-reduce": ("darts-reduce", BATCH_MINOR, False, True),
    "darts-reduce-path": ("darts-reduce", BATCH_MINOR, True, True),
    "darts-reduce-gpu": ("darts-reduce", NHWC_ON_GPU, False, True),
    "darts-reduce-tpu": ("darts-reduce", BANDED, False, True),
}
CHANNELS = 12  # of two edges more than those up to which NHWC fuses convolutions
PATHS = [name for name, (_, _, single_path, _) in FORMS.items() if single_path]


@cache
def compiled_cell(name, layout, single_path, rolled):
    """The output and gradients of a form of a cell, as a function of a mask."""
    space, stride = CELLS[name]

    def cell(layout, **form):
        return Cell(space, CHANNELS, layout, "pytorch", stride, **form)

    module, key = cell(layout, single_path=single_path, rolled=rolled), jax.random.key(0)
    inputs = jax.random.normal(key, (space.input_nodes, 3, 6, 6, CHANNELS), "float64")
    mask = jnp.asarray(space.initial_mask())[0]
    shapes = jax.eval_shape(cell(NHWC).init, key, list(inputs), mask)
    params = initialize(shapes["params"], "pytorch", key)

    def output(mask, params, inputs):
        images = [layout.from_nhwc(x) for x in inputs]
        nodes = module.apply({"params": params}, images, mask)
        read = nodes[space.input_nodes :] if space.concatenate else nodes[-1:]
        return jnp.stack([layout.to_nhwc(y) for y in read])

    @jax.jit
    def output_and_gradients(mask):
        y, pullback = jax.vjp(partial(output, mask), params, inputs)
        cotangents = jax.random.normal(key, (2, *y.shape), y.dtype)
        return y, jax.vmap(pullback)(cotangents)

    return output_and_gradients


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_a_cell_is_the_same_in_every_form(form):
    """As in the plain layout, with all operators of each edge, one edge after the other."""
    name, _, single_path, _ = FORMS[form]
    space, _ = CELLS[name]
    masks = architectures.sample(space, 8, np.random.default_rng(0))
    dead = [has_dead_operators(space, mask) for mask in masks]
    assert any(dead) or space.concatenate  # all nodes are part of the output then
    assert not all(dead)
    if not single_path:
        masks = [left | right for left, right in zip(masks[:4], masks[4:], strict=True)]
    plain, other = compiled_cell(name, NHWC, False, False), compiled_cell(*FORMS[form])
    for mask in masks:
        expected = plain(mask[0])
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=0, atol=1e-10 * max(scale, 1)),
            other(mask[0]),
            expected,
        )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", PATHS)
def test_single_paths_depend_on_every_operator(form):
    space, _ = CELLS[FORMS[form][0]]
    masks = np.zeros((len(space.ops), *space.shape[1:]), bool)
    for i, mask in enumerate(masks):
        mask[:, i] = True
    outputs = {np.asarray(compiled_cell(*FORMS[form])(mask)[0]).tobytes() for mask in masks}
    assert len(outputs) == len(space.ops)


@pytest.mark.parametrize("single_path", [False, True], ids=["supernet", "single_path"])
def test_edges_in_loops_are_the_edges_one_by_one(single_path):
    """Which they are while a network is initialized."""
    network = SMALL_DARTS.supernet(ProxySize(cells=2, single_path=single_path), NHWC)
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    mask = architectures.sample(SMALL_DARTS, 1, np.random.default_rng(0))[0]
    if not single_path:
        mask |= architectures.sample(SMALL_DARTS, 1, np.random.default_rng(1))[0]
    wanted = [FEATURES, PATTERNS, READERS]

    @jax.jit
    def both(mask):
        expected, variables = network.init_with_output(quick_key(jax.random.key(1)), images, mask)
        return expected, network.apply(variables, images, mask, mutable=wanted)

    expected, (actual, sown) = both(jnp.asarray(mask))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert len(jax.tree.leaves(sown[FEATURES])) == 2
    patterns, readers = (jax.tree.leaves(sown[name]) for name in (PATTERNS, READERS))
    assert [leaf.shape[1] for leaf in patterns] == [len(leaf) for leaf in readers]
