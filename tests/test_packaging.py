"""The wheel and the source distribution: built offline, installed, used from an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import tenas_jax

ROOT = Path(__file__).parents[1]
SOURCES = "tenas_jax", "configs", "pyproject.toml", "setup.cfg", "README.md", "LICENSE"
BUILD_SDIST = "from setuptools.build_meta import build_sdist; build_sdist('built')"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def run(*words, cwd, **environment):
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_wheel(source):
    """What is built from a folder, of which pip leaves no trace."""
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", "built", ".", cwd=source)
    [wheel] = (source / "built").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the checkout, as builds leave files behind."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources):
    return build_wheel(sources)


def test_the_wheel_has_the_package_alone(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    package = Path(tenas_jax.__file__).parent
    files = {
        str(Path("tenas_jax") / path.relative_to(package))
        for pattern in ("**/*.py", "**/*.pyi", "configs/*.py", "py.typed")
        for path in package.glob(pattern)
    }
    assert sorted(names) == sorted(files)


def test_its_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    [path] = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = Parser().parsestr(archive.read(path).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == tenas_jax.__version__
    assert metadata["Author"] == "tenas_jax developers"
    assert metadata["Keywords"] == ",".join(project["keywords"])
    assert metadata.get_all("Project-URL") is None
    extras = {"cuda", "cuda12", "cuda13", "tpu", "docs", "test", "bench", "nasbench"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    requirements = metadata.get_all("Requires-Dist")
    for extra, jax in (("cuda", "cuda13"), ("cuda12", "cuda12"), ("cuda13", "cuda13")):
        assert f'jax[{jax}]; extra == "{extra}"' in requirements


def test_the_source_distribution_makes_the_same_wheel(sources, wheel, tmp_path):
    run(sys.executable, "-c", BUILD_SDIST, cwd=sources)
    [sdist] = (sources / "built").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    again = build_wheel(unpacked)
    assert again.name == wheel.name
    ours, theirs = (
        {entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()}
        for path in (wheel, again)
    )
    assert ours == theirs


def test_it_is_installed_and_used_elsewhere(wheel, tmp_path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=elsewhere)
    version = f"tenas_jax {tenas_jax.__version__}\n"
    where = {"PYTHONPATH": str(target)}
    for command in ([sys.executable, "-m", "tenas_jax"], [target / "bin" / "tenas"]):
        assert run(*command, "--version", cwd=elsewhere, **where) == version
    program = "import tenas_jax, tenas_jax.configs as c; print(c.__file__, *c.PRESETS)"
    printed = run(sys.executable, "-c", program, cwd=elsewhere, **where)
    assert printed.startswith(f"{target}/tenas_jax/configs/__init__.py nas-bench-201 ")
    assert (target / "tenas_jax" / "py.typed").exists()


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == tenas_jax.__version__
    assert citation["references"][0]["year"] == 2021
    changelog = (ROOT / "docs" / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == tenas_jax.__version__
