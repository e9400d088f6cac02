"""A hook of MkDocs: pages that are made of other files, so that nothing is written twice."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tenas_jax"
PLOT = "ntk-nas-bench-201.png"
LICENSE = "https://spdx.org/licenses/MIT.html"


def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page, the notebooks, the API, and a plot of `bench/results`."""
    pages = {"index.md": landing_page((ROOT / "README.md").read_text())}
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        pages[f"{notebook.stem}.md"] = notebook_page(notebook)
    faces = sorted(PACKAGE.glob("*/__init__.pyi"))
    pages["api/index.md"] = api_index(faces)
    for face in faces:
        pages[f"api/{face.parent.name}.md"] = api_page(face)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    plot = ROOT / "bench" / "results" / "amd-epyc-1-thread" / PLOT
    files.append(File.generated(config, PLOT, abs_src_path=str(plot)))
    return files


def landing_page(readme: str) -> str:
    """The README, with links as they are in the site."""
    links = re.sub(r"\]\(docs/([\w-]+)\.ipynb\)", r"](\1.md)", readme)
    return links.replace("](docs/", "](").replace("](LICENSE)", f"]({LICENSE})")


def notebook_page(path: Path) -> str:
    """The cells of a notebook, and a link to it below its title."""
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    title, _, rest = texts[0].partition("\n")
    blocks = [title, f"[The notebook itself]({path.name})", rest]
    for cell, text in zip(cells[1:], texts[1:], strict=True):
        blocks.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(blocks)


def api_index(faces: list[Path]) -> str:
    """The public names: links to their rooms, and the functions that are in none."""
    links, here = [], []
    for name, path in public_names(PACKAGE / "__init__.pyi").items():
        in_room = any(path.startswith(f"tenas_jax.{face.parent.name}.") for face in faces)
        links.append(f"[`{name}`][{path}]")
        here += [] if in_room else [f"::: {path}"]
    return "\n\n".join(["# tenas_jax", "Everything public: " + ", ".join(links) + ".", *here])


def api_page(face: Path) -> str:
    """What a room offers: its docstring, its constants, and each class and function."""
    room = face.parent.name
    docstring = ast.get_docstring(ast.parse(face.with_suffix(".py").read_text())) or ""
    names = public_names(face)
    constants = ", ".join(f"`{name}`" for name in names if name.isupper())
    blocks = [f"# tenas_jax.{room}", docstring, constants and f"Constants: {constants}."]
    blocks += [f"::: {path}" for name, path in names.items() if not name.isupper()]
    return "\n\n".join(filter(None, blocks))


def public_names(face: Path) -> dict[str, str]:
    """The names in a `.pyi` file, and where each is defined."""
    package = ".".join(face.relative_to(ROOT).parent.parts)
    return {
        alias.name: f"{package}.{node.module}.{alias.name}"
        for node in ast.parse(face.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
