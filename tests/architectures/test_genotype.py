"""Both notations, both ways, and what is said about text that is neither."""

import numpy as np
import pytest
from genotypes import CIFAR10, IMAGENET, darts_mask, darts_text
from hypothesis import given
from hypothesis import strategies as st

from tenas_jax.architectures.genotype import from_string, to_string
from tenas_jax.errors import InputError
from tenas_jax.spaces import DARTS, NAS_BENCH_201

BENCH = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|nor_conv_1x1~0|skip_connect~1|avg_pool_3x3~2|"


def test_a_string_by_hand():
    mask = from_string(NAS_BENCH_201, BENCH)
    assert np.argwhere(mask[0]).tolist() == [[0, 3], [1, 3], [2, 0], [3, 2], [4, 1], [5, 4]]
    assert to_string(NAS_BENCH_201, mask) == BENCH


def test_a_darts_genotype_by_hand():
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('max_pool_3x3', 0), "
        "('skip_connect', 2), ('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 3), "
        "('skip_connect', 4)], normal_concat=range(2, 6), "
        f"reduce={[('avg_pool_3x3', i) for _ in range(4) for i in (0, 1)]}, "
        "reduce_concat=range(2, 6))"
    )
    mask = from_string(DARTS, text)
    normal = [[0, 1], [1, 2], [2, 7], [4, 1], [5, 1], [6, 1], [12, 1], [13, 1]]
    assert np.argwhere(mask[0]).tolist() == normal
    reduce = [[0, 6], [1, 6], [2, 6], [3, 6], [5, 6], [6, 6], [9, 6], [10, 6]]
    assert np.argwhere(mask[1]).tolist() == reduce


@pytest.mark.parametrize("cells", [CIFAR10, IMAGENET], ids=["cifar10", "imagenet"])
def test_published_genotypes(cells):
    mask = from_string(DARTS, darts_text(cells))
    assert mask.sum() == 16
    np.testing.assert_array_equal(mask, darts_mask(cells))
    assert to_string(DARTS, mask) == darts_text(cells)


@pytest.mark.parametrize("concat", ["[2, 3, 4, 5]", "(2, 3, 4, 5)", "range(2,6,1)"])
def test_concat_may_be_a_list(concat):
    mask = from_string(DARTS, darts_text(CIFAR10, concat))
    np.testing.assert_array_equal(mask, darts_mask(CIFAR10))


def test_lines_of_the_log_of_the_original():
    logged = from_string(NAS_BENCH_201, f"Structure(4 nodes with {BENCH})\n")
    np.testing.assert_array_equal(logged, from_string(NAS_BENCH_201, BENCH))


bench_cells = st.lists(st.sampled_from(NAS_BENCH_201.ops), min_size=6, max_size=6)


@given(bench_cells)
def test_round_trip_of_nas_bench_201(ops):
    a, b, c, d, e, f = ops
    text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
    mask = from_string(NAS_BENCH_201, text)
    np.testing.assert_array_equal(mask[0], [[op == x for op in NAS_BENCH_201.ops] for x in ops])
    assert to_string(NAS_BENCH_201, mask) == text


darts_ops = st.sampled_from(DARTS.ops[1:])


@st.composite
def darts_cells(draw):
    def pairs(node):
        sources = draw(st.lists(st.integers(0, node - 1), min_size=2, max_size=2, unique=True))
        return [(draw(darts_ops), source) for source in sources]

    return {name: [pairs(node) for node in range(2, 6)] for name in ("normal", "reduce")}


@given(darts_cells())
def test_round_trip_of_darts(cells):
    mask = from_string(DARTS, darts_text(cells))
    np.testing.assert_array_equal(mask, darts_mask(cells))
    ascending = {
        name: [sorted(pairs, key=lambda pair: pair[1]) for pairs in nodes]
        for name, nodes in cells.items()
    }
    assert to_string(DARTS, mask) == darts_text(ascending)
    np.testing.assert_array_equal(from_string(DARTS, to_string(DARTS, mask)), mask)


DARTS_TEXT = darts_text(CIFAR10)


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (NAS_BENCH_201, "", r"write \|op~0\|\+\|op~0\|op~1\|\+\|op~0\|op~1\|op~2\|$"),
        (NAS_BENCH_201, BENCH.replace("+", ""), "is not a genotype of nas-bench-201: write"),
        (NAS_BENCH_201, BENCH[:-1], "is not a genotype of nas-bench-201: write"),
        (NAS_BENCH_201, BENCH + "+" + BENCH, "is not a genotype of nas-bench-201: write"),
        (NAS_BENCH_201, BENCH.split("+")[0], "is not a genotype of nas-bench-201: write"),
        (NAS_BENCH_201, BENCH.replace("~2", "~99999"), "is not a genotype of nas-bench-201"),
        (NAS_BENCH_201, DARTS_TEXT, "is not a genotype of nas-bench-201: write"),
        (
            NAS_BENCH_201,
            BENCH.replace("nor_conv_1x1", "conv_7x7"),
            "cell node 3 has 'conv_7x7': choose from none, skip_connect, nor_conv_1x1, "
            "nor_conv_3x3, avg_pool_3x3$",
        ),
        (
            NAS_BENCH_201,
            BENCH.replace("|none~1", ""),
            r"cell node 2 has 1 operators on inputs \[0\]: nas-bench-201 needs one on each of 2",
        ),
        (NAS_BENCH_201, BENCH.replace("none~1", "none~0"), r"cell node 2 has 2 .* inputs \[0\]"),
        (NAS_BENCH_201, BENCH.replace("none~1", "none~2"), "node 2 has input 2: choose from 0, 1$"),
        (DARTS, BENCH, "is not a genotype of darts: write Genotype"),
        (DARTS, "", "is not a genotype of darts: write Genotype"),
        (DARTS, "Genotype(", "is not a genotype of darts: write Genotype"),
        (DARTS, "Genotype" + "(" * 10_000, "is not a genotype of darts: write Genotype"),
        (DARTS, "-" * 100_000 + "1", "is not a genotype of darts: write Genotype"),
        (DARTS, "__import__('os').getcwd()", "is not a genotype of darts: write Genotype"),
        (DARTS, DARTS_TEXT.replace("'skip_connect'", "str()"), "is not a genotype of darts"),
        (DARTS, DARTS_TEXT.replace("'skip_connect', 0", "'skip_connect', '0'"), "is not a geno"),
        (DARTS, DARTS_TEXT.replace("'skip_connect', 0", "'skip_connect', True"), "is not a geno"),
        (DARTS, DARTS_TEXT.replace("('skip_connect', 0)", "'skip_connect'"), "is not a genotype"),
        (DARTS, DARTS_TEXT.replace("Genotype", "Genome"), "is not a genotype of darts"),
        (DARTS, DARTS_TEXT.replace("reduce=", "shrink="), "is not a genotype of darts"),
        (DARTS, DARTS_TEXT.replace("reduce=", "normal="), "is not a genotype of darts"),
        (DARTS, DARTS_TEXT.replace("(", "(0, ", 1), "is not a genotype of darts"),
        (DARTS, DARTS_TEXT[:-1] + ", extra=1)", "is not a genotype of darts"),
        (DARTS, DARTS_TEXT[:-1] + ", **{})", "is not a genotype of darts"),
        (DARTS, DARTS_TEXT[:-1] + ", normal=[])", "is not a genotype of darts"),
        (DARTS, DARTS_TEXT.replace("range(2, 6)", "range(2, 6, 0)"), "is not a genotype of darts"),
        (
            DARTS,
            DARTS_TEXT.replace("range(2, 6)", "range(1, 6)", 1),
            r"normal_concat is 'range\(1, 6\)': darts needs range\(2, 6\)$",
        ),
        (
            DARTS,
            darts_text(CIFAR10, "range(10**9)".replace("10**9", "1" + "0" * 30)),
            "normal_concat is .*: darts needs",
        ),
        (DARTS, darts_text(CIFAR10, "[2, 3, 4]"), r"'\[2, 3, 4\]': darts needs range\(2, 6\)$"),
        (
            DARTS,
            DARTS_TEXT.replace("('skip_connect', 0), ", ""),
            "normal lists 7 pairs: darts needs 8",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("('sep_conv_5x5', 3)", "('sep_conv_5x5', 1)"),
            r"normal node 5 has 2 operators on inputs \[1\]: darts needs one on each of 2 inputs",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("('sep_conv_5x5', 3)", "('sep_conv_5x5', 5)"),
            "normal node 5 has input 5: choose from 0, 1, 2, 3, 4$",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("skip_connect", "nor_conv_1x1"),
            "normal node 4 has 'nor_conv_1x1': choose from skip_connect, sep_conv_3x3",
        ),
        (DARTS, DARTS_TEXT.replace("skip_connect", "none"), "normal node 4 has 'none': choose"),
    ],
)
def test_text_that_is_no_genotype_of_the_space(space, text, message):
    with pytest.raises(InputError, match=message) as error:
        from_string(space, text)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 300


@given(
    st.sampled_from([(NAS_BENCH_201, BENCH), (DARTS, DARTS_TEXT)]),
    st.data(),
)
def test_damaged_text_is_refused_or_read_but_never_crashes(case, data):
    space, text = case
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 5)))
    damaged = text[:start] + data.draw(st.text(max_size=4)) + text[end:]
    try:
        mask = from_string(space, damaged)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        np.testing.assert_array_equal(from_string(space, to_string(space, mask)), mask)


def test_masks_that_are_no_genotype():
    with pytest.raises(InputError, match="not a single path: cell node 1 has 4 operators on inpu"):
        to_string(NAS_BENCH_201, NAS_BENCH_201.initial_mask())
    mask = from_string(NAS_BENCH_201, BENCH)
    mask[0, 2] = False
    with pytest.raises(InputError, match=r"not a single path: cell node 2 .* inputs \[0\]: "):
        to_string(NAS_BENCH_201, mask)
    mask = darts_mask(CIFAR10)
    mask[1, DARTS.edges.index((3, 5)), 1] = True
    with pytest.raises(InputError, match=r"reduce node 5 has 3 operators on inputs \[2, 3, 4\]"):
        to_string(DARTS, mask)
    mask = darts_mask(CIFAR10)
    mask[0, 0] = np.arange(8) == 0
    with pytest.raises(InputError, match="normal node 2 has 'none': choose from skip_connect"):
        to_string(DARTS, mask)


def test_a_mask_of_another_space():
    message = r"shape \(2, 14, 8\): nas-bench-201 needs \(1, 6, 5\)"
    with pytest.raises(InputError, match=message):
        NAS_BENCH_201.to_string(darts_mask(CIFAR10))
