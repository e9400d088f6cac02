"""`tenas describe` on the screen, in a picture, and for bad words."""

import numpy as np
import pytest
from genotypes import IMAGENET, darts_text
from matplotlib.image import imread

from tenas_jax.cli import describe
from tenas_jax.errors import InputError

BENCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def test_costs_are_printed_by_layer(capsys):
    assert describe.run([BENCH, "--cells", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "FLOPs"]
    assert lines[1].split() == ["stem", "32", "x", "32", "x", "16", "464", "442,368"]
    assert [line.split()[0] for line in lines[1:10]] == [
        *("stem", "cell_0", "block_1", "cell_1", "block_2", "cell_2", "norm", "classifier", "total")
    ]
    columns = [[int(word.replace(",", "")) for word in line.split()[-2:]] for line in lines[1:10]]
    assert np.sum(columns[:-1], axis=0).tolist() == columns[-1]
    assert lines[10:] == [
        "nas-bench-201, 10 classes, images of 32 x 32: 0.18 M parameters, 22.73 M multiply-adds "
        "(FLOPs) per image"
    ]


def test_a_picture_of_the_cells_is_drawn(capsys, tmp_path):
    path = tmp_path / "cells.png"
    options = ["--stem", "imagenet", "--cells", "3", "--channels", "2", "--output", str(path)]
    assert describe.run([darts_text(IMAGENET), *options]) == 0
    out = capsys.readouterr().out
    assert "darts, 1000 classes, images of 224 x 224: " in out
    assert out.endswith(f"the cells are drawn in {path}\n")
    assert imread(path).std() > 0.05
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(("name", "start"), [("a.pdf", b"%PDF-"), ("a.SVG", b"<?xml")])
def test_a_drawing_has_the_format_of_its_name(tmp_path, name, start):
    assert describe.run([BENCH, "--cells", "1", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [*tmp_path.iterdir()] == [tmp_path / name]


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        describe.run(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for flag in ("stem", "channels", "cells", "num-classes", "image-size", "output"):
        assert f"--{flag} " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "genotype"),
        (
            [BENCH.replace("none", "conv")],
            "has 'conv': choose from none, skip_connect, nor_conv_1x1",
        ),
        ([BENCH, "--stem", "imagenet"], "no stem 'imagenet'"),
        ([BENCH, "--stem", "mnist"], "see tenas describe --help"),
        ([BENCH, "--num-classes", "0"], "num_classes must be at least 1, not 0"),
        ([BENCH, "--image-size", "0"], "image_size must be at least 1, not 0"),
        ([BENCH, "--image-size", "30"], "images of 30 x 30: sides must be multiples of 4"),
        ([BENCH, "--cells", "1", "--output", "/nowhere/a.png"], "cannot use /nowhere/a.png"),
    ],
)
def test_bad_words_are_one_line_and_print_nothing(capsys, words, message):
    with pytest.raises(InputError, match=message) as error:
        describe.run(words)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
