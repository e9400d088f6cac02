"""`tenas list`: every name there is, with a line that says what it is."""

import pytest

from tenas_jax import cli
from tenas_jax.configs import PRESETS
from tenas_jax.metrics.registry import METRICS
from tenas_jax.spaces.registry import SPACES
from tenas_jax.training.recipes import RECIPES

NAMES = {"presets": PRESETS, "spaces": SPACES, "metrics": METRICS, "recipes": RECIPES}


def listed(capsys, *words):
    """Names and what is said of them, by heading."""
    assert cli.main(["list", *words]) == 0
    found, heading = {}, None
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, text = line.split(maxsplit=1)
            found[heading][name] = text
        else:
            heading = line
            found[heading] = {}
    return found


@pytest.mark.parametrize("kind", NAMES)
def test_every_name_has_a_line(capsys, kind):
    assert list(listed(capsys, kind)) == [kind]
    lines = listed(capsys, kind)[kind]
    assert list(lines) == list(NAMES[kind])
    assert all(lines.values())


def test_alone_it_lists_everything(capsys):
    found = listed(capsys)
    assert list(found) == ["presets", "spaces", "metrics", "recipes", "sources"]
    assert found["metrics"]["kappa"] == (
        "NTK condition number, lower is better (Chen et al. 2021, eq. 3)"
    )
    assert found["recipes"]["nas-bench-201"].startswith("nas-bench-201, tfds:cifar10: 16 channels")


def test_an_unknown_kind_is_one_line(capsys):
    assert cli.main(["list", "optimizers"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "tenas: invalid choice 'optimizers' for argument 'kind': expected one of ('all', 'presets',"
        " 'spaces', 'metrics', 'recipes', 'sources') (see tenas list --help)\n"
    )
