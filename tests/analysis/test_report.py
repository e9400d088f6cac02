"""Plots and summary of a search: what they say, that it can be read, that files appear whole."""

import errno
import io
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from jaxtyping import Bool
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Circle, FancyArrowPatch, Patch
from matplotlib.text import Text
from rich.console import Console

from tenas_jax.analysis.report import (
    _label_offsets,
    draw_architecture,
    pruning_map,
    summary,
    trajectory,
    write_plots,
)
from tenas_jax.architectures.space import SearchSpace
from tenas_jax.errors import InputError
from tenas_jax.spaces import DARTS, NAS_BENCH_201

PLOTS = {"trajectory.png", "pruning.png", "cell.png"}
SPACES = pytest.mark.parametrize("space", [NAS_BENCH_201, DARTS], ids=lambda space: space.name)


def random_architecture(space: SearchSpace, seed: int) -> Bool[np.ndarray, "cell edge op"]:
    """An operator other than `none` on as many edges as a genotype of the space has."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(space.shape, bool)
    for cell in range(len(space.cell_types)):
        for node in space.intermediate_nodes:
            for edge in rng.permutation(space.incoming(node))[: space.edges_kept(node)]:
                mask[cell, edge, rng.integers(1, len(space.ops))] = True
    return mask


def place(space: SearchSpace, candidate: Any) -> dict[str, Any]:
    cell, edge, op = candidate
    return {"cell": space.cell_types[cell], "edge": int(edge), "op": space.ops[op]}


def random_measurement(rng: np.random.Generator) -> dict[str, Any]:
    kappa, regions = float(rng.lognormal(7, 1)), float(rng.uniform(800, 1200))
    return {
        "repeats": 3,
        "metrics": {"kappa": kappa, "regions": regions},
        "standard_errors": {"kappa": 0.5 * kappa * rng.random(), "regions": 20 * rng.random()},
    }


def random_search(space: SearchSpace, seed: int) -> tuple[dict[str, Any], Bool[np.ndarray, "..."]]:
    """A result whose nine rounds prune, in random order, everything but a random architecture."""
    rng = np.random.default_rng(seed)
    final_mask = random_architecture(space, seed)
    to_prune = rng.permutation(np.argwhere(space.initial_mask() & ~final_mask))
    batches = np.array_split(to_prune, 9)
    rounds = [
        {
            "round": index,
            **random_measurement(rng),
            "candidates": [
                {
                    **place(space, candidate),
                    "differences": {"kappa": float(rng.normal()), "regions": -0.01},
                    "standard_errors": {"kappa": float(rng.random()), "regions": "nan"},
                }
                for candidate in np.concatenate([*batches[index:], np.argwhere(final_mask)])
            ],
            "pruned": [place(space, pruned) for pruned in batch],
        }
        for index, batch in enumerate(batches)
    ]
    result = {
        "preset": space.name,
        "data": "npz:images[new].npz",
        "seed": seed,
        "genotype": "Genotype(normal=[('sep_conv_3x3', 0)], normal_concat=range(2, 6)) " * 3,
        "found": random_measurement(rng),
        "rounds": rounds,
        "evaluations": 332,
        "nonfinite": 17,
        "seconds": {"total": 123.41, "compile": 18.22, "measure": 104.93},
        "device": "NVIDIA H200 [2 of them]",
    }
    return result, final_mask


def with_kappa(kappas: list[float | str]) -> list[dict[str, Any]]:
    return [
        {"round": index, "metrics": {"kappa": kappa, "regions": 900 + 50 * index}}
        for index, kappa in enumerate(kappas)
    ]


def drawn_texts(figure: Figure) -> list[Text]:
    """The texts that really are drawn: tick labels out of view or of hidden axes exist, too."""
    with mock.patch.object(Text, "draw", autospec=True) as draw:
        figure.savefig(io.BytesIO(), dpi="figure")
    texts = [call.args[0] for call in draw.call_args_list]
    return [text for text in texts if text.get_visible() and text.get_text()]


def assert_readable(figure: Figure) -> None:
    """No text overlaps another or leaves the figure."""
    boxes = {text: Text.get_window_extent(text) for text in drawn_texts(figure)}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    upright = [text for text in boxes if text.get_rotation() in (0, 90)]
    for one, other in combinations(upright, 2):
        assert not boxes[one].overlaps(boxes[other]), (one, other)


@SPACES
def test_plots_are_images_and_nothing_else_is_left(space: SearchSpace, tmp_path: Path) -> None:
    result, final_mask = random_search(space, 0)
    (tmp_path / "cell.png").write_text("of an earlier run")
    write_plots(result, space, final_mask, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == PLOTS
    for name in PLOTS:
        image = imread(tmp_path / name)
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05


def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(_: Figure, path: Path, **__: object) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", disk_full)
    (tmp_path / "cell.png").write_text("of an earlier run")
    result, final_mask = random_search(NAS_BENCH_201, 0)
    with pytest.raises(InputError, match=r"cannot use .*\.png: No space left on device"):
        write_plots(result, NAS_BENCH_201, final_mask, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cell.png"]
    assert (tmp_path / "cell.png").read_text() == "of an earlier run"


def test_trajectory_shows_each_round_at_its_metrics() -> None:
    figure = trajectory(with_kappa([1000.0, 6000.0, 200.0]))
    (axes,) = figure.axes
    (markers,) = axes.collections
    np.testing.assert_array_equal(markers.get_offsets(), [[900, 1000], [950, 6000], [1000, 200]])
    assert [label.get_text() for label in axes.texts] == ["1", "2", "3"]
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 2
    assert axes.get_yscale() == "log"
    assert not any("not finite" in text.get_text() for text in drawn_texts(figure))


@pytest.mark.parametrize("infinity", ["inf", "Infinity", float("inf")])
def test_infinite_condition_number_is_drawn_at_the_top_and_said(infinity: float | str) -> None:
    figure = trajectory(with_kappa([1000.0, infinity, 200.0]))
    (axes,) = figure.axes
    finite, infinite = axes.collections
    np.testing.assert_array_equal(finite.get_offsets(), [[900, 1000], [1000, 200]])
    np.testing.assert_array_equal(infinite.get_offsets(), [[950, axes.get_ylim()[1]]])
    assert any("not finite" in text.get_text() for text in drawn_texts(figure))
    assert_readable(figure)


def test_trajectory_of_infinite_condition_numbers_alone_has_no_scale() -> None:
    figure = trajectory(with_kappa(["inf"] * 3))
    assert not figure.axes[0].get_yticks().size
    assert_readable(figure)


@pytest.mark.parametrize("seed", range(3))
def test_trajectory_is_readable(seed: int) -> None:
    result, _ = random_search(DARTS, seed)
    assert_readable(trajectory(result["rounds"]))
    assert_readable(trajectory(result["rounds"], result["found"]))


def test_labels_of_coinciding_points_do_not_meet() -> None:
    points, low, high = np.full((9, 2), 100.0), np.zeros(2), np.full(2, 200.0)
    places = points + _label_offsets(points, [], low, high)
    assert min(np.linalg.norm(a - b) for a, b in combinations(places, 2)) >= 11


def test_labels_stay_between_the_corners() -> None:
    corners = np.array([[0.0, 0.0], [0.0, 200.0], [200.0, 0.0], [200.0, 200.0]])
    places = corners + _label_offsets(corners, [], np.zeros(2), np.full(2, 200.0))
    assert (places > 11).all()
    assert (places < 189).all()


def test_labels_stay_off_error_bars() -> None:
    point, up = np.array([[100.0, 100.0]]), np.array([[100.0, 160.0]])
    aside = np.array([[160.0, 100.0]])
    for bars in ([up], [aside], [up, aside], [up, aside, 200 - aside]):
        (offset,) = _label_offsets(point, bars, np.zeros(2), np.full(2, 200.0))
        ends = np.concatenate(bars) - 100
        along = np.clip((ends @ offset) / (ends**2).sum(1), 0, 1)
        distances = np.linalg.norm(offset - along[:, None] * ends, axis=1)
        assert distances.min() > 8


def test_trajectory_ends_with_what_was_found() -> None:
    found = {
        "metrics": {"kappa": 90.0, "regions": 1100},
        "standard_errors": {"kappa": 80.0, "regions": 12.0},
    }
    figure = trajectory(with_kappa([1000.0, 6000.0, 200.0]), found)
    (axes,) = figure.axes
    *bars, rounds, star = axes.collections
    np.testing.assert_array_equal(rounds.get_offsets(), [[900, 1000], [950, 6000], [1000, 200]])
    np.testing.assert_array_equal(star.get_offsets(), [[1100, 90]])
    assert [label.get_text() for label in axes.texts] == ["1", "2", "3"]
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 3
    assert "found" in [text.get_text() for text in figure.legends[0].get_texts()]
    segments = [each for line in bars for each in line.get_segments()]
    drawn = {tuple(np.ravel(segment)) for segment in segments if (segment[0] != segment[1]).any()}
    assert drawn == {(1088, 90, 1112, 90), (1100, 10, 1100, 170)}
    low, high = axes.get_ylim()
    assert low < 90 / 1.6 and high > 6000  # a bar that is too long is cut off
    assert_readable(figure)


def test_what_was_found_may_be_singular() -> None:
    found = {
        "metrics": {"kappa": "inf", "regions": 1100},
        "standard_errors": {"kappa": "nan", "regions": "nan"},
    }
    figure = trajectory(with_kappa([1000.0, 200.0]), found)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.collections[-1].get_offsets(), [[1100, axes.get_ylim()[1]]])
    assert_readable(figure)


@SPACES
def test_pruning_map_shows_the_round_and_the_last_differences_of_every_operator(
    space: SearchSpace,
) -> None:
    result, final_mask = random_search(space, 1)
    figure = pruning_map(result["rounds"], space, final_mask)
    assert [axes.get_title() for axes in figure.axes] == list(space.cell_types)
    for axes, cell in zip(figure.axes, space.cell_types, strict=True):
        rows = [label.get_text() for label in axes.get_yticklabels()]
        columns = [label.get_text() for label in axes.get_xticklabels()]
        shown = {
            (
                rows[int(text.get_position()[1])],
                columns[int(text.get_position()[0])],
                text.get_text(),
            )
            for text in axes.texts
        }
        expected = {}
        for entry in result["rounds"]:
            for candidate in entry["candidates"]:
                if candidate["cell"] == cell:
                    gone = {name: candidate[name] for name in ("cell", "edge", "op")}
                    when = f"round {entry['round'] + 1}" if gone in entry["pruned"] else "kept"
                    change, error = (
                        candidate[name]["kappa"] for name in ("differences", "standard_errors")
                    )
                    edge = "{1}<-{0}".format(*space.edges[candidate["edge"]])
                    text = f"{when}\nκ {change:+z.2f}±{error:.2f}\nR -0.01"
                    expected[edge, candidate["op"]] = text
        assert shown == {(*where, text) for where, text in expected.items()}
    assert_readable(figure)


@pytest.mark.parametrize("error", [0.25, "nan"])
def test_pruning_map_claims_a_standard_error_only_where_there_is_one(error: Any) -> None:
    result, final_mask = random_search(NAS_BENCH_201, 0)
    for entry in result["rounds"]:
        for candidate in entry["candidates"]:
            candidate["standard_errors"] = {"kappa": error, "regions": "nan"}
    figure = pruning_map(result["rounds"], NAS_BENCH_201, final_mask)
    texts = [text.get_text() for text in drawn_texts(figure)]
    spread = error != "nan"
    assert any("±" in text for text in texts) == spread
    assert ("Last measured change without an operator" in texts) != spread


def test_pruning_map_tells_kept_from_excluded_by_color() -> None:
    result, final_mask = random_search(NAS_BENCH_201, 2)
    figure = pruning_map(result["rounds"], NAS_BENCH_201, final_mask)
    colors = np.asarray(figure.axes[0].images[0].get_array())
    keys = {
        text.get_text(): handle.get_facecolor()
        for handle, text in zip(
            figure.legends[0].get_patches(), figure.legends[0].get_texts(), strict=True
        )
    }
    np.testing.assert_array_equal((colors == keys["kept"]).all(-1), final_mask[0])
    excluded = ~NAS_BENCH_201.initial_mask()[0]
    np.testing.assert_array_equal((colors == keys["not part of the search"]).all(-1), excluded)


@SPACES
@pytest.mark.parametrize("seed", range(4))
def test_cells_show_every_operator_readably(space: SearchSpace, seed: int) -> None:
    mask = random_architecture(space, seed)
    figure = draw_architecture(space, mask)
    concatenated = 0 if space is NAS_BENCH_201 else len(space.intermediate_nodes)
    for axes, cell in zip(figure.axes, mask, strict=True):
        labels = [text.get_text() for text in axes.texts if text.get_text() in space.ops]
        assert labels == [space.ops[op] for _, op in np.argwhere(cell)]
        circles: list[Patch] = [patch for patch in axes.patches if isinstance(patch, Circle)]
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        assert len(circles) == space.num_nodes + bool(concatenated)
        ends = [(arrow.patchA, arrow.patchB) for arrow in arrows]
        joined = {(circles.index(source), circles.index(target)) for source, target in ends}
        assert len(arrows) == cell.sum() + concatenated
        assert {space.edges[edge] for edge in np.flatnonzero(cell.any(1))} <= joined
    assert_readable(figure)


@SPACES
def test_summary_says_it_all_in_80_columns(space: SearchSpace) -> None:
    result, _ = random_search(space, 0)
    result["rounds"][1]["metrics"]["kappa"] = "inf"
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(summary(result))
    lines = capture.get().splitlines()
    text = "".join(capture.get().split())
    assert max(map(len, lines)) <= 80
    facts = ("data npz:images[new].npz, seed 0", "332; measurements not finite: 17")
    for fact in (*facts, "123.4 s (compilation 18.2 s, measurement 104.9 s)", result["device"]):
        assert "".join(fact.split()) in text
    header = next(index for index, line in enumerate(lines) if line.split()[:1] == ["round"])
    assert lines[header].split() == ["round", "evaluations", "kappa", "regions", "pruned"]
    rows = [line.split() for line in lines[header + 1 :]]
    starts = [row for row in rows if row and row[0].isdigit() and row[1].isdigit()]
    assert [row[:2] for row in starts] == [
        [str(entry["round"] + 1), str(len(entry["candidates"]))] for entry in result["rounds"]
    ]
    assert starts[1][2] == "inf"
    assert rows[-1][0] == "found"
    kappa = result["found"]["metrics"]["kappa"]
    error = result["found"]["standard_errors"]["kappa"]
    assert " ".join(rows[-1]).startswith(f"found {kappa:.5g} ± {error:.2g} ")
    shown = [word.strip(",").split(":") for row in rows for word in row if ":" in word]
    pruned = [pruned["op"] for entry in result["rounds"] for pruned in entry["pruned"]]
    for op in space.ops:
        assert sum(int(count) for name, count in shown if name == op) == pruned.count(op)


def test_a_search_among_architectures_has_its_cell_alone(tmp_path: Path) -> None:
    result, final_mask = random_search(NAS_BENCH_201, 0)
    write_plots(result | {"rounds": []}, NAS_BENCH_201, final_mask, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cell.png"]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary(result | {"rounds": []}))
    assert "332; measurements not finite: 17" in capture.get()
    assert [line.split()[0] for line in capture.get().splitlines()[-2:]] == ["kappa", "found"]


def test_pyplot_is_not_imported() -> None:
    code = "import sys, tenas_jax.analysis.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@SPACES
@pytest.mark.parametrize("width", [3.3, 6.9])
def test_pictures_for_a_column_are_readable(space: SearchSpace, width: float) -> None:
    result, mask = random_search(space, 1)
    figures = [trajectory(result["rounds"], result["found"], width=width)]
    figures += [draw_architecture(space, mask, width=width)]
    figures += [
        pruning_map(result["rounds"], space, mask, width=width, cells=[cell])
        for cell in range(len(space.cell_types))
    ]
    for figure in figures:
        assert figure.get_figwidth() == width
        assert_readable(figure)
        sizes = {text.get_fontsize() for text in drawn_texts(figure)}
        assert min(sizes) >= 5 and max(sizes) <= 12 * max(1, width / 5)


@pytest.mark.parametrize("kappas", [[2e6, 4e5], [3e8, 2e5, 70.0], [9e4, 1e4, 300.0], [1e20, 3.0]])
@pytest.mark.parametrize("width", [None, 3.3])
def test_large_condition_numbers_leave_room_for_their_axis(
    kappas: list[float | str], width: float | None
) -> None:
    figure = trajectory(with_kappa(kappas), width=width)
    assert_readable(figure)
    assert len(figure.axes[0].get_yticks()) < 30


def test_a_cell_takes_no_more_height_than_its_arcs() -> None:
    mask = np.zeros(DARTS.shape, bool)
    for edge in range(14):
        source, target = DARTS.edges[edge]
        mask[0, edge, 1] = target - source > 3
        mask[1, edge, 1] = target - source == 1
    high, low = draw_architecture(DARTS, mask, width=3.3).axes
    assert low.get_ylim()[1] < 1 < high.get_ylim()[1]
    figure = high.figure
    assert isinstance(figure, Figure)
    assert_readable(figure)
    heights = [axes.get_window_extent().height for axes in (high, low)]
    assert heights[1] < 0.6 * heights[0]


def test_a_map_for_a_column_leaves_out_errors_that_do_not_fit() -> None:
    result, mask = random_search(NAS_BENCH_201, 0)
    for width, expected in ((None, True), (6.9, True), (3.3, False)):
        figure = pruning_map(result["rounds"], NAS_BENCH_201, mask, width=width)
        assert any("±" in text.get_text() for text in figure.findobj(Text)) == expected


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (NAS_BENCH_201, {"cell.svg", "pruning.svg", "trajectory.svg"}),
        (DARTS, {"cell.svg", "pruning-normal.svg", "pruning-reduce.svg", "trajectory.svg"}),
    ],
)
def test_files_for_a_column(space: SearchSpace, names: set[str], tmp_path: Path) -> None:
    result, mask = random_search(space, 0)
    write_plots(result, space, mask, tmp_path, "svg", 3.3)
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        assert 'width="237.6pt"' in path.read_text()  # 72 points an inch
