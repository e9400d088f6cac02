"""The annotated types and shapes of the first calls of each function in each test."""

import functools
import inspect
from collections import Counter

import jaxtyping

# A search calls some functions hundreds of thousands of times: to check each takes longer than
# the search, and says nothing that these do not say.
CALLS = 3

every_call = jaxtyping.jaxtyped
counts = Counter()  # by code, which is one of all functions that a `def` makes


def first_calls(*, typechecker):
    """Takes the place of `jaxtyping.jaxtyped`, which `--jaxtyping-packages` puts everywhere."""

    def decorate(decorated):
        if inspect.isclass(decorated):
            return every_call(decorated, typechecker=typechecker)
        checked = None

        @functools.wraps(decorated)
        def call(*args, **kwargs):
            nonlocal checked
            counts[decorated.__code__] += 1
            if counts[decorated.__code__] > CALLS:
                return decorated(*args, **kwargs)
            checked = checked or every_call(decorated, typechecker=typechecker)
            return checked(*args, **kwargs)

        return call

    return decorate
