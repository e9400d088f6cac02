"""A search's programs, compiled for a GPU that need not be there.

    python -m bench.compile --target h100 --preset nas-bench-201 darts-cifar10

XLA's compiler for CUDA needs no device. Nothing is run, so nothing here is a measured time but that
of the compilation; without a device XLA does not try out kernels either, and takes its default for
each convolution. The floor is a bound from below by the formula in the table.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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

INSTALL = "XLA's compiler for CUDA is missing: pip install 'jax[cuda13]'; it needs no GPU"


@dataclass(frozen=True)
class Target:
    """A GPU, by its data sheet.

    Args:
        name: of the product.
        capability: compute capability.
        cores: streaming multiprocessors.
        units: that multiply float32, of each core.
        threads: of a core.
        shared_memory: bytes of a core; a block may have 1 KiB less.
        cache: bytes of the second level.
        memory: bytes.
        bandwidth: of the memory, bytes a second.
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

    @property
    def config(self) -> str:
        """What XLA wants to know, as text of its `GpuTargetConfigProto`."""
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
TARGETS = {
    "h100": Target(
        "NVIDIA H100 SXM", (9, 0), 132, 128, 2048, 228 * KIB, 50 * KIB**2, 79 * GIB,
        3_350_000_000_000, 1.98,
    ),
    "a100": Target(
        "NVIDIA A100 SXM", (8, 0), 108, 64, 2048, 164 * KIB, 40 * KIB**2, 79 * GIB,
        2_039_000_000_000, 1.41,
    ),
    "l4": Target(
        "NVIDIA L4", (8, 9), 58, 128, 1536, 100 * KIB, 48 * KIB**2, 22 * GIB,
        300_000_000_000, 2.04,
    ),
    "t4": Target(
        "NVIDIA T4", (7, 5), 40, 64, 1024, 64 * KIB, 4 * KIB**2, 15 * GIB,
        320_000_000_000, 1.59,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A program, what it needs and does for a row: one supernet or architecture at one draw.

    Args:
        preset: whose search it is of.
        metrics: that it measures.
        single_path: whether it is for masks with at most one operator per edge.
        images: of a kernel.
        rows: that a call measures.
        trace_seconds: of the CPU, to trace it.
        compile_seconds: of the CPU, to compile it.
        temporary_mib: memory besides its arguments and results.
        peak_mib: all memory.
        kernels: launched, for each row.
        conditionals: at each the host waits for the device, for each row.
        gflop: of convolutions and matrix products, for each row.
        gigabytes: read and written, for each row.
        floor_ms: by `hlo.FORMULA`, for each row.
        unknown_loops: loops of unknown length, counted once.
    """

    preset: str
    metrics: str
    single_path: bool
    images: int
    rows: int
    trace_seconds: float
    compile_seconds: float
    temporary_mib: float
    peak_mib: float
    kernels: float
    conditionals: float
    gflop: float
    gigabytes: float
    floor_ms: float
    unknown_loops: int


def programs(
    target: str, preset: str, *, single_path: bool = False, images: int | None = None
) -> Iterator[Compiled]:
    """Compiles the programs of a search on one device.

    Args:
        target: key of `TARGETS`.
        preset: name of its configuration.
        single_path: whether for masks with at most one operator per edge.
        images: of the kernel; None: those of the preset.

    Raises:
        common.SkipError: the compiler is not installed.
    """
    card = TARGETS[target]
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=card.config
        )
    except (RuntimeError, NotImplementedError) as error:
        raise common.SkipError(f"{INSTALL} ({str(error).partition(chr(10))[0]})") from error

    def traced(function: Any, identity: Any, *arguments: Any) -> export.Exported:
        return export.export(function, platforms=["cuda"])(*arguments)

    def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    config = get_preset(preset)
    ntk = dataclasses.replace(config.ntk, batch_size=images or config.ntk.batch_size)
    config = dataclasses.replace(config, ntk=ntk)
    pixels = np.zeros((config.images, config.image_size, config.image_size, 3), np.uint8)
    image_set = ImageSet(pixels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "none")
    with (
        # What the library asks, and where it puts what, on a machine that has the device.
        mock.patch.object(jax, "default_backend", lambda: "gpu"),
        mock.patch.object(scoring, "place", shape),
        mock.patch.object(scoring, "traced", traced),
    ):
        scorer = scoring.make_scorer(
            look_up(config), image_set, topology.devices[:1], single_path=single_path
        )
        for part in scorer.parts():
            start = _cpu_seconds()
            for lowered in part.lower():  # none, or one
                traced_at = _cpu_seconds()
                compiled = lowered.compile(compiler_options("gpu"))
                end = _cpu_seconds()
                memory, text = compiled.memory_analysis(), compiled.as_text()
                assert memory is not None and text is not None
                cost, count = hlo.Program(text).cost, part.batch_rows
                yield Compiled(
                    preset,
                    ", ".join(metric.name for metric in part.metrics),
                    single_path,
                    ntk.batch_size,
                    count,
                    traced_at - start,
                    end - traced_at,
                    memory.temp_size_in_bytes / common.MIB,
                    memory.peak_memory_in_bytes / common.MIB,
                    cost.kernels / count,
                    cost.conditionals / count,
                    cost.flops / count / 1e9,
                    cost.bytes / count / 1e9,
                    cost.floor(card.bandwidth) / count * 1e3,
                    cost.unknown_loops,
                )


def _cpu_seconds() -> float:
    """Of this process and its children."""
    return sum(os.times()[:4])


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", choices=TARGETS, default="h100")
    parser.add_argument("--preset", nargs="+", default=["nas-bench-201", "darts-cifar10"])
    parser.add_argument("--single-path", action="store_true", help="as random search and scoring")
    parser.add_argument("--images", type=int, help="of a kernel; the preset's")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # XLA for CUDA cannot start without a device
    results: list[Compiled] = []
    try:
        for preset in options.preset:
            for each in programs(
                options.target, preset, single_path=options.single_path, images=options.images
            ):
                print(each, flush=True)
                results.append(each)
    except common.SkipError as error:
        sys.exit(str(error))
    report(options.results / "compiled", options.target, results)


def report(folder: Path, target: str, results: Sequence[Compiled]) -> None:
    """Writes the results, and prints them.

    Args:
        folder: of all compiled programs.
        target: for which they are.
        results: of each.
    """
    card = TARGETS[target]
    names = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "tenas_jax")
    versions = {name: common.installed_version(name) for name in names}
    header = [field.name.replace("_", " ") for field in dataclasses.fields(Compiled)]
    rows = [dataclasses.astuple(each) for each in results]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"""# Programs compiled for {card.name}

Nothing was run: no time here is measured but the CPU's, of the compilation. Memory is that of a
call; kernels, and what follows them, are those of a row. Floor: {hlo.FORMULA},
{card.bandwidth / 1e9:.0f} GB/s. {listed}.

{common.table(header, rows)}
"""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "target": dataclasses.asdict(card),
        "versions": versions,
        "floor": hlo.FORMULA,
        "results": [dataclasses.asdict(each) for each in results],
    }
    (folder / f"{target}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{target}.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()
