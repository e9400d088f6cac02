"""TensorFlow, of 2 GB, is needed by sources `tfds:NAME` alone, and need not be installed."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "without-tensorflow.txt"
TENSORFLOW = {"tensorflow", "tf2jax"}
PROGRAM = """
import sys
sys.modules |= dict.fromkeys(sys.argv[1:])  # as if they were not installed
from tenas_jax import cli
small = "--images 16 --ntk.batch-size 4 --metrics flops --repeats 1 --compilation-cache cache"
assert cli.main(["search", *small.split(), "--workdir", "run"]) == 0
assert cli.main(["search", *small.split(), "--data", "tfds:cifar10"]) == 2
import jax
import jax.numpy as jnp
import tenas_jax
from tenas_jax.host.programs import traced
traced(jax.jit(jnp.sin), "sin", jnp.ones(2))  # which keeps the program
f, x = lambda params, x: x @ params["kernel"], jnp.array([[1.0, 0.0], [0.0, 2.0]])
kernel = tenas_jax.empirical_ntk(f, {"kernel": jnp.ones((2, 1))}, x, engine="neural-tangents")
print(kernel.tolist())
"""


def named(requirements):
    """Requirements of this Python, by the name of the package."""
    parsed = [Requirement(text) for text in requirements or []]
    return {
        canonicalize_name(each.name): each
        for each in parsed
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def listed():
    return named(line for line in LIST.read_text().splitlines() if not line.startswith("#"))


def installed_with(names):
    """The packages and, as far as they are installed, all that they need."""
    found, due = set(), {(name, "") for name in names}
    while due:
        name, extra = each = due.pop()
        found.add(each)
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for needed in map(Requirement, texts):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                package = canonicalize_name(needed.name)
                due |= {(package, extra) for extra in ("", *needed.extras)} - found
    return {name for name, _ in found}


def test_the_list_is_what_is_required_but_tensorflow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = named(project["dependencies"])
    del own["neural-tangents"]
    theirs = named(metadata.requires("neural-tangents"))
    assert theirs.keys() >= TENSORFLOW
    expected = {name: theirs[name] for name in theirs.keys() - TENSORFLOW} | own
    assert listed() == expected


def test_nothing_on_the_list_fetches_tensorflow():
    assert installed_with({"neural-tangents"}) >= TENSORFLOW
    assert not installed_with(listed()) & TENSORFLOW


def test_only_tfds_needs_tensorflow(tmp_path):
    """Nor does anything else need what is installed for the sake of TensorFlow."""
    gone = TENSORFLOW | installed_with(TENSORFLOW) - installed_with(listed())
    modules = {
        module
        for module, packages in metadata.packages_distributions().items()
        if gone.issuperset(map(canonicalize_name, packages))
    }
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *sorted(TENSORFLOW | modules)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("\n[[1.0, 0.0], [0.0, 4.0]]\n")
    assert "'tfds:cifar10' needs TensorFlow" in process.stderr
