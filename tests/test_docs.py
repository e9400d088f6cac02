"""The README and the pages of the docs: every command and snippet on them runs.

Of a search and of scores everything is real but the images, which are few, and the measurements,
which are made up; trainings are tiny. Commands of several hosts run as processes of their own.
"""

import contextlib
import functools
import gzip
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from archives import STUB, write_archive
from fake_scorer import HashScorer

from tenas_jax import api, cli
from tenas_jax.analysis import report
from tenas_jax.architectures import enumeration
from tenas_jax.cli import eval as evaluate
from tenas_jax.cli import session, train
from tenas_jax.searching import scorer
from tenas_jax.spaces import NAS_BENCH_201

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"<!-- not run: (?P<reason>[^\n]+) -->\n```[^\n]*\n(?P<skipped>.*?)^```$"
    r"|<!-- run (?P<hidden>sh|python): (?P<setup>[^\n]+) -->"
    r"|^```(?P<language>\w*)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
REASONS = {
    "needs a TPU pod",
    "needs SLURM; the script itself is run",
    "needs XLA's compiler for CUDA",
}
SAMPLE = 12
# What the tests replace, so that a page needs no network and no time.
SMALLER = {
    "tfds:cifar10": "npz:images.npz",
    "--sample 1000": f"--sample {SAMPLE}",
    "--sample 100": "--sample 5",
    "--budget 200": "--budget 60",
    "search darts-best": "search darts-best --shortlist.pool 200",
}
TINY = {
    "train": "--channels 2 --cells 1 --epochs 1 --batch-size 16 --image-size 8 --padding 1 "
    "--cutout 2 --drop-path 0.0",
    "correlate": "--resamples 20",
    "export": "--platforms cpu",
    "distributed": "--metrics parameters,flops --repeats 1 --images 16 --ntk.batch-size 4",
}
INSTALLING = "python3 -m venv", "source ", "pip install", "pip uninstall", "pytest -q"


class Block(NamedTuple):
    """A fenced block of a page, or a comment that prepares the next one."""

    language: str
    text: str
    file: str | None = None
    reason: str | None = None
    hidden: bool = False


def blocks_of(page):
    for match in BLOCK.finditer(page.read_text()):
        parts = match.groupdict()
        yield Block(
            parts["hidden"] or parts["language"] or "",
            parts["setup"] or parts["skipped"] or parts["text"],
            parts["file"],
            parts["reason"],
            parts["hidden"] is not None,
        )


def commands_of(text):
    """The commands of a block, one by one, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            end = words.index("&&")
            yield words[:end]
            words = words[end + 1 :]
        if words:
            yield words


class PageScorer(HashScorer):
    """Made-up numbers for whatever metrics are asked for."""

    def __init__(self, problem, images, devices, *, single_path):
        super().__init__(batch_rows=64)
        self.metrics = problem.metrics

    def score(self, key, mask):
        kappa, regions = super().score(key, mask)
        return [kappa] + [regions + i for i in range(1, len(self.metrics))]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What pages take for granted: labeled images, accuracies of what is sampled.

    The accuracies as an archive, too, from which a page makes the table.
    """
    folder = tmp_path_factory.mktemp("files")
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(120) % 10)
    scored = enumeration.sample(NAS_BENCH_201, SAMPLE, np.random.default_rng(0))
    texts = enumerate(map(NAS_BENCH_201.to_string, scored))
    rows = [f"{i},{text},{80 + i},{i % 7},{i % 5}" for i, text in texts]
    table = "\n".join(["index,arch,cifar10_test,params_m,flops_m", *rows])
    (folder / "nasbench201.csv.gz").write_bytes(gzip.compress(table.encode(), 1))
    write_archive(folder, "folder", [NAS_BENCH_201.to_string(mask) for mask in scored])
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(files, cache, monkeypatch, tmp_path):
    """An empty folder with these files, few images, made-up measurements."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(cache), 0), strict=True):
        jax.config.update(name, value)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    load_images = api.load_images

    def few(*source, **options):
        return load_images(*source, **{**options, "limit": options["minimum"]})

    monkeypatch.setattr(api, "load_images", few)
    monkeypatch.setattr(scorer, "make_scorer", PageScorer)
    monkeypatch.setitem(sys.modules, "nats_bench", STUB)
    monkeypatch.setattr(report, "write_plots", lambda *_: None)
    for command in (session, train, evaluate):
        monkeypatch.setattr(command, "configure_jax", lambda _: jax.devices()[:4])
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs(page, quick):
    names = {}
    if "tenas nasbench convert" in page.read_text():
        Path("nasbench201.csv.gz").unlink()
    for block in blocks_of(page):
        if block.reason:
            assert any(block.reason.startswith(reason) for reason in REASONS), block.reason
        elif block.file:
            Path(block.file).write_text(block.text)
            run_script(block.file)
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.language == "sh":
            run_commands(block.text)
        else:
            assert block.language in ("", "bibtex")


def run_commands(text):
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    together = []
    for words in commands_of(text):
        line = " ".join(words)
        if "--distributed" in words:
            together.append(words)
        elif words[0] == "tenas":
            run_here(words[1:])
        elif words[0] == "pytest" and len(words) > 2:
            collected = [sys.executable, "-m", *words, "--collect-only"]
            subprocess.run(collected, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        elif words[0] == "cp":
            shutil.copy(ROOT / words[1], words[2])
        elif not line.startswith(INSTALLING):
            assert f"{line}\n" in (ROOT / ".ci" / "run").read_text()
    run_together(together)


def run_here(words):
    """Run `tenas` in this process."""
    *words, output = words if ">" in words else [*words, None]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main([*filter(">".__ne__, words), *TINY.get(words[0], "").split()]) == 0, words
    assert printed.getvalue()
    if output is not None:
        Path(output).write_text(printed.getvalue())


def run_together(commands):
    """Run commands of one search at the same time, as its hosts would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tenas_jax", *words[1:], *TINY["distributed"].split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in ([word.replace("HOST:PORT", address) for word in each] for each in commands)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output


def run_script(script):
    """Run a script for SLURM as its only task; started again, it would resume."""
    tools = Path(".venv") / "bin"
    tools.mkdir(parents=True)
    tenas = f'{sys.executable} -m tenas_jax "$@" {TINY["distributed"]}'
    for name, text in {"activate": "", "srun": 'exec "$@"', "tenas": tenas}.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools.absolute()}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    run = functools.partial(subprocess.run, env=environment, capture_output=True, text=True)
    job = run(["bash", script])
    assert job.returncode == 0, job.stderr
    assert (Path("run") / "result.json").exists()
    (tools / "tenas").write_text("#!/bin/bash\necho $@\n")
    assert run(["bash", script]).stdout.endswith(" --resume\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_is_overlooked(page):
    fences = sum(line.lstrip().startswith("```") for line in page.read_text().splitlines())
    assert fences == 2 * sum(not block.hidden for block in blocks_of(page))


def test_pages_share_no_folder():
    """So that a reader can follow one page after the other in one folder."""
    pages = {}
    for page in PAGES:
        text = page.read_text()
        folders = re.findall(r"workdir(?:=\"| )([\w-]+)", text)
        searches = re.findall(r"^tenas search \S.*?(?=\s+#|$)", text, re.MULTILINE)
        for each in {*folders, *(search for search in searches if "--workdir" not in search)}:
            pages.setdefault(each, []).append(page.name)
    assert {"paper", "my-net", "tenas search nas-bench-201-best"} < pages.keys()
    assert {each: names for each, names in pages.items() if len(names) > 1} == {}


def test_few_blocks_are_not_run():
    skipped = [block for page in PAGES for block in blocks_of(page) if block.reason]
    assert len(skipped) <= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    """Of the pages MkDocs checks it as well, where it is installed; of the README nothing else."""
    made = {"ntk-nas-bench-201.png"}
    made |= {f"{notebook.stem}.md" for notebook in (ROOT / "docs").glob("*.ipynb")}
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
        assert link in made or (page.parent / link).exists(), link
