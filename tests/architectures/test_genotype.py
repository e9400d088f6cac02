"""Both notations, both ways, and what is said about text that is neither."""

import itertools
import re

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


BY_NODE = "Genotype(" + ", ".join(
    f"{name}={CIFAR10[name]}, {name}_concat=[2, 3, 4, 5]" for name in ("normal", "reduce")
)
DARTS_LINE = darts_text(CIFAR10)
NUMPY = re.sub(r"('\w+'), (\d)", r"np.str_(\1), np.int64(\2)", DARTS_LINE)


@pytest.mark.parametrize(
    "text",
    [
        BY_NODE + ")",
        BY_NODE + ", connectN=None, connects=None)",  # as GDAS prints it
        NUMPY,
        NUMPY.replace("np.", "numpy."),
        DARTS_LINE.replace("), (", "),\n    ("),
        f"genotype = {DARTS_LINE}",
        f"DARTS_V2 = {DARTS_LINE}\n",
        f"2019-03-04 10:31:07,123 INFO genotype = {DARTS_LINE}",
        f"03/04 10:31:07 AM | geno(x) <2> genotype: {DARTS_LINE};",
        f'"{DARTS_LINE}"',
        f"  'genotypes.{DARTS_LINE}',",
        f"DARTS = {DARTS_LINE}  # the best (of 5)",
        f"\x1b[32mINFO\x1b[0m \x1b[1mGenotype{DARTS_LINE[8:]}\x1b[0m",
        re.sub(r"\w+=", "", DARTS_LINE),
        DARTS_LINE.replace("range(2, 6)", "array([2, 3, 4, 5])"),
        DARTS_LINE.replace("range(2, 6)", "list(range(2, 6))"),
    ],
)
def test_darts_genotypes_as_people_have_them(text):
    assert DARTS.recognizes(text)
    np.testing.assert_array_equal(from_string(DARTS, text), darts_mask(CIFAR10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BY_NODE.replace("], [", ", ", 1) + ")",
            "normal lists 4, 2, 2 pairs by node: .* 2, 2, 2, 2$",
        ),
        (BY_NODE.replace("('skip_connect', 0), ", "") + ")", "normal lists 2, 2, 1, 2 pairs"),
        (BY_NODE + ", connectN=3)", "there is no such field at character 445"),
    ],
)
def test_darts_genotypes_by_node_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        from_string(DARTS, text)


@pytest.mark.parametrize(
    "text",
    [
        f'"{BENCH}"',
        f"arch = '{BENCH}'",
        f"10:31:07 the 3-rd epoch : Structure(4 nodes with {BENCH})",
        BENCH.replace("+", "+\n"),
        f"best = '{BENCH}'  # 93.41 %",
        f"2026-01-02 10:31:07.123 | INFO     | nas:search:12 - {BENCH}",
    ],
)
def test_nas_bench_201_strings_as_people_have_them(text):
    assert NAS_BENCH_201.recognizes(text)
    np.testing.assert_array_equal(
        from_string(NAS_BENCH_201, text), from_string(NAS_BENCH_201, BENCH)
    )


@pytest.mark.parametrize(
    "text", ["(4, 0, 3, 1, 4, 3)", "[4,0,3,1,4,3]", "'(np.int64(4), np.int64(0), 3, 1, 4, 3,)'"]
)
def test_numbers_are_in_the_order_of_naslib(text):
    assert NAS_BENCH_201.recognizes(text)
    # From the documentation of a project that converts by NASLib.
    same = "|avg_pool_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    assert to_string(NAS_BENCH_201, from_string(NAS_BENCH_201, text)) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(4, 0, 3, 1, 4)", "5 numbers: nas-bench-201 in NASLib's order has 6"),
        ("(4, 0, 3, 1, 4, 5)", "number 6 is 5: choose from 0 to 4"),
    ],
)
def test_numbers_that_are_no_architecture(text, message):
    with pytest.raises(InputError, match=message):
        from_string(NAS_BENCH_201, text)


def test_every_string_is_the_one_that_naslib_makes_of_its_numbers():
    """NASLib's `convert_op_indices_to_str`, from its description."""
    names = ["skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3"]
    edges = [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]
    for numbers in itertools.islice(itertools.product(range(5), repeat=6), 0, None, 61):
        into = {2: [], 3: [], 4: []}
        for (source, node), number in zip(edges, numbers, strict=True):
            into[node].append(f"{names[number]}~{source - 1}|")
        text = "+".join("|" + "".join(pairs) for pairs in into.values())
        mask = from_string(NAS_BENCH_201, str(numbers))
        assert to_string(NAS_BENCH_201, mask) == text


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
        (
            NAS_BENCH_201,
            "",
            r"there is no \|: write \|op~0\|\+\|op~0\|op~1\|\+\|op~0\|op~1\|op~2\|$",
        ),
        (NAS_BENCH_201, BENCH.replace("+", ""), "for node 2 is missing at character 17: "),
        (
            NAS_BENCH_201,
            BENCH[:-1],
            "something follows the genotype at character 73".replace("|", r"\|"),
        ),
        (NAS_BENCH_201, BENCH + "+" + BENCH, "there are 6 nodes, not 3: write"),
        (NAS_BENCH_201, BENCH + BENCH, "something follows the genotype at character 88: write"),
        (NAS_BENCH_201, BENCH.split("+")[0], "for node 2 is missing at the end: write"),
        (
            NAS_BENCH_201,
            BENCH.replace("~2", "~99999"),
            "something follows the genotype at character 73: write",
        ),
        (NAS_BENCH_201, BENCH.replace("none~1", "none1"), "'operator~node|' .* at character 34"),
        (NAS_BENCH_201, BENCH.replace("+|nor_conv_3", "+nor_conv_3"), "'|' is missing at char"),
        (NAS_BENCH_201, DARTS_TEXT, r"not a genotype of nas-bench-201: there is no \|: write"),
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
        (
            DARTS,
            BENCH,
            r"not a genotype of darts: there are 0 Genotype\(...\), not one: write Geno",
        ),
        (DARTS, "", r"there are 0 Genotype\(...\), not one: write Genotype"),
        (DARTS, DARTS_TEXT * 2, "there are 2 Genotype"),
        (DARTS, "Genotype(", r"'\)' is missing at the end: write Genotype"),
        (DARTS, DARTS_TEXT[:-1], r"'\)' is missing at the end: write"),
        (DARTS, DARTS_TEXT + " + 1", "something follows the genotype at character 417: write"),
        (DARTS, "Genotype" + "(" * 10_000, r"'\)' is missing at the end"),
        (DARTS, DARTS_TEXT.replace("), (", "); ("), "comma or quotation mark is wrong at char"),
        (
            DARTS,
            "Genotype" + "(" * 10_000 + ")" * 10_000,
            "is wrong at character|this cannot be read at",
        ),
        (DARTS, "Genotype(a=" + "-" * 90_000 + "1)", "this cannot be read at character 1: write"),
        (DARTS, "Genotype(a=" + "1" * 100_000 + ")", "there are more than 100000 characters: wri"),
        (DARTS, "-" * 100_000 + "1", "there are 0 Genotype"),
        (DARTS, "__import__('os').getcwd()", "there are 0 Genotype"),
        (
            DARTS,
            DARTS_TEXT.replace("'skip_connect'", "str()"),
            "this is not an operator, number, list or range at character 103: write Genotype",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("'skip_connect', 0", "'skip_connect', '0'"),
            "this is not a pair",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("'skip_connect', 0", "'skip_connect', True"),
            "is not an operator",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("('skip_connect', 0)", "'skip_connect'"),
            "is not a pair .*, node",
        ),
        (DARTS, DARTS_TEXT.replace("Genotype", "Genome"), "there are 0 Genotype"),
        (
            DARTS,
            DARTS_TEXT.replace("reduce=", "shrink="),
            "there is no such field at character 221: write",
        ),
        (DARTS, DARTS_TEXT.replace("reduce=", "normal="), "wrong at|a field is repeated or has no"),
        (
            DARTS,
            DARTS_TEXT.replace("(", "(0, ", 1),
            "a field is repeated or has no name at character",
        ),
        (DARTS, DARTS_TEXT[:-1] + ", extra=1)", "there is no such field at character 424: write"),
        (DARTS, DARTS_TEXT[:-1] + ", **{})", "a field is repeated or has no name at char"),
        (DARTS, DARTS_TEXT.split(", reduce=")[0] + ")", "the field reduce is missing: write"),
        (DARTS, DARTS_TEXT[:-1] + ", normal=[])", "wrong at|a field is repeated or has no"),
        (
            DARTS,
            DARTS_TEXT.replace("range(2, 6)", "range(2, 6, 0)"),
            "this is not an operator, number",
        ),
        (
            DARTS,
            "\n".join(DARTS_TEXT.replace("('skip_connect', 0)", "0").split(" ")),
            "this is not a pair .* at character 1 of line 9: write",
        ),
        (
            DARTS,
            DARTS_TEXT.replace("range(2, 6)", "range(1, 6)", 1),
            r"normal_concat differs: darts needs range\(2, 6\)$",
        ),
        (
            DARTS,
            darts_text(CIFAR10, "range(10**9)".replace("10**9", "1" + "0" * 30)),
            "this is not an operator, number, list or range at character",
        ),
        (DARTS, darts_text(CIFAR10, "[2, 3, 4]"), r"differs: darts needs range\(2, 6\)$"),
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
