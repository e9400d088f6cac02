"""What a shell completes after `tenas`."""

import shutil
import subprocess

import pytest

from tenas_jax import cli
from tenas_jax.cli.completion import OPTIONS

COMPLETE = """
source "$1"; shift
COMP_WORDS=(tenas "$@"); COMP_CWORD=$#
_tyro_tenas
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "tenas.bash"
    assert cli.main(["--tyro-write-completion", "bash", str(path)]) == 0
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["corr"], ["correlate"]),
        (["search", "--ntk.b"], ["--ntk.batch-size"]),
        (["search", "nas-bench-201-paper", "--ntk.b"], ["--ntk.batch-size"]),
        (["describe", "--stem", "im"], ["imagenet"]),
        (["train", "run", "--epo"], ["--epochs"]),
        (["describe", "--ntk.b"], [""]),
    ],
)
def test_bash_completes_commands_flags_and_choices(script, words, completions):
    run = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), *words], capture_output=True, text=True
    )
    assert run.stdout.splitlines() == completions, run.stderr


def test_every_command_is_completed():
    assert set(OPTIONS) == set(cli.COMMANDS)


def test_a_script_is_printed(capsys):
    assert cli.main(["--tyro-print-completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef tenas")


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("--tyro-print-completion", "--tyro-print-completion bash|zsh|fish|tcsh"),
        ("--tyro-print-completion csh", "--tyro-print-completion bash|zsh|fish|tcsh"),
        ("--tyro-print-completion bash x", "--tyro-print-completion bash|zsh|fish|tcsh"),
        ("--tyro-write-completion zsh", "--tyro-write-completion bash|zsh|fish|tcsh FILE"),
    ],
)
def test_bad_words_are_one_line(capsys, words, right):
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err == f"tenas: completion is for one shell: write tenas {right}\n"
