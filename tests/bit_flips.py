"""What becomes of runs in whose files a bit is flipped.

`python tests/bit_flips.py FLIPS` flips so many bits, one at a time, in the files of a finished
search, of finished scores and of a finished training, and counts what becomes of each.
"""

import logging
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import optax
from fake_scorer import CONFIG, HashScorer, search
from genotypes import bench_text
from rich.console import Console

from tenas_jax.cli.train import write_result
from tenas_jax.data.normalization import Normalization
from tenas_jax.errors import InputError
from tenas_jax.host.files import read_json
from tenas_jax.searching.loop import run_scores, search_settings
from tenas_jax.searching.problem import look_up
from tenas_jax.spaces import NAS_BENCH_201, load_genotype
from tenas_jax.training.checkpoint import Checkpoints
from tenas_jax.training.folder import Training, load_training, load_variables, open_output
from tenas_jax.training.loop import MetricsLog
from tenas_jax.training.recipes import get_recipe
from tenas_jax.training.steps import initial_state

BAD = "silently different", "traceback"


class Search:
    """A search with a scorer that takes no time; read by `tenas search --resume` and `describe`."""

    def make(self, folder):
        search(folder)

    def read(self, folder):
        space, mask = load_genotype(str(folder))
        return search(folder, resume=True), space.to_string(mask)


class Scores:
    """Scores of three architectures; read by `tenas score --resume`."""

    texts = tuple(bench_text(*[op] * 6) for op in ("none", "skip_connect", "nor_conv_3x3"))

    def make(self, folder, resume=False):
        problem = look_up(CONFIG)
        settings = search_settings(problem, "scores", "f00d")
        masks = np.stack([NAS_BENCH_201.from_string(text) for text in self.texts])
        scorer = HashScorer()
        return run_scores(problem, masks, [scorer], folder, settings=settings, resume=resume)

    def read(self, folder):
        return self.make(folder, resume=True).tolist(), (folder / "scores.csv").read_text()


class Train:
    """A training of two epochs; read by `tenas eval`, `export` and `train --resume`."""

    training = Training(
        bench_text(*["none"] * 6),
        get_recipe("nas-bench-201"),
        ("cat", "dog"),
        Normalization((0.5,) * 3, (0.2,) * 3),
        ("f00d", "beef"),
    )
    optimizer = optax.sgd(0.1, 0.9)

    def state(self, step):
        key = jax.random.key(step)
        variables = {"params": {"conv": {"kernel": jax.random.normal(key, (3, 3, 4, 4))}}}
        state = initial_state(variables, self.optimizer)
        return state._replace(step=jax.numpy.asarray(step, jax.numpy.int32))

    def make(self, folder):
        open_output(folder, self.training, resume=False)
        about = self.training.about()
        with (
            Checkpoints(folder / "checkpoints", about, keep_last=1) as checkpoints,
            MetricsLog(folder, self.training, 0, 0) as log,
        ):
            for step, accuracy in ((2, 0.75), (4, 0.5)):
                record = {"step": step, "epoch": step // 2, "train_loss": 1 / step}
                log.write({**record, "test_loss": 2 / step, "test_accuracy": accuracy})
                checkpoints.save(self.state(step), log.size, accuracy)
        self.finish(folder)

    def finish(self, folder):
        write_result(folder, "nas-bench-201", Console(quiet=True))
        return read_json(folder / "result.json", remedy="")

    def read(self, folder):
        open_output(folder, self.training, resume=True)
        told, like = load_training(folder), self.state(0)
        evaluated = [
            (step, values(variables))
            for which in ("best", "last")
            for step, variables in [load_variables(folder, told, like.variables, which)]
        ]
        with Checkpoints(folder / "checkpoints", told.about()) as checkpoints:
            state, size = checkpoints.restore(checkpoints.latest, like)
        MetricsLog(folder, told, size, int(state.step)).__exit__(None, None, None)
        return told, evaluated, values(state), self.finish(folder)


def values(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def survey(run, flips, seed=0, where=None):
    """How often which outcome followed the flip of a bit.

    Args:
        run: makes a finished folder, and reads it as a user does.
        flips: how many; each file has as many as another.
        seed: of the places.
        where: folder to work in; None: a temporary one.

    Returns:
        A counter of (file, outcome), and a line for each bad outcome.
    """
    rng = np.random.default_rng(seed)
    counts, bad = Counter(), []
    with tempfile.TemporaryDirectory(dir=where) as place:
        whole, copy = Path(place) / "whole", Path(place) / "copy"
        run.make(whole)
        expected = run.read(whole)
        names = sorted(
            path.relative_to(whole)
            for path in whole.rglob("*")
            if path.is_file() and path.stat().st_size
        )
        for number in range(flips):
            name = names[number % len(names)]
            shutil.copytree(whole, copy)
            content = bytearray((copy / name).read_bytes())
            bit = int(rng.integers(8 * len(content)))
            content[bit // 8] ^= 1 << bit % 8
            (copy / name).write_bytes(content)
            try:
                same = run.read(copy) == expected
                mended = (copy / name).exists() and (copy / name).read_bytes() != bytes(content)
                outcome = ("recovered" if mended else "harmless") if same else BAD[0]
            except InputError as error:
                outcome = "refused" if "\n" not in str(error) else BAD[1]
            except Exception as error:
                outcome = BAD[1]
                bad.append(f"{name}, bit {bit}: {type(error).__name__}: {error}")
            if outcome == BAD[0]:
                bad.append(f"{name}, bit {bit}: {outcome}")
            counts[str(name), outcome] += 1
            shutil.rmtree(copy)
    return counts, bad


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for run in (Search(), Scores(), Train()):
        counts, bad = survey(run, int(sys.argv[1]))
        outcomes = Counter()
        for (name, outcome), count in sorted(counts.items()):
            print(f"{type(run).__name__:8}{name:60}{outcome:20}{count}")
            outcomes[outcome] += count
        print(type(run).__name__, dict(outcomes), *bad, sep="\n")
