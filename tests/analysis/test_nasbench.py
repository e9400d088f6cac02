"""Accuracy tables: what is looked up, which tables are refused, what is made of the archives."""

import bz2
import csv
import gzip
import itertools
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from archives import STUB, write_archive
from genotypes import bench_text

from tenas_jax.analysis.nasbench import (
    AccuracyTable,
    canonical,
    convert,
    load_table,
    read_architectures,
    whole_file,
)
from tenas_jax.cli import nasbench as command
from tenas_jax.errors import InputError
from tenas_jax.spaces import NAS_BENCH_201

HEADER = "index,arch,cifar10_test,params_m,flops_m"


A, B, C = (
    bench_text("skip_connect", "none", "none", "none", op, "none")
    for op in ("nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
)
ROWS = [f"0,{A},90.5,0.1,15", f"1,{B},93.25,0.3,50", f"2,{C},90.5,0.07,8"]


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines: str, name: str = "table.csv") -> Path:
        path = tmp_path / name
        content = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        return path

    return write_lines


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_table_answers_from_the_file(write, name):
    table = load_table(write(HEADER, *ROWS, name=name))
    assert len(table) == 3
    assert [table.accuracy(each) for each in (A, B, C)] == [90.5, 93.25, 90.5]
    assert [table.rank(each) for each in (A, B, C)] == [2, 1, 2]
    assert [table.regret(each) for each in (A, B, C)] == [2.75, 0, 2.75]
    np.testing.assert_array_equal(table.parameters, [0.1, 0.3, 0.07])
    np.testing.assert_array_equal(table.flops, [15, 50, 8])
    assert table.describe(B) == "accuracy 93.25 %, rank 1 of 3, regret 0.00 %"


def test_table_takes_the_column_asked_for_wherever_it_is(write):
    path = write("cifar100_test,flops_m,arch,cifar10_test,params_m", f"71.5,1,{A},90,2")
    assert load_table(path).accuracy(A) == 90
    assert load_table(path, "cifar100_test").accuracy(A) == 71.5


def test_another_spelling_is_the_same_architecture(write):
    first, second, third = B.split("+")
    swapped = f"|{'|'.join(reversed(second.strip('|').split('|')))}|"
    spelling = f"Structure(4 nodes with {first}+{swapped}+{third})"
    table = load_table(write(HEADER, *ROWS))
    assert swapped != second and canonical(spelling) == B
    assert spelling in table and table.rank(spelling) == 1


def test_every_architecture_of_the_space_has_its_own_spelling():
    all_ops = itertools.product(NAS_BENCH_201.ops, repeat=6)
    some = [bench_text(*ops) for ops in itertools.islice(all_ops, 0, None, 37)]
    assert [canonical(each) for each in some] == some


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (bench_text(*["none"] * 6), "is not among the 3 architectures of the accuracy table"),
        ("Genotype(normal=[])", "not a genotype of nas-bench-201"),
    ],
)
def test_unknown_architecture_is_one_line(write, text, fault):
    table = load_table(write(HEADER, *ROWS))
    for lookup in (table.accuracy, table.rank, table.regret, table.describe):
        with pytest.raises(InputError, match=fault):
            lookup(text)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "has 0 columns 'arch' ()"),
        ([HEADER], "has no rows: give it one for each architecture"),
        (
            ["arch,params_m,flops_m", f"{A},1,1"],
            "has 0 columns 'cifar10_test' (arch, params_m, flops_m): give it one",
        ),
        (["arch,cifar10_test,params_m,params_m", f"{A},1,1,1"], "has 2 columns 'params_m'"),
        (
            [HEADER, f"0,{A},0.94,1,1"],
            "cifar10_test: the highest accuracy is 0.94, as of fractions",
        ),
        ([HEADER, f"0,{A},90,1,1", f"0,{B},90,1,1"], "has an index twice: give every architecture"),
        ([HEADER, f"1.5,{A},90,1,1"], "has an index that is not a number from 0"),
        ([HEADER + ",arch", ROWS[0] + f",{A}"], "has 2 columns 'arch'"),
        ([HEADER, *ROWS, ROWS[1]], f"line 5: {B} is on line 3 already: give every architecture"),
        ([HEADER, f"0,{A},nan,1,1"], "line 2: cifar10_test is nan: give a percentage from 0 to"),
        ([HEADER, f"0,{A},inf,1,1"], "line 2: cifar10_test is inf"),
        ([HEADER, ROWS[0], f"0,{B},-1,1,1"], "line 3: cifar10_test is -1.0"),
        ([HEADER, f"0,{A},100.1,1,1"], "line 2: cifar10_test is 100.1"),
        ([HEADER, f"0,{A},high,1,1"], "line 2: cifar10_test is 'high': give a number, inf or nan"),
        ([HEADER, f"0,{A},,1,1"], "line 2: cifar10_test is ''"),
        ([HEADER, f"0,{A},90,1"], "line 2 has 4 fields: the header has 5"),
        ([HEADER, "0,Genotype(),90,1,1"], "line 2: not a genotype of nas-bench-201: there is no |"),
        ([HEADER, f"0,{A.replace('none', 'sep')},90,1,1"], "line 2: cell node 2 has 'sep': choose"),
        ([HEADER, f'0,"{A},90,1,1'], "cannot be read (unexpected end of data): give a CSV file"),
    ],
)
def test_bad_table_is_one_line(write, lines, fault):
    path = write(*lines)
    with pytest.raises(InputError) as error:
        load_table(path)
    assert str(error.value).startswith(str(path)) and fault in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("table.csv.gz", b"arch", "table.csv.gz cannot be read (Not a gzipped file"),
        (
            "table.csv.gz",
            gzip.compress(b"arch,a" * 99, mtime=0)[:-9],
            "cannot be read (Compressed file ende",
        ),
        (
            "table.csv.gz",
            gzip.compress(b"ab", mtime=0)[:10] + b"\7\7\7",
            "cannot be read (Error -3 while",
        ),
        (
            "table.csv",
            b"arch\xfa",
            "table.csv is not text: its byte 5 is not UTF-8; save it as UTF-8",
        ),
        ("table.csv", b"\xff\xfe\xfa", "table.csv is not text: its byte 3 is not UTF-16"),
        (
            "table.csv.gz",
            gzip.compress(bytes((1 << 20) + 1)),
            "has more than 1 MB of text: split it",
        ),
    ],
)
def test_file_that_is_no_table_is_one_line(tmp_path, monkeypatch, name, content, fault):
    monkeypatch.setattr("tenas_jax.host.files.LARGEST_TEXT", 1 << 20)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_table(tmp_path / name)
    assert fault in str(error.value)


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot use .*none.csv: No such file or directory"):
        load_table(tmp_path / "none.csv")


def test_numbers_of_other_files_may_be_infinite(write):
    rows = read_architectures(write("kappa,genotype", f"inf,{A}", "", f"nan,{B}"), "genotype")
    assert rows.genotypes == (A, B) and rows.lines == (2, 4)
    np.testing.assert_array_equal(rows.columns["kappa"], [np.inf, np.nan])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_editors_on_windows_save_them(tmp_path, encoding, end):
    path = tmp_path / "table.csv"
    path.write_bytes(end.join([HEADER, *ROWS]).encode(encoding))
    assert load_table(path).accuracy(B) == 93.25


def test_costs_that_a_table_lacks_are_computed(write):
    best = bench_text("nor_conv_3x3", "nor_conv_3x3", "avg_pool_3x3", "skip_connect",
                      "nor_conv_3x3", "skip_connect")  # fmt: skip
    table = load_table(write("arch,cifar10_test,params_m", f"{best},94.37,7", f"{A},90,8"))
    assert table.parameters.tolist() == [7, 8]
    computed = load_table(write("arch,cifar10_test", f"{best},94.37", f"{A},90"))
    # As the documentation of NAS-Bench-201 has them.
    assert computed.parameters[0] == 0.802426
    assert computed.flops[0] == 113.95137


def test_fractions_are_taken_where_they_are_said_to_be(write):
    path = write("arch,cifar10_test", f"{A},0.905", f"{B},0.9325")
    table = load_table(path, unit="fraction")
    np.testing.assert_allclose(table.accuracies, [90.5, 93.25])
    with pytest.raises(
        InputError, match=r"line 2: cifar10_test is 90\.5: give a fraction from 0 to"
    ):
        load_table(write(HEADER, *ROWS), unit="fraction")


def test_architectures_are_named_by_text_by_numbers_and_by_index(write):
    table = load_table(write(HEADER, *ROWS))
    assert table.named(" 1 ") == table.named(B) == B
    # skip_connect on the first edge, 3x3 convolution on edge 1 -> 3, in NASLib's order.
    assert table.named("(0, 1, 1, 1, 2, 1)") == B
    with pytest.raises(InputError, match="no architecture with the index 7"):
        table.named("7")
    unnumbered = load_table(write("arch,cifar10_test", f"{A},90"))
    with pytest.raises(
        InputError, match="architecture 1 is an index, and the accuracy table has n"
    ):
        unnumbered.named("1")


def test_another_column_of_architectures(write):
    assert load_table(write("cell,cifar10_test", f"{A},90"), key="cell").accuracy(A) == 90


def test_a_table_that_is_a_pipe_without_a_writer_is_refused(tmp_path):
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(InputError, match=r"cannot use .*table\.csv: it is not a regular file"):
        load_table(tmp_path / "table.csv")


def test_tables_refuse_arrays_of_other_lengths():
    with pytest.raises(TypeError):
        AccuracyTable((A,), np.ones(1), np.ones(2), np.ones(1))


TABLE = [
    [*HEADER.split(",")[:3], "cifar100_test", "imagenet16_120_test", "params_m", "flops_m"],
    ["0", A, "80.5000", "70.0000", "45.0000", "0.500000", "10.0000"],
    ["1", B, "81.5000", "71.0000", "45.0000", "1.500000", "11.0000"],
]


@pytest.fixture(params=["stub", "nats-bench"])
def nats_bench(request, monkeypatch):
    """The package that reads archives: one with its interface, and itself where it is installed."""
    if request.param == "stub":
        monkeypatch.setitem(sys.modules, "nats_bench", STUB)
    else:
        pytest.importorskip("nats_bench")


@pytest.mark.parametrize("kind", ["folder", "file", "pth"])
def test_archives_become_tables(nats_bench, tmp_path, kind):
    target, seen = tmp_path / "table.csv.gz", []
    archive = write_archive(tmp_path, kind, (A, B))
    assert convert(archive, target, lambda *counts: seen.append(counts)) == 2
    assert seen == [(1, 2), (2, 2)]
    with gzip.open(target, "rt", newline="") as file:
        assert list(csv.reader(file)) == TABLE
    assert load_table(target, "cifar100_test").regret(A) == 1
    plain = tmp_path / "table.csv"
    convert(archive, plain)
    assert plain.read_bytes() == gzip.decompress(target.read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, target.name, plain.name}


def test_existing_output_is_kept(nats_bench, tmp_path, write):
    target = write("mine")
    with pytest.raises(InputError, match=r"table.csv exists: choose another --output"):
        convert(write_archive(tmp_path, "file", (A, B)), target)
    assert target.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("text.pickle.pbz2", b"arch,cifar10_test", r"\(OSError: Invalid data stream\)"),
        ("cut.pickle.pbz2", bz2.compress(pickle.dumps([1] * 99))[:-20], r"\(EOFError: "),
        ("noise.pickle.pbz2", bz2.compress(b"noise"), r"\(UnpicklingError: "),
        ("list.pickle.pbz2", bz2.compress(pickle.dumps([1])), r"\(TypeError: "),
        ("sizes.pickle.pbz2", bz2.compress(pickle.dumps({"a": 1})), r"\(KeyError: 'arch2infos'\)"),
    ],
)
def test_other_files_are_no_archives(nats_bench, tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is not an archive of NAS-Bench-201 {fault}"):
        convert(tmp_path / name, tmp_path / "table.csv")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_incomplete_archives_are_refused(nats_bench, tmp_path):
    archive = write_archive(tmp_path, "folder", (A, B))
    (archive / "000001.pickle.pbz2").unlink()
    with pytest.raises(InputError, match=r"000001.pickle.pbz2"):
        convert(archive, tmp_path / "table.csv")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_archives_of_another_space_are_refused(nats_bench, tmp_path):
    archive = write_archive(tmp_path, "file", ("64:64:64:64:64",))
    with pytest.raises(InputError, match=r"pbz2, architecture 0: not a genotype of nas-ben"):
        convert(archive, tmp_path / "table.csv")


@pytest.mark.parametrize(("package", "fault"), [("nats_bench", "nasbench"), ("torch", "torch")])
def test_missing_packages_are_named(nats_bench, tmp_path, monkeypatch, package, fault):
    archive = tmp_path / "archive.pth"
    archive.touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install .*{fault}"):
        convert(archive, tmp_path / "table.csv")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as unfinished:
        unfinished.write_text("new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_convert_command(nats_bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.run(["convert", str(write_archive(tmp_path, "file", (A, B)))]) == 0
    assert capsys.readouterr().out == "nasbench201.csv.gz holds 2 architectures\n"
    assert load_table(Path("nasbench201.csv.gz")).rank(B) == 1


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["make"], "unknown action 'make': write tenas nasbench convert ARCHIVE"),
        (["convert"], "(see tenas nasbench convert --help)"),
        (["convert", "none.pbz2"], "cannot use none.pbz2: No such file or directory"),
    ],
)
def test_bad_words_are_one_line(words, fault):
    with pytest.raises(InputError) as error:
        command.run(words)
    assert fault in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("words", [[], ["--help"], ["convert", "--help"]])
def test_help_explains(words, capsys):
    with pytest.raises(SystemExit) as exit:
        command.run(words)
    assert exit.value.code == 0
    assert "NATS-tss-v1_0" in capsys.readouterr().out


def test_interruption_is_one_line(monkeypatch, tmp_path, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tenas_jax.analysis.nasbench.convert", interrupt)
    assert command.run(["convert", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "tenas: interrupted; nothing was written\n"
