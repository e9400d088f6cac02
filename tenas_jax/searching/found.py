"""The end of every search: what was found is measured as well, in as many repeats as a round has.

Its weights and images are drawn anew. Those by which it was chosen favor it: the best of many noisy
measurements is too good.
"""

from collections.abc import Generator
from typing import Any

from tenas_jax.searching.problem import Problem
from tenas_jax.searching.repeats import summarized
from tenas_jax.searching.rows import Found, Measurements, Note, Row, Run, Work


def measured_at_the_end(
    problem: Problem, strategy: Run
) -> Generator[Work | Note, Measurements, tuple[Found, dict[str, Any]]]:
    """A strategy, and then the measurement of what it found.

    The rows of this measurement have the round after the last one of the strategy's rows.

    Args:
        problem: what is searched.
        strategy: a generator that was not started.

    Returns:
        A generator like a strategy. It returns what was found, and what
            `tenas_jax.searching.repeats.summarized` says about it.
    """
    config = problem.config
    repeats = config.auto_repeats.minimum if config.repeats == "auto" else config.repeats
    last, rounds = -1, 0
    values: Any = None
    while True:
        try:
            step = strategy.send(values)
        except StopIteration as end:
            found: Found = end.value
            break
        if isinstance(step, Work):
            last, rounds = max([last, *(row.round for row in step.rows)]), step.rounds
            step = step._replace(later=step.later + repeats)
        values = yield step
    genotype = problem.space.to_string(found.mask)
    rows = [
        Row(
            last + 1,
            repeat,
            found.mask,
            {"round": last + 1, "repeat": repeat, "genotype": genotype},
        )
        for repeat in range(repeats)
    ]
    values = yield Work(rows, rounds, rounds, 0)
    return found, summarized(problem.directions, values.T)
