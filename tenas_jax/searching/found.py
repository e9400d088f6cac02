"""The end of every search: the found architecture is measured, with as many repeats as a round.

Weights and images are drawn again, because the draws by which the architecture was chosen favor it:
the best of many noisy measurements is too good.
"""

from collections.abc import Generator
from typing import Any

from tenas_jax.searching.problem import Problem
from tenas_jax.searching.repeats import summarized
from tenas_jax.searching.rows import Found, Measurements, Note, Row, Run, Work


def measured_at_the_end(
    problem: Problem, strategy: Run
) -> Generator[Work | Note, Measurements, tuple[Found, dict[str, Any]]]:
    """Run a strategy, then measure the architecture it found.

    The rows of this measurement belong to the round after the strategy's last one.

    Args:
        problem: what is searched.
        strategy: a generator that was not started.

    Returns:
        A generator like a strategy. It returns the result of the strategy, and the summary of the
            measurement by `tenas_jax.searching.repeats.summarized`.
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
