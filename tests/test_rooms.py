"""The rooms: an import goes down, never up, and importing a room's face loads nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tenas_jax

PACKAGE = Path(tenas_jax.__file__).parent
# From the ground floor up; a room imports from those before it and from itself.
FLOORS = [
    "errors",
    "numerics",
    "resolve",
    "architectures",
    "host",
    "data",
    "metrics",
    "networks",
    "spaces",
    "searching",
    "training",
    "analysis",
    "configs",
    "api",
    "cli",
    "__main__",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path):
    """The modules of this package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tenas_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tenas_jax."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_import_goes_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = FLOORS[FLOORS.index(room) + 1 :]
    assert not set(imported(path)) & set(above)


def test_every_room_has_a_floor_and_no_room_has_rooms():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms | {"configs"} == set(FLOORS)  # in a checkout a link
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in FILES)


@pytest.mark.parametrize("room", [floor for floor in FLOORS if (PACKAGE / floor).is_dir()])
def test_a_face_is_thin(room):
    """It names what others may use, and loads it when it is used."""
    if room in ("configs", "cli"):  # a dictionary and a dispatcher
        return
    program = f"import sys, tenas_jax.{room} as room\nprint(*sys.modules)\nassert room.__all__\n"
    program += "[getattr(room, name) for name in room.__all__]"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert not {"jax", "flax", "numpy"} & set(run.stdout.split())


@pytest.mark.parametrize("folder", ["architectures", "metrics"])
def test_rooms_without_flax(folder):
    names = [f"tenas_jax.{folder}.{path.stem}" for path in (PACKAGE / folder).glob("[a-z]*.py")]
    program = f"import sys, {', '.join(names)}\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "flax" not in run.stdout.split()
