"""Names of built-in objects and of users' own, and the sources behind them."""

import hashlib
import importlib
import sys

import pytest

from tenas_jax.errors import InputError
from tenas_jax.resolve import is_library, named_pairs, require_names, resolve, sources_of

KNOWN = {"one": 1, "two": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module and one that it imports."""
    (tmp_path / "mine_helper.py").write_text("VALUE = 7\n")
    (tmp_path / "mine.py").write_text(
        "from mine_helper import VALUE\n\n\nclass Box:\n    inner = VALUE\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("mine", "mine_helper"):
        sys.modules.pop(name, None)


def test_modules_are_found_in_the_current_folder(folder):
    assert resolve("mine:VALUE", KNOWN, int, "number") == 7
    assert resolve("mine:Box.inner", KNOWN, int, "number") == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tow", "unknown number 'tow' (did you mean 'two'?): choose from one, two, or write "),
        ("zzz", "unknown number 'zzz': choose from one, two, or write module:object"),
        ("", "unknown number '': choose from one, two, or write module:object"),
        ("mine:VALU", "module mine has no 'VALU' (did you mean 'VALUE'?)"),
        ("mine:", "module mine has no ''"),
        ("mine:Box", "is of type type: it must be an int"),
        ("..mine:VALUE", "cannot import '..mine'"),
        ("no such:VALUE", "cannot import 'no such': ModuleNotFoundError"),
    ],
)
def test_what_is_not_there_is_one_line(folder, text, message):
    with pytest.raises(InputError) as error:
        resolve(text, KNOWN, int, "number")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sources_are_those_of_the_module_and_what_it_imports(folder):
    resolve("mine:VALUE", KNOWN, int, "number")
    sources = sources_of(["one", "mine:VALUE"])
    for name in ("mine", "mine_helper"):
        digest = hashlib.sha256((folder / f"{name}.py").read_bytes()).hexdigest()
        assert sources[name] == digest
    (folder / "mine.py").write_text("VALUE = 8\n")
    assert sources_of(["mine:VALUE"]) == sources  # what is loaded, not what lies there
    assert sources_of(["one", "two"]) == {}


def test_sources_of_modules_that_were_loaded_otherwise_are_unknown(folder):
    resolve("mine:VALUE", KNOWN, int, "number")
    (folder / "mine.py").write_text("VALUE = 8  # longer than before\n")
    importlib.reload(sys.modules["mine"])
    assert sources_of(["mine:VALUE"]) is None


def test_libraries_are_told_from_files_of_users(tmp_path):
    assert is_library(pytest.__file__)
    assert is_library(hashlib.__file__)
    assert not is_library(str(tmp_path / "mine.py"))
    assert not is_library(__file__)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a,b"], ["a b"], [""], ["a=b"], ["ä"]])
def test_names_that_files_cannot_hold(names):
    with pytest.raises(InputError):
        require_names("option", names)


def test_pairs_keep_their_order():
    assert (
        named_pairs({"b": 1, "a": 2})
        == named_pairs([["b", 1], ["a", 2]])
        == (
            ("b", 1),
            ("a", 2),
        )
    )
