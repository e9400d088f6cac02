"""The benchmarks' own machinery, and the PyTorch reference against our networks."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench import common, hlo
from bench import compile as compiling
from tenas_jax.architectures.space import ProxySize
from tenas_jax.spaces import get_space

ENVIRONMENT = {
    "platform": "cpu",
    "device": "cpu",
    "cpu": "Some CPU",
    "threads": 1,
    "cores": 2,
    "python": "3.11",
    "versions": {"jax": "1"},
}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    torch = pytest.importorskip("torch")
    from bench import pytorch_reference

    torch.set_num_threads(1)  # on networks this small, threads wait for each other

    return pytorch_reference


def thinned_mask(space_name: str) -> np.ndarray:
    """About half of the operators, one of them on every edge, `none` nowhere."""
    space = get_space(space_name)
    mask = space.initial_mask() & (np.random.default_rng(1).random(space.shape) < 0.4)
    mask[..., 1] |= ~mask.any(-1)
    return mask


def test_the_plain_flax_network_is_ours() -> None:
    import jax

    from bench import plain_flax
    from tenas_jax.networks.layouts import NHWC

    mask = thinned_mask("nas-bench-201")
    generator = np.random.default_rng(0)
    images = generator.standard_normal((3, 8, 8, 3), np.float32)
    network = get_space("nas-bench-201").supernet(ProxySize(10), NHWC)
    plain = plain_flax.Supernet(10)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images, mask)["params"]
    params = jax.tree.map(
        lambda leaf: generator.uniform(-1, 1, leaf.shape).astype(np.float32), shapes
    )

    @jax.jit
    def logits(params: Any, images: Any, mask: Any) -> Any:
        ours = network.apply({"params": params}, images, mask)
        variables = {"params": plain_flax.from_supernet(params)}
        return ours, plain.apply(variables, images, mask, mutable=["batch_stats"])[0]

    ours, plainly = logits(params, images, mask)
    np.testing.assert_allclose(plainly, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ResNet-18", "WRN-10-2", "ViT", "MLP"])
def test_plain_models_are_the_same_in_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    import flax.linen as nn
    import jax
    from flax.traverse_util import flatten_dict

    from bench import plain_models

    small: dict[str, nn.Module] = {
        "ResNet-18": plain_models.ResNet(4, (4, 6), 1),
        "WRN-10-2": plain_models.ResNet(4, (4, 6), 1, preactivated=True),
        "ViT": plain_models.ViT(8, 1, 2, 4),
        "MLP": plain_models.MLP(8, 1),
    }
    model = small[name]
    assert type(model) is type(plain_models.MODELS[name])
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32)
    params = common.draw_weights(model, images)
    apply = partial(model.apply, mutable=["batch_stats"])
    expected = jax.jit(apply)({"params": params}, images)[0]
    tensors = plain_models.torch_parameters(flatten_dict(params, sep="/"))
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    actual = plain_models.torch_logits(model)(tensors, x)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_race_of_plain_models(tmp_path: Path) -> None:
    from bench import models

    weights = tmp_path / "weights.npz"
    models.write_weights("MLP", weights)
    problem = models.Problem("MLP", 2, weights)
    expected = models.CONTESTANTS["Python loop over a pullback"](problem)()
    for name in ("chunked, per_sample", "chunked, called plainly"):
        assert common.relative_error(models.CONTESTANTS[name](problem)(), expected) < 1e-5
    interacting = models.Problem("ResNet-18", 2, weights)
    with pytest.raises(common.SkipError, match="samples interact"):
        models.CONTESTANTS["chunked, per_sample"](interacting)


@pytest.mark.parametrize(
    ("backend", "timed"),
    [("cpu", []), ("gpu", ["batch-minor"]), ("tpu", ["NHWC", "batch-minor"])],
)
def test_accelerators_also_time_the_layouts_that_are_not_usual_there(
    backend: str, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import ntk
    from tenas_jax import numerics
    from tenas_jax.networks import backends
    from tenas_jax.networks.batch_minor import BATCH_MINOR

    monkeypatch.setattr(numerics, "backend", lambda: backend)
    monkeypatch.setattr(backends, "backend", lambda: backend)
    assert ntk.find_layout(None) is backends.network_layout()
    layouts = {"NHWC": backends.NHWC_ON_GPU, "batch-minor": BATCH_MINOR}
    for name, layout in layouts.items():
        if name in timed:
            assert ntk.find_layout(name) is layout
        else:
            with pytest.raises(common.SkipError):
                ntk.find_layout(name)


@pytest.mark.parametrize("space_name", common.SPACES)
def test_pytorch_reference_has_our_kernel(reference: ModuleType, space_name: str) -> None:
    # Not at the top: the contestants' processes import this module.
    import jax
    import torch
    from flax.traverse_util import flatten_dict

    from tenas_jax.metrics.ntk import empirical_ntk
    from tenas_jax.networks.layouts import NHWC

    space, mask = get_space(space_name), thinned_mask(space_name)
    network = space.supernet(ProxySize(10), NHWC)
    generator = np.random.default_rng(0)
    images = generator.standard_normal((3, 8, 8, 3), np.float32)
    arguments = jax.device_put((images, mask))
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)["params"]
    params = jax.tree.map(
        lambda leaf: generator.uniform(-1, 1, leaf.shape).astype(np.float32), shapes
    )

    theirs = reference.NTK_NETWORKS[space_name](mask)
    theirs.load_state_dict(reference.state_dict(space, flatten_dict(params, sep="/")))
    torch_images = torch.from_numpy(images).permute(0, 3, 1, 2)
    loop = reference.ntk_loop(theirs, theirs, torch_images).numpy()
    func = reference.ntk_func(theirs, torch_images, chunk_size=2).numpy()

    @jax.jit
    def ours(params: Any, images: Any, mask: Any) -> Any:
        def logits(params: Any, images: Any) -> Any:
            return network.apply({"params": params}, images, mask)

        return empirical_ntk(logits, params, images)

    assert common.relative_error(loop, np.asarray(ours(params, *arguments))) < 1e-4
    assert common.relative_error(func, loop) < 1e-5


@pytest.mark.parametrize(("space", "short"), [("nas-bench-201", "nas201"), ("darts", "darts")])
def test_pytorch_reference_has_the_golden_values(
    reference: ModuleType, golden: Path, space: str, short: str
) -> None:
    import torch

    alphas = np.load(golden / f"{short}_alphas.npz")
    cells = range(len(get_space(space).cell_types))
    mask = np.stack([alphas[f"half_ct{i}"] == 0 for i in cells])
    inputs = np.load(golden / "inputs.npz")

    def load(network: Any, name: str) -> Any:
        found = np.load(golden / f"{short}_{name}_weights_default_seed0.npz")
        weights = {key.replace("._ops", ""): torch.from_numpy(found[key]) for key in found}
        if name == "lr":  # without its stem, which is of another shape in the original
            weights |= {key: value for key, value in network.state_dict().items() if "stem" in key}
        network.load_state_dict(weights)
        return network

    network = load(reference.NTK_NETWORKS[space](mask), "ntk")
    images = torch.from_numpy(inputs["ntk_input_0"])
    expected = np.load(golden / f"{short}_ntk_half_default_seed0.npz")
    logits = network(images).detach().numpy()
    assert common.relative_error(logits, expected["logits_f32"]) < 1e-5
    kernel = reference.ntk_loop(network, network, images).numpy()
    assert common.relative_error(kernel, expected["ntk_f32"]) < 1e-5

    regions = load(reference.REGION_NETWORKS[space](mask), "lr")
    patches = [torch.from_numpy(inputs["lr_input_0"])]
    patterns = reference.activation_patterns(regions, patches)
    counted = np.load(golden / f"{short}_lr_half_default_seed0.npz")
    assert patterns.shape[1] == counted["n_neuron"]
    assert len(np.unique(patterns.numpy(), axis=0)) == counted["n_unique_f32"]
    assert reference.count_regions(patterns) == pytest.approx(counted["n_unique_f32"], rel=1e-5)


def slow_sum(seconds: float, value: float) -> Callable[[], np.ndarray]:
    def work() -> np.ndarray:
        time.sleep(seconds)
        return np.array([value, 1.0])

    return work


def missing() -> Callable[[], np.ndarray]:
    common.require("no-such-distribution")
    raise AssertionError("not skipped")


def test_race_times_compares_and_skips() -> None:
    contestants = [
        common.Contestant("slow", partial(slow_sum, 0.03, 2.0)),
        common.Contestant("fast", partial(slow_sum, 0.0, 2.0 + 1e-6)),
        common.Contestant("wrong", partial(slow_sum, 0.0, 2.1)),
        common.Contestant("absent", missing),
    ]
    outcomes = common.race(contestants, deadline=time.monotonic() + 60, repeats=3)
    slow, fast, wrong, absent = outcomes
    assert [len(outcome.seconds) for outcome in outcomes] == [3, 3, 0, 0]
    assert min(slow.seconds) >= 0.03
    assert slow.median is not None and fast.median is not None
    assert 0 < fast.median < slow.median
    assert fast.error == pytest.approx(1e-6 / np.sqrt(5), rel=1e-3)
    assert fast.peak_mib is not None and 10 < fast.peak_mib < 10_000
    assert wrong.note == "not timed: differs from slow by 4.5e-02"
    assert absent.note == "no-such-distribution not installed"


def test_race_ends_at_its_deadline() -> None:
    contestants = [
        common.Contestant("endless", partial(slow_sum, 1e4, 1.0)),
        common.Contestant("late", partial(slow_sum, 0.0, 1.0)),
    ]
    start = time.monotonic()
    endless, late = common.race(contestants, deadline=start + 2, repeats=1)
    assert time.monotonic() - start < 5
    assert endless.note == late.note == "out of time"


def test_speed_up_is_over_the_baseline() -> None:
    outcomes = [
        common.Outcome("base", prepare_seconds=9.0, seconds=[2.0, 4.0, 3.0], error=0.0),
        common.Outcome("ours", seconds=[0.5], error=2e-6, peak_mib=321.4),
        common.Outcome("absent", note="torch not installed"),
    ]
    text = common.table(common.OUTCOME_HEADER, common.outcome_rows(outcomes, "base"))
    base, ours, absent = text.splitlines()[2:]
    assert base == "| base | 3 | 2 - 4 (3) | 1 | 0e+00 | 9 | - | - |  |"
    assert ours == "| ours | 0.5 | 0.5 - 0.5 (1) | 6 | 2e-06 | - | 321 | - |  |"
    assert absent == "| absent | - | - | - | - | - | - | - | torch not installed |"


def test_results_hold_the_environment(tmp_path: Path) -> None:
    results = [{"images": 8, "outcomes": [vars(common.Outcome("ours", seconds=[1.5]))]}]
    folder = common.write_results(tmp_path, "ntk", ENVIRONMENT, results, "| a |")
    assert folder == tmp_path / "some-cpu-1-thread"
    stored = json.loads((folder / "ntk.json").read_text())
    assert stored["environment"] == ENVIRONMENT
    assert stored["results"][0]["outcomes"][0]["seconds"] == [1.5]
    text = (folder / "ntk.md").read_text()
    assert "Some CPU, 1 of 2 cores for everyone; Python 3.11, jax 1." in text
    assert text.endswith("| a |\n")


# A loop of 5 over a fused product and a convolution, then a conditional.
HLO = """HloModule jit_f

%fused (a: f32[4,6], b: f32[6,2]) -> f32[4,2] {
  %a = f32[4,6]{1,0} parameter(0)
  %b = f32[6,2]{1,0} parameter(1)
  ROOT %dot = f32[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %state = (s32[], f32[4,6]{1,0}) parameter(0)
  %x = f32[4,6]{1,0} get-tuple-element(%state), index=1
  %w = f32[6,2]{1,0} constant({...})
  %y = f32[4,2]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused
  %images = f32[2,8,8,3]{3,2,1,0} constant({...})
  %kernel = f32[5,3,3,3]{3,2,1,0} constant({...})
  %conv = (f32[2,8,8,5]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), window={size=3x3 \
pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %gradient = (f32[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%images, %dy), window={size=3x3 \
pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %dy = f32[2,8,8,5]{3,2,1,0} get-tuple-element(%conv), index=0
  ROOT %next = (s32[], f32[4,6]{1,0}) tuple(%i, %x)
}

%few (x: f32[4,6]) -> f32[4,6] {
  ROOT %x = f32[4,6]{1,0} parameter(0)
}

%many (x: f32[4,6]) -> f32[4,6] {
  %x = f32[4,6]{1,0} parameter(0)
  ROOT %negate = f32[4,6]{1,0} negate(%x)
}

ENTRY %main (x: f32[4,6]) -> f32[4,6] {
  %x = f32[4,6]{1,0} parameter(0)
  %init = (s32[], f32[4,6]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[4,6]{1,0}) while(%init), condition=%until, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[4,6]{1,0} get-tuple-element(%loop), index=1
  ROOT %end = f32[4,6]{1,0} conditional(%p, %last, %last), true_computation=%few, \
false_computation=%many
}
"""


def test_a_compiled_program_is_counted_with_its_loops() -> None:
    cost = hlo.Program(HLO).cost
    convolution = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
    assert cost.kernels == 5 * 3 + 1
    assert cost.conditionals == 1
    assert cost.flops == 5 * (2 * 4 * 2 * 6 + 2 * convolution)
    images, kernel, results = 2 * 8 * 8 * 3, 5 * 3 * 3 * 3, 2 * 8 * 8 * 5
    floats = 5 * (24 + 12 + 8 + 2 * (images + kernel + results)) + 2 * 24
    assert cost.bytes == 4 * floats
    assert cost.unknown_loops == 0
    assert cost.floor(1e30) == pytest.approx(16 * hlo.LAUNCH_SECONDS)
    unknown = hlo.Program(HLO.replace("known_trip_count", "what")).cost
    assert (unknown.kernels, unknown.unknown_loops) == (4, 1)


TPU_HLO = """
%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %y = f32[8,128]{1,0:T(8,128)S(1)} negate(%x), backend_config={"estimated_cycles":"100"}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]) tuple(%i, %y, %limit)
}

%until (state: (s32[], f32[8,128], s32[])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  LIMIT
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%one (p: u8[6,2,5], q: u8[6,5,4]) -> f32[6,2,4] {
  %p = bf16[6,2,5]{2,1,0:T(8,128)} parameter(0)
  %q = bf16[6,5,4]{2,1,0:T(8,128)} parameter(1)
  ROOT %products = f32[6,2,4]{2,1,0:T(8,128)} convolution(%p, %q), window={size=6 stride=5 \
lhs_dilate=6}, dim_labels=0bf_0io->0bf
}

ENTRY %main (x: f32[8,128], p: bf16[6,2,5], q: bf16[6,5,4]) -> f32[6,2,4] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p = bf16[6,2,5]{2,1,0:T(8,128)} parameter(1)
  %q = bf16[6,5,4]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %seven = s32[]{:T(128)} constant(7)
  %limit = s32[]{:T(128)} copy(%seven)
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %moved = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %init = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) \
tuple(%zero, %moved, %limit)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) while(%init), \
condition=%until, body=%body
  ROOT %end = f32[6,2,4]{2,1,0:T(8,128)} fusion(%p, %q), kind=kOutput, calls=%one, \
backend_config={"window_config":{"estimated_cycles":"30"}}
}
"""


@pytest.mark.parametrize(
    ("limit", "runs"),
    [
        ("%limit = s32[]{:T(128)} constant(5)", 5),
        ("%limit = s32[]{:T(128)} get-tuple-element(%state), index=2", 7),
        ("%limit = s32[]{:T(128)} get-tuple-element(%state), index=1", None),
    ],
    ids=["constant", "passed along", "unknown"],
)
def test_a_program_of_a_tpu_has_estimated_cycles(limit: str, runs: int | None) -> None:
    cost = hlo.Program(TPU_HLO.replace("LIMIT", limit)).cost
    assert cost.unknown_loops == (runs is None)
    assert cost.cycles == 100 * (runs or 1) + 30
    assert cost.kernels == (runs or 1) + 3  # a copy of a number, one into the chip, the product
    assert cost.flops == 2 * 6 * (2 * 5 * 4)


@pytest.mark.parametrize(("target", "extra"), [("t4", "cuda13"), ("v5e", "tpu")])
def test_a_missing_compiler_is_a_line_that_says_what_to_install(
    target: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(**_: Any) -> None:
        raise NotImplementedError("topology not implemented\nmore")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    monkeypatch.setattr("sys.argv", ["compile", "--target", target, "--results", str(tmp_path)])
    monkeypatch.setattr("os.environ", {})
    with pytest.raises(SystemExit) as ended:
        compiling.main()
    assert f"pip install 'jax[{extra}]'" in str(ended.value)
    assert "\n" not in str(ended.value)
    assert not list(tmp_path.iterdir())


def compiled(metrics: str, devices: int, **others: Any) -> compiling.Compiled:
    numbers = (16, 1.5, 30.25, 100.0, 120.0, 539.0, 2.0, 41.0, 13.0)
    bounds = {"floor_ms": 4.87, "mega_cycles": None, "unknown_loops": 0} | others
    return compiling.Compiled("some preset", metrics, False, 72, devices, *numbers, **bounds)


def test_compiled_programs_are_reported_with_the_formula_of_the_floor(tmp_path: Path) -> None:
    compiling.report(tmp_path, "t4", compiled("kappa", 1))
    text = (tmp_path / "t4.md").read_text()
    assert hlo.FORMULA in text
    assert "| some preset | kappa | False | 72 | 1 | 16 | 1.5 | 30.2 |" in text
    assert json.loads((tmp_path / "t4.json").read_text())["results"][0]["floor_ms"] == 4.87


def test_a_program_compiled_again_replaces_its_row_alone(tmp_path: Path) -> None:
    for metrics, devices, cycles in (("kappa", 1, 5.0), ("kappa", 4, 6.0), ("kappa", 1, 7.0)):
        row = compiled(metrics, devices, floor_ms=None, mega_cycles=cycles)
        compiling.report(tmp_path, "v5e", row)
    path = tmp_path / "v5e.json"
    written = json.loads(path.read_text())
    assert [row["mega_cycles"] for row in written["results"]] == [6.0, 7.0]
    assert "the compiler's estimate" in written["bound"]
    written["versions"]["jax"] = "0.1"
    path.write_text(json.dumps(written))
    compiling.report(tmp_path, "v5e", compiled("regions", 1))
    assert len(json.loads(path.read_text())["results"]) == 1


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    lines = {"ours": {8: [1.0, 2.0], 16: [3.0]}, "untimed": {}}
    common.plot_lines(path, lines, title="t", x_label="images", y_label="seconds")
    assert b"/MediaBox [ 0 0 237.6 " in path.with_suffix(".pdf").read_bytes()  # 3.3 inches
    assert b"/Type3" not in path.with_suffix(".pdf").read_bytes()
    assert path.read_bytes().startswith(b"\x89PNG")
