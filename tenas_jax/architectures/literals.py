"""Parse Python literals and calls from logs, without running them."""

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from tenas_jax.errors import InputError

LONGEST = 100_000  # characters; the parser's memory grows with the text


class Misread(Exception):
    """A parse error.

    Args:
        problem: what is wrong.
        index: the position of the error in the text; None: unknown.
    """

    def __init__(self, problem: str, index: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.index = problem, index

    def explain(self, name: str, text: str, form: str) -> InputError:
        """The error message for the user.

        Args:
            name: the search space.
            text: the text that was read.
            form: the expected form.

        Example:
            >>> print(Misread("'|' is missing", 2).explain("my-space", "op~0|", "|op~0|"))
            not a genotype of my-space: '|' is missing at character 3: write |op~0|
        """
        where = ""
        if self.index is not None:
            line = text.count("\n", 0, self.index) + 1
            column = self.index - text.rfind("\n", 0, self.index)
            where = f" at character {column}" if self.index < len(text) else " at the end"
            where += f" of line {line}" if "\n" in text.strip() else ""
        return InputError(f"not a genotype of {name}: {self.problem}{where}: write {form}")


class Located(NamedTuple):
    """A value, and the index of its first character in the text."""

    value: Any
    at: int


def read_call(text: str, function: str, names: Sequence[str] = ()) -> dict[str, Located]:
    """The arguments of the only call of a function in a text.

    As in logs and source files, words may come before the call, and quotation marks, punctuation
    and a comment after it.

    Args:
        text: the text.
        function: the name of the function.
        names: names of the positional arguments, in order.

    Returns:
        Arguments by name: strings, integers (also NumPy's), None, ranges, and lists of `Located`
        values for lists and tuples.

    Raises:
        Misread: the text does not have exactly one such call, or its arguments are unsupported.

    Example:
        >>> read_call("10:31 best = Genotype(a=[np.int64(3)], b=None)", "Genotype")
        {'a': Located(value=[Located(value=3, at=25)], at=24), 'b': Located(value=None, \
at=41)}
    """
    calls = list(re.finditer(rf"\b{function}\s*\(", text))
    if len(calls) != 1:
        raise Misread(f"there are {len(calls)} {function}(...), not one")
    start = calls[0].start()
    end = _closing(text, calls[0].end())
    require_end(text, end)
    if end - start > LONGEST:
        raise Misread(f"there are more than {LONGEST} characters")
    return _Reader(text, start, end).arguments(names)


def require_end(text: str, at: int) -> None:
    """Raise `Misread` if the text continues with more than punctuation and a comment."""
    if not re.compile(r"[\s'\"`.,;)\]}]*(#.*)?", re.DOTALL).fullmatch(text, at):
        raise Misread("something follows the genotype", at)


def without_colors(text: str) -> str:
    r"""Replace a terminal's color codes by blanks, which keeps the positions in the text.

    Example:
        >>> without_colors("\x1b[32mok\x1b[0m")
        '     ok    '
    """
    return re.sub(r"\x1b\[[0-9;]*m", lambda code: " " * len(code[0]), text)


def _closing(text: str, at: int) -> int:
    """Index after the bracket that closes the open one; brackets in quotations do not count."""
    depth = 1
    for part in re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|[()]").finditer(text, at):
        depth += {"(": 1, ")": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    raise Misread("')' is missing", len(text))


def read_numbers(text: str) -> list[int] | None:
    """The numbers in a text that is a tuple or a list of integers, or None for any other text.

    Example:
        >>> read_numbers("(4, 0, np.int64(3))"), read_numbers("[0]"), read_numbers("|none~0|")
        ([4, 0, 3], [0], None)
    """
    listed = re.fullmatch(
        rf"\s*['\"]?[(\[]\s*{_NUMBER}(\s*,\s*{_NUMBER})*[\s,]*[)\]]['\"]?\s*", text
    )
    return [int(number) for number in re.findall(_DIGITS, text)] if listed else None


_DIGITS = r"(?<![\w])[0-9]{1,3}"
_NUMBER = rf"(?:(?:(?:np|numpy)\.)?u?int(?:8|16|32|64)\({_DIGITS}\)|{_DIGITS})"


class _Reader:
    """Reads the values in a part of a text, with their positions in the whole text."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self._start, self._source = start, text[start:end]
        self._lines = self._source.split("\n")

    def arguments(self, names: Sequence[str]) -> dict[str, Located]:
        call = self._parse()
        if not isinstance(call, ast.Call) or len(call.args) > len(names):
            raise Misread("there are more fields than names", self._start)
        found = dict(zip(names, map(self._read, call.args), strict=False))
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in found:
                raise Misread("a field is repeated or has no name", self._index(keyword.value))
            found[keyword.arg] = self._read(keyword.value)
        return found

    def _parse(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                return ast.parse(self._source, mode="eval").body
        except SyntaxError as error:
            line, column = error.lineno or 1, error.offset or 1
            before = sum(len(each) + 1 for each in self._lines[: line - 1])
            raise Misread(
                "a bracket, comma or quotation mark is wrong", self._start + before + column - 1
            ) from None
        except (ValueError, RecursionError, MemoryError):
            raise Misread("this cannot be read", self._start) from None

    def _index(self, node: ast.expr) -> int:
        before = sum(len(line) + 1 for line in self._lines[: node.lineno - 1])
        line = self._lines[node.lineno - 1].encode()  # the parser counts bytes
        return self._start + before + len(line[: node.col_offset].decode(errors="replace"))

    def _read(self, node: ast.expr) -> Located:
        index = self._index(node)
        match node:
            case ast.Constant(value=None | str() as value):
                return Located(value, index)
            case ast.Constant(value=int() as value) if type(value) is int and value < 1000:
                return Located(value, index)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return Located([self._read(part) for part in parts], index)
            case ast.Call(args=[argument], keywords=[]) if _NUMPY.fullmatch(_name(node.func)):
                return Located(self._read(argument).value, index)
            case ast.Call(args=arguments, keywords=[]) if _name(node.func) == "range":
                bounds = [self._read(each).value for each in arguments]
                whole = len(bounds) in (1, 2, 3) and all(type(each) is int for each in bounds)
                if whole and bounds[2:] != [0]:
                    return Located(range(*bounds), index)
        raise Misread("this is not an operator, number, list or range", index)


_NUMPY = re.compile(r"((np|numpy)\.)?(u?int(8|16|32|64|p)|str_|array)|list|tuple")


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return f"{module}.{name}"
    return ""
