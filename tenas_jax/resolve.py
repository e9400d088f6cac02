"""Look up objects by name: built-in names, or `module:object` for your own."""

import difflib
import hashlib
import importlib
import os
import string
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tenas_jax.errors import InputError, first_line

T = TypeVar("T")
_ALLOWED = set(string.ascii_letters + string.digits + "_.-")


def resolve(text: str, known: Mapping[str, T], kind: type[T], what: str) -> T:
    """Look up an object by name.

    Args:
        text: a key of `known`, or `module:object`, where the module is on the import path or in the
            current folder.
        known: the built-in objects by name.
        kind: the required type of the object.
        what: the term for such an object in error messages.

    Returns:
        The object.

    Raises:
        InputError: the name is unknown, the module cannot be imported or lacks the object, or the
            object is of another kind.

    Example:
        >>> resolve("two", {"one": 1, "two": 2}, int, "number")
        2
        >>> resolve("math:pi", {}, float, "number")
        3.141592653589793
        >>> resolve("tow", {"one": 1, "two": 2}, int, "number")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown number 'tow' (did you mean 'two'?): choose from one, \
two, or write module:object
    """
    if text in known:
        return known[text]
    module_name, colon, name = text.partition(":")
    if not colon:
        choices = ", ".join(known)
        raise InputError(
            f"unknown {what} {text!r}{_hint(text, known)}: choose from {choices}, "
            "or write module:object"
        )
    module = _import(module_name, text, what)
    try:
        value: object = module
        for part in name.split("."):
            value = getattr(value, part)
    except AttributeError:
        raise InputError(
            f"{what} {text!r}: module {module_name} has no {name!r}{_hint(name, vars(module))}"
        ) from None
    if not isinstance(value, kind):
        needed = f"{'an' if kind.__name__[0] in 'AEIOUaeiou' else 'a'} {kind.__name__}"
        raise InputError(f"{what} {text!r} is of type {type(value).__name__}: it must be {needed}")
    return value


def sources_of(names: Iterable[str]) -> dict[str, str] | None:
    """SHA-256 of the source files behind names of the form `module:object`.

    Args:
        names: names that `resolve` has looked up; built-in ones need no file.

    Returns:
        A digest for each of the user's modules loaded with them. None if a module was loaded in
        another way or reloaded, so that its file may have changed since.

    Example:
        >>> sources_of(["kappa"])
        {}
        >>> sources_of(["tenas_jax.errors:InputError"]) is None
        True
    """
    modules = {name.partition(":")[0] for name in names if ":" in name}
    if not modules:
        return {}
    for name in modules:
        if name not in _loaded or _loaded[name][0] is not sys.modules[name].__spec__:
            return None
    return {name: digest for name, (_, digest) in sorted(_loaded.items())}


def located(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the line of the user's code, if any.

    Example:
        >>> try:
        ...     {}["kernel"]
        ... except KeyError as error:
        ...     located(error)
        "KeyError: 'kernel' (<doctest tenas_jax.resolve.located[0]>, line 2)"
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_library(frame.filename)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def is_library(file: str) -> bool:
    """Whether a source file belongs to an installed package, to Python or to tenas_jax.

    Example:
        >>> is_library(__file__), is_library(os.__file__), is_library("/home/me/my_nas.py")
        (True, True, False)
    """
    path = Path(file)
    folders = Path(__file__).parent, Path(os.__file__).parent
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(installed) or any(folder in path.parents for folder in folders)


def named_pairs(given: Any) -> tuple[tuple[str, Any], ...]:
    """The (name, value) pairs of a mapping or of an iterable of pairs.

    Example:
        >>> named_pairs({"a": 1}), named_pairs([("a", 1), ("b", 2)])
        ((('a', 1),), (('a', 1), ('b', 2)))
    """
    return tuple(given.items() if isinstance(given, Mapping) else map(tuple, given))


def require_names(what: str, names: Sequence[str]) -> None:
    """Reject names that are repeated or that files and notations cannot contain.

    Args:
        what: the kind of the named objects, for the error message.
        names: the names.

    Raises:
        InputError: there are none, one is repeated, or one has a character other than letters,
            digits, `_`, `.` and `-`.

    Example:
        >>> require_names("option", ["conv3", "conv,5"])
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: option 'conv,5': use letters, digits, '_', '.' and '-' only
    """
    if not names:
        raise InputError(f"{what}: none given, give at least one")
    for name in names:
        if not isinstance(name, str) or not name or not set(name) <= _ALLOWED:
            raise InputError(f"{what} {name!r}: use letters, digits, '_', '.' and '-' only")
    repeated = {name for name in names if list(names).count(name) > 1}
    if repeated:
        raise InputError(f"{what} {min(repeated)!r} is given twice: give every name once")


def _import(name: str, text: str, what: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    before = set(sys.modules)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module's code may raise anything
        raise InputError(
            f"{what} {text!r}: cannot import {name!r}: {type(error).__name__}: {first_line(error)}"
        ) from error
    for new in set(sys.modules) - before:
        spec = getattr(sys.modules[new], "__spec__", None)
        file = getattr(sys.modules[new], "__file__", None)
        if spec is not None and file is not None and (new == name or not is_library(file)):
            _loaded[new] = spec, hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return module


# Modules loaded by `resolve`, and the digests of their files at that time.
_loaded: dict[str, tuple[Any, str]] = {}


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [each for each in known if isinstance(each, str)], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
