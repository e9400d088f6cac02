"""Columns of scores on the command line: their names and directions."""

from typing import NamedTuple

from tenas_jax.errors import InputError
from tenas_jax.metrics.registry import METRICS, get_metric

DIRECTIONS = {"higher": 1, "lower": -1}


class Term(NamedTuple):
    """A column of scores."""

    name: str
    """The name of the column, with a minus if its direction is reversed."""
    column: str
    """The name of the column."""
    label: str
    """Its name in plots."""
    direction: int
    """+1 if higher is better, -1 if lower is better."""


def parse_term(text: str) -> Term:
    """Parse a metric, or a column with its direction.

    Args:
        text: a metric, by its name or as `module:object`; or `COLUMN:higher`, `COLUMN:lower`. A
            leading minus reverses the direction.

    Raises:
        InputError: there is no such metric.

    Example:
        >>> parse_term("-snip").direction, parse_term("latency:lower")[1:]
        (-1, ('latency', 'latency', -1))
    """
    name = text.removeprefix("-")
    minus, sign = ("-", -1) if name != text else ("", 1)
    column, colon, direction = name.rpartition(":")
    if colon and column and direction in DIRECTIONS:
        label = METRICS[column].label if column in METRICS else column
        return Term(minus + column, column, label, sign * DIRECTIONS[direction])
    metric = get_metric(name)
    return Term(minus + metric.name, metric.name, metric.label, sign * metric.direction)


def parse_terms(text: str) -> list[Term]:
    """Parse columns separated by commas; an empty text gives none.

    Raises:
        InputError: there is no such metric, or one is given twice.

    Example:
        >>> [term.name for term in parse_terms("kappa, -snip")]
        ['kappa', '-snip']
    """
    return _distinct([parse_term(each) for each in _parts(text, ",")])


def parse_sums(text: str) -> list[list[Term]]:
    """Parse rank sums such as `kappa+regions,regions+-snip`.

    Raises:
        InputError: there is no such metric, or a sum has no two different ones.

    Example:
        >>> [[term.name for term in terms] for terms in parse_sums("kappa+regions,regions+-snip")]
        [['kappa', 'regions'], ['regions', '-snip']]
    """
    sums = [[parse_term(each) for each in _parts(part, "+")] for part in _parts(text, ",")]
    for terms in sums:
        if len({term.column for term in terms}) < max(len(terms), 2):
            raise InputError(
                f"the rank sum {'+'.join(term.name for term in terms)} has no two different "
                "metrics: write e.g. kappa+regions"
            )
    return sums


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator)] if text.strip() else []


def _distinct(terms: list[Term]) -> list[Term]:
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is given twice: give every metric once")
    return terms
