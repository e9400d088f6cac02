"""A scorer that takes no time, and searches by it."""

import hashlib

import jax
import numpy as np

from tenas_jax.metrics.registry import KAPPA, REGIONS
from tenas_jax.searching.config import SearchConfig
from tenas_jax.searching.loop import run_search
from tenas_jax.searching.problem import look_up

CONFIG = SearchConfig(repeats=2, seed=5)


class HashScorer:
    """Scores that look random and depend on a row's key and mask alone."""

    metrics = (KAPPA, REGIONS)
    compile_seconds = 0.25

    def __init__(self, batch_rows=4, dies_at_call=None, singular=0):
        self.batch_rows = batch_rows
        self.dies_at_call = dies_at_call
        self.singular = singular  # of 256 rows, about so many
        self.plan = {}
        self.compiled = 0
        self.calls = 0
        self.rows = []

    def parts(self):
        return [self]

    def begin(self):
        pass

    def compile(self):
        self.compiled += 1

    def score(self, key, mask):
        digest = hashlib.sha256(np.asarray(key).tobytes() + np.asarray(mask).tobytes()).digest()
        kappa = 1 + int.from_bytes(digest[:4], "big") / 7
        return [np.inf if digest[8] < self.singular else kappa, 1 + digest[9]]

    def __call__(self, keys, masks):
        assert self.compiled == 1
        assert keys.shape == (self.batch_rows,)
        assert masks.shape[0] == self.batch_rows
        assert masks.dtype == bool
        if self.calls == self.dies_at_call:
            raise InterruptedByTest
        self.calls += 1
        keys = np.asarray(jax.random.key_data(keys))
        self.rows += [
            (key.tobytes(), mask.tobytes()) for key, mask in zip(keys, masks, strict=True)
        ]
        return np.array([self.score(key, mask) for key, mask in zip(keys, masks, strict=True)])


class InterruptedByTest(Exception):
    pass


def search(workdir, scorer=None, config=CONFIG, **options):
    settings = {"preset": "test", "data_fingerprint": "f00d", "device": "2 x test"} | options
    return run_search(look_up(config), scorer or HashScorer(), workdir, **settings)


def timeless(result):
    return {name: value for name, value in result.items() if name != "seconds"}
