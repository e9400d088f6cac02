"""The notebooks in docs/ run, in processes of their own."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
missing = set(sys.argv[3:])
notebook.cells = [c for c in notebook.cells if not missing & set(c.metadata.get("tags", []))]
NotebookClient(notebook, timeout=300, resources={"metadata": {"path": sys.argv[2]}}).execute()
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
print(nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])))
"""


def run_notebook(name, folder, *missing):
    """The outputs of all cells, as text."""
    pytest.importorskip("nbclient")
    words = [sys.executable, "-W", "ignore", "-c", NOTEBOOK, ROOT / "docs" / name, ROOT / "docs"]
    run = subprocess.run(
        [*words, *missing], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.dumps(json.loads(run.stdout)["cells"][0]["outputs"])


def test_an_architecture_is_found_in_a_notebook(tmp_path):
    text = run_notebook("find_an_architecture.ipynb", tmp_path)
    assert "block_0=conv" in text
    assert "<progress" in text
    assert "image/png" in text


def test_kappa_of_ones_own_network_in_a_notebook(tmp_path):
    optional = "equinox", "haiku"
    missing = [name for name in optional if importlib.util.find_spec(name) is None]
    text = run_notebook("kappa.ipynb", tmp_path, *missing)
    kappas = dict(re.findall(r"(\w+) +train +(\S+) +eval", text))
    assert set(kappas) == {"linen", "nnx", "equinox", "haiku"} - set(missing)
    rows = re.findall(r"train +(\S+) +eval +([^\s\\]+)", text)
    for in_train_mode, in_eval_mode in rows:
        assert 1 < float(in_train_mode) < float(in_eval_mode) < 1e5
