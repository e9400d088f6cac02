"""What `import tenas_jax` offers, and what it does not cost."""

import subprocess
import sys

import tenas_jax

IMPORT = """
import sys, time
import jax
start = time.perf_counter()
import tenas_jax
seconds = time.perf_counter() - start
assert seconds < 0.3, f"importing tenas_jax took {seconds:.1f} s beyond jax"
heavy = {"flax", "matplotlib", "neural_tangents", "orbax", "tensorflow"}
loaded = heavy & {name.partition(".")[0] for name in sys.modules}
assert not loaded, loaded
print("done")
"""
WITHOUT_TENSORFLOW = """
import sys
sys.modules |= dict.fromkeys(["tensorflow", "tf2jax", "keras"])  # as if they were not installed
from tenas_jax import cli
small = "--images 16 --ntk.batch-size 4 --metrics flops --repeats 1 --compilation-cache none"
assert cli.main(["search", *small.split(), "--workdir", "run"]) == 0
assert cli.main(["search", *small.split(), "--data", "tfds:cifar10"]) == 2
import jax.numpy as jnp
import tenas_jax
f, x = lambda params, x: x @ params["kernel"], jnp.array([[1.0, 0.0], [0.0, 2.0]])
kernel = tenas_jax.empirical_ntk(f, {"kernel": jnp.ones((2, 1))}, x, engine="neural-tangents")
print(kernel.tolist())
"""
NAMES = [
    "CellSpace",
    "ChoiceSpace",
    "Draw",
    "Initializer",
    "InputError",
    "Metric",
    "NTKConfig",
    "Op",
    "RegionsConfig",
    "ScoreTable",
    "SearchConfig",
    "SearchResult",
    "SearchSpace",
    "activation_patterns",
    "condition_number",
    "count_linear_regions",
    "empirical_ntk",
    "flax_op",
    "grad_norm",
    "linear_regions",
    "measure",
    "mixed",
    "naswot",
    "ntk_condition_number",
    "ntk_mean_eigenvalue",
    "ntk_spectrum",
    "ntk_trace",
    "parameters",
    "score",
    "search",
    "snip",
    "swap",
    "synflow",
    "zico",
]


def test_the_public_names():
    assert dir(tenas_jax) == sorted(NAMES)
    assert sorted(tenas_jax.__all__) == sorted(NAMES)
    assert all(getattr(tenas_jax, name).__name__ == name for name in NAMES)


def test_importing_is_quick_and_loads_nothing_heavy(tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.stdout == "done\n", process.stderr


def test_only_tfds_needs_tensorflow(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("\n[[1.0, 0.0], [0.0, 4.0]]\n")
    assert "'tfds:cifar10' needs TensorFlow" in process.stderr
