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
