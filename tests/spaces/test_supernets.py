"""The networks against the original's: logits, kernels, activation patterns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import quick_jit
from golden_params import darts_params, nas_bench_201_params
from smaller import SMALL_DARTS, with_edges

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures.cell_space import has_dead_operators
from tenas_jax.architectures.space import ProxySize
from tenas_jax.metrics.ntk import empirical_ntk
from tenas_jax.networks.backends import BATCH_MINOR_ON_TPU, NHWC_ON_GPU, chunk_size
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.initializers import initialize, quick_key
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import PATTERNS, READERS
from tenas_jax.networks.supernet import FEATURES
from tenas_jax.spaces import DARTS, SPACES, darts, get_space

FILES = {"nas-bench-201": "nas201", "darts": "darts"}
PARAMS = {"nas-bench-201": nas_bench_201_params, "darts": darts_params}
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
GPU, TPU = "float64 on a GPU", "float32 on a TPU"
LAYOUTS = {"float32": BATCH_MINOR, "float64": NHWC, GPU: NHWC_ON_GPU, TPU: BATCH_MINOR_ON_TPU}
# In NAS-Bench-201, which groups no channels, NHWC is the same on any backend; a TPU's own are the
# average pools, which both have.
SAME = {("nas-bench-201", GPU), ("darts", TPU)}
CASES = [(s, name) for s in FILES for name in LAYOUTS if (s, name) not in SAME]


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
    space, name = request.param
    layout, dtype = LAYOUTS[name], name.partition(" ")[0]
    network = get_space(space).supernet(ProxySize(10), layout)

    # The plain layout takes longer to run, the others to compile.
    @(jax.jit if layout is NHWC else quick_jit)
    def logits_and_kernel(params, images, mask):
        logits, vjp = jax.vjp(lambda p: network.apply({"params": p}, images, mask), params)

        def row(i):
            gradient = vjp(jnp.zeros_like(logits).at[i].set(1))[0]
            leaves = jax.tree_util.tree_leaves_with_path(gradient)
            return jnp.concatenate([g.ravel() for path, g in leaves if path[-1].key != "bias"])

        chunk = len(logits) if layout is NHWC_ON_GPU else chunk_size(len(logits))
        rows = jax.lax.map(row, jnp.arange(len(logits)), batch_size=chunk)
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

        @quick_jit
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


# With two nodes instead of three, or of four in DARTS.
SMALL_SPACES = {
    name: SMALL_DARTS if space is DARTS else with_edges(space, 3)
    for name, space in SPACES.items()
    if space.has_single_paths
}


@pytest.fixture(scope="module", params=SMALL_SPACES)
def single_path_case(request):
    """A space, and compiled kernels of its supernet: computing all operators, or those kept."""
    space = SMALL_SPACES[request.param]
    mask = jnp.asarray(space.initial_mask())

    def kernel(single_path):
        size = ProxySize(cells=len(space.cell_types), single_path=single_path)
        network = space.supernet(size, BATCH_MINOR)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images, mask)
        params = initialize(shapes["params"], "pytorch", jax.random.key(1))

        def of_mask(mask):
            return empirical_ntk(lambda p, x: network.apply({"params": p}, x, mask), params, images)

        return quick_jit(of_mask)

    # Some of these kernels are singular but for rounding: in single precision that is all they say.
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (5, 8, 8, 3), "float64")
        yield space, kernel(False), kernel(True)


def test_kernels_of_single_paths_are_the_supernets(single_path_case):
    space, of_supernet, of_path = single_path_case
    masks = architectures.sample(space, 12, np.random.default_rng(0))
    dead = [has_dead_operators(space, mask) for mask in masks]
    assert any(dead) or space.concatenate  # all nodes are part of the output then
    assert not all(dead)
    for mask in masks:
        actual, expected = of_path(mask), of_supernet(mask)
        assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)


def test_single_paths_depend_on_every_operator(single_path_case):
    space, _, of_path = single_path_case
    masks = np.zeros((len(space.ops), *space.shape), bool)
    for i, mask in enumerate(masks):
        mask[:, :, i] = True
    kernels = {np.asarray(of_path(mask)).tobytes() for mask in masks}
    assert len(kernels) == len(space.ops)


@pytest.mark.parametrize("single_path", [False, True], ids=["supernet", "single_path"])
def test_edges_in_loops_are_the_edges_one_by_one(single_path):
    """Which they are while a network is initialized."""
    network = SMALL_DARTS.supernet(ProxySize(cells=2, single_path=single_path), NHWC)
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    mask = architectures.sample(SMALL_DARTS, 1, np.random.default_rng(0))[0]
    if not single_path:
        mask |= architectures.sample(SMALL_DARTS, 1, np.random.default_rng(1))[0]
    wanted = [FEATURES, PATTERNS, READERS]

    @quick_jit
    def both(mask):
        expected, variables = network.init_with_output(quick_key(jax.random.key(1)), images, mask)
        return expected, network.apply(variables, images, mask, mutable=wanted)

    expected, (actual, sown) = both(jnp.asarray(mask))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert len(jax.tree.leaves(sown[FEATURES])) == 2
    patterns, readers = (jax.tree.leaves(sown[name]) for name in (PATTERNS, READERS))
    assert [leaf.shape[1] for leaf in patterns] == [len(leaf) for leaf in readers]


def test_gradients_of_single_paths_in_loops_are_the_supernets():
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    [mask] = jnp.asarray(architectures.sample(DARTS, 1, np.random.default_rng(0)))
    networks = [
        DARTS.supernet(ProxySize(cells=2, single_path=path), NHWC) for path in (True, False)
    ]

    @quick_jit
    def gradients():
        params = networks[0].init(quick_key(jax.random.key(1)), images, mask)["params"]

        def loss(params, network):
            return jnp.sin(network.apply({"params": params}, images, mask)).sum()

        return [jax.grad(loss)(params, network) for network in networks]

    for path, whole in zip(*map(jax.tree.leaves, gradients()), strict=True):
        np.testing.assert_allclose(path, whole, atol=1e-4 * max(1, np.abs(whole).max()))
