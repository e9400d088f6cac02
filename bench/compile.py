"""Compile a search's programs for a GPU or TPU, without the device.

    python -m bench.compile --target h100 --preset nas-bench-201 darts-cifar10 --devices 1 4

XLA's compilers for CUDA and for TPUs need no device. Nothing is run, so the only measured time is
that of the compilation. Without a GPU, XLA does not autotune kernels and uses its default for each
convolution; the floor is a lower bound by the formula in the table. For a TPU the cycles are the
compiler's own estimate.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import jax
import numpy as np
from jax import export
from jax.experimental import topologies

from bench import common, hlo
from tenas_jax.configs import get_preset
from tenas_jax.data.images import ImageSet
from tenas_jax.host.devices import compiler_options
from tenas_jax.searching import scorer as scoring
from tenas_jax.searching.problem import look_up

# Read by the compiler for TPUs: this machine has no TPU, which only one process could use.
NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Tpu:
    """A TPU, by its documentation.

    Args:
        name: name of the product.
        topology: XLA's name of four chips.
        memory: bytes per chip.
        bandwidth: memory bandwidth, bytes per second.
    """

    name: str
    topology: str
    memory: int
    bandwidth: int
    platform: ClassVar[str] = "tpu"  # for lowering
    backend: ClassVar[str] = "tpu"  # the value of `jax.default_backend` on it
    extra: ClassVar[str] = "tpu"  # the extra of JAX with the compiler

    def devices(self, count: int) -> Sequence[Any]:
        """A number of devices to compile for."""
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)
        four = topologies.get_topology_desc(platform="tpu", topology_name=self.topology)
        return list(four.devices[:count])


@dataclass(frozen=True)
class Gpu:
    """A GPU, by its data sheet.

    Args:
        name: name of the product.
        capability: compute capability.
        cores: number of streaming multiprocessors.
        units: float32 units per core.
        threads: threads per core.
        shared_memory: bytes per core; a block may have 1 KiB less.
        cache: bytes of the second-level cache.
        memory: bytes.
        bandwidth: memory bandwidth, bytes per second.
        clock: GHz.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    threads: int
    shared_memory: int
    cache: int
    memory: int
    bandwidth: int
    clock: float
    platform: ClassVar[str] = "cuda"
    backend: ClassVar[str] = "gpu"
    extra: ClassVar[str] = "cuda13"

    def devices(self, count: int) -> Sequence[Any]:
        """A number of devices to compile for."""
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"1x1x{count}",
            target_config=self.config,
        )
        return list(topology.devices)

    @property
    def config(self) -> str:
        """The text of XLA's `GpuTargetConfigProto`."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared_memory}
              shared_memory_per_block_optin: {self.shared_memory - 1024}
              threads_per_core_limit: {self.threads} core_count: {self.cores}
              fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              memory_bandwidth: {self.bandwidth} l2_cache_size: {self.cache}
              device_memory_size: {self.memory} registers_per_core_limit: 65536
              registers_per_block_limit: 65536 device_address_bits: 64
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              device_vendor: "NVIDIA Corporation" name: "{self.name}"
              driver_version: "13.0.0" runtime_version: "13.0.0"
              compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}"
        """


KIB, GIB = 2**10, 2**30
TARGETS: dict[str, Tpu | Gpu] = {
    "h100": Gpu(
        "NVIDIA H100 SXM", (9, 0), 132, 128, 2048, 228 * KIB, 50 * KIB**2, 79 * GIB,
        3_350_000_000_000, 1.98,
    ),
    "a100": Gpu(
        "NVIDIA A100 SXM", (8, 0), 108, 64, 2048, 164 * KIB, 40 * KIB**2, 79 * GIB,
        2_039_000_000_000, 1.41,
    ),
    "l4": Gpu(
        "NVIDIA L4", (8, 9), 58, 128, 1536, 100 * KIB, 48 * KIB**2, 22 * GIB,
        300_000_000_000, 2.04,
    ),
    "t4": Gpu(
        "NVIDIA T4", (7, 5), 40, 64, 1024, 64 * KIB, 4 * KIB**2, 15 * GIB,
        320_000_000_000, 1.59,
    ),
    "v5e": Tpu("TPU v5e", "v5e:2x2", 16 * GIB, 819_000_000_000),
    "v6e": Tpu("TPU v6e", "v6e:2x2", 32 * GIB, 1_640_000_000_000),
    "v4": Tpu("TPU v4", "v4:2x2x1", 32 * GIB, 1_228_000_000_000),
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A program and its costs per row (one supernet or architecture at one draw).

    Args:
        preset: the preset of its search.
        metrics: the metrics that it measures.
        single_path: whether it is for masks with at most one operator per edge.
        images: images per kernel.
        devices: number of devices that share the rows.
        rows: rows per call and device.
        trace_seconds: CPU seconds to trace it.
        compile_seconds: CPU seconds to compile it.
        temporary_mib: memory besides its arguments and results.
        peak_mib: all memory of a device.
        kernels: kernels run per row.
        conditionals: conditionals per row; at each the host waits for the device.
        gflop: GFLOP of convolutions and matrix products per row.
        gigabytes: GB read and written per row.
        floor_ms: lower bound per row by `hlo.FORMULA`; None for TPUs, which keep much on the chip.
        mega_cycles: the compiler's estimate per row, in millions; None for GPUs.
        unknown_loops: loops of unknown length, counted once.
    """

    preset: str
    metrics: str
    single_path: bool
    images: int
    devices: int
    rows: int
    trace_seconds: float
    compile_seconds: float
    temporary_mib: float
    peak_mib: float
    kernels: float
    conditionals: float
    gflop: float
    gigabytes: float
    floor_ms: float | None
    mega_cycles: float | None
    unknown_loops: int

    @property
    def program(self) -> tuple[str | int, ...]:
        """The identity of the program."""
        return self.preset, self.metrics, self.single_path, self.images, self.devices


def programs(
    target: str,
    preset: str,
    *,
    devices: int = 1,
    single_path: bool = False,
    images: int | None = None,
    metrics: str | None = None,
) -> Iterator[Compiled]:
    """Compile the programs of a search.

    Args:
        target: key of `TARGETS`.
        preset: name of its configuration.
        devices: number of devices that share the rows.
        single_path: whether for masks with at most one operator per edge.
        images: images per kernel; None: the preset's.
        metrics: the metrics; None: the preset's.

    Raises:
        common.SkipError: the compiler is not installed.
    """
    card = TARGETS[target]
    try:
        there = card.devices(devices)
    except (RuntimeError, NotImplementedError) as error:
        raise common.SkipError(
            f"XLA's compiler for {card.name} is missing: pip install 'jax[{card.extra}]'; it needs "
            f"no such device ({str(error).partition(chr(10))[0]})"
        ) from error

    def traced(function: Any, identity: Any, *arguments: Any) -> export.Exported:
        return export.export(function, platforms=[card.platform])(*arguments)

    def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    config = get_preset(preset)
    ntk = dataclasses.replace(config.ntk, batch_size=images or config.ntk.batch_size)
    config = dataclasses.replace(config, ntk=ntk, metrics=metrics or config.metrics)
    pixels = np.zeros((config.images, config.image_size, config.image_size, 3), np.uint8)
    image_set = ImageSet(pixels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "none")
    with (
        # Emulates the library's queries and placements on a machine with the device.
        mock.patch.object(jax, "default_backend", lambda: card.backend),
        mock.patch.object(scoring, "place", shape),
        mock.patch.object(scoring, "traced", traced),
    ):
        scorer = scoring.make_scorer(look_up(config), image_set, there, single_path=single_path)
        for part in scorer.parts():
            start = _cpu_seconds()
            for lowered in part.lower():  # none, or one
                traced_at = _cpu_seconds()
                compiled = lowered.compile(compiler_options(card.backend))
                end = _cpu_seconds()
                memory, text = compiled.memory_analysis(), compiled.as_text()
                assert memory is not None and text is not None
                cost, count = hlo.Program(text).cost, part.batch_rows // devices
                is_tpu = isinstance(card, Tpu)
                yield Compiled(
                    preset,
                    ", ".join(metric.name for metric in part.metrics),
                    single_path,
                    ntk.batch_size,
                    devices,
                    count,
                    traced_at - start,
                    end - traced_at,
                    memory.temp_size_in_bytes / common.MIB,
                    memory.peak_memory_in_bytes / common.MIB,
                    cost.kernels / count,
                    cost.conditionals / count,
                    cost.flops / count / 1e9,
                    cost.bytes / count / 1e9,
                    None if is_tpu else cost.floor(card.bandwidth) / count * 1e3,
                    cost.cycles / count / 1e6 if is_tpu else None,
                    cost.unknown_loops,
                )


def _cpu_seconds() -> float:
    """CPU seconds of this process and its children."""
    return sum(os.times()[:4])


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", choices=TARGETS, default="h100")
    parser.add_argument("--preset", nargs="+", default=["nas-bench-201", "darts-cifar10"])
    parser.add_argument("--devices", type=int, nargs="+", default=[1], choices=range(1, 5))
    parser.add_argument("--single-path", action="store_true", help="as random search and scoring")
    parser.add_argument("--images", type=int, help="of a kernel; the preset's")
    parser.add_argument("--metrics", help="the preset's")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # XLA for CUDA cannot start without a device
    try:
        for preset, devices in itertools.product(options.preset, options.devices):
            for each in programs(
                options.target,
                preset,
                devices=devices,
                single_path=options.single_path,
                images=options.images,
                metrics=options.metrics,
            ):
                report(options.results / "compiled", options.target, each)
    except common.SkipError as error:
        sys.exit(str(error))


def report(folder: Path, target: str, result: Compiled) -> None:
    """Write a result beside those of the same versions, and print all.

    Args:
        folder: folder of all compiled programs.
        target: the target of the result.
        result: the result, which replaces an earlier one of the same program.
    """
    card = TARGETS[target]
    names = ["jax", "jaxlib", "tenas_jax"]
    plugins = ("libtpu",) if isinstance(card, Tpu) else ("jax-cuda12-plugin", "jax-cuda13-plugin")
    versions = {name: common.installed_version(name) for name in (*names, *plugins)}
    path = folder / f"{target}.json"
    written = json.loads(path.read_text()) if path.exists() else {}
    same = written.get("versions") == versions
    earlier = [Compiled(**each) for each in written["results"]] if same else []
    results = [each for each in earlier if each.program != result.program] + [result]
    header = [field.name.replace("_", " ") for field in dataclasses.fields(Compiled)]
    rows = [dataclasses.astuple(each) for each in results]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    bound = f"Floor: {hlo.FORMULA}, {card.bandwidth / 1e9:.0f} GB/s."
    if isinstance(card, Tpu):
        bound = "Cycles are the compiler's estimate."
    text = f"""# Programs compiled for {card.name}

Nothing was run: no time here is measured but the CPU's, of the compilation. Memory is that of a
call; kernels, and what follows them, are those of a row. {bound} {listed}.

{common.table(header, rows)}
"""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "target": vars(card),
        "versions": versions,
        "bound": bound,
        "results": [dataclasses.asdict(each) for each in results],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{target}.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()
