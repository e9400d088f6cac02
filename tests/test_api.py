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
assert seconds < 2, f"importing tenas_jax took {seconds:.1f} s beyond jax"
loaded = {"matplotlib", "neural_tangents", "tensorflow"} & set(sys.modules)
assert not loaded, loaded
print("done")
"""


def test_the_public_names():
    assert tenas_jax.__all__ == [
        "InputError",
        "activation_patterns",
        "condition_number",
        "count_linear_regions",
        "empirical_ntk",
        "linear_regions",
        "ntk_condition_number",
    ]
    assert all(hasattr(tenas_jax, name) for name in tenas_jax.__all__)


def test_importing_is_quick_and_loads_nothing_heavy(tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.stdout == "done\n", process.stderr
