"""A row with all the metrics of a problem."""

from functools import partial

from tenas_jax.searching.measurement import make_measure


def measure_all(problem):
    """A function of a key, a mask and `Images`."""
    measured = [metric for metric in problem.metrics if metric.count is None]
    return partial(make_measure(problem), measured)
