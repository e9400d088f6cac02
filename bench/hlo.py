"""The costs of a program compiled by XLA: kernels, conditionals, bytes, FLOPs, cycles.

They are read from its optimized HLO. The body of a loop counts as often as the loop runs. Of the
branches of a conditional, only the one with the most cycles counts, or with the most kernels if the
compiler gives no cycles.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

LAUNCH_SECONDS = 2.5e-6
FORMULA = "each kernel takes the larger of 2.5 us and its bytes over the memory's bandwidth"

BYTES = {"pred": 1, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8, "c128": 16} | {
    f"{kind}{bits}": bits // 8 for kind in "fsu" for bits in (8, 16, 32, 64)
}
# What launches no kernel.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"} | {
    "partition-id", "replica-id", "opt-barrier"
}  # fmt: skip
# What passes on a value.
COPIES = ("bitcast", "copy", "convert", "copy-start", "copy-done", "opt-barrier")


class Instruction(NamedTuple):
    """A line of HLO: `name = type operation(operands), attributes`."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    rest: str

    def called(self, attribute: str) -> str:
        """The computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


@dataclass
class Cost:
    """The costs at run time.

    Args:
        kernels: number of kernels launched.
        conditionals: number of conditionals; at each the host waits for the device.
        bytes: bytes read and written.
        flops: FLOPs of convolutions and matrix products; a multiply-add is two.
        cycles: estimate of the compiler for TPUs; that for GPUs gives none.
        transfers: number of kernels by the bytes that they move.
        unknown_loops: loops of unknown length, counted once.
    """

    kernels: int = 0
    conditionals: int = 0
    bytes: int = 0
    flops: int = 0
    cycles: int = 0
    transfers: dict[int, int] = field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Add the costs of something that runs `times` times."""
        self.kernels += other.kernels * times
        self.conditionals += other.conditionals * times
        self.bytes += other.bytes * times
        self.flops += other.flops * times
        self.cycles += other.cycles * times
        self.unknown_loops += other.unknown_loops
        for size, count in other.transfers.items():
            self.transfers[size] = self.transfers.get(size, 0) + count * times

    def floor(self, bandwidth: float) -> float:
        """A lower bound on its seconds, by `FORMULA`.

        Args:
            bandwidth: bytes per second.

        Example:
            >>> cost = Cost()
            >>> cost.add(Cost(kernels=1, transfers={10**6: 1}), times=1000)
            >>> cost.floor(bandwidth=1e11), cost.floor(bandwidth=1e12)
            (0.01, 0.0025)
        """
        each = (
            count * max(LAUNCH_SECONDS, size / bandwidth) for size, count in self.transfers.items()
        )
        return sum(each)


def size(type_: str) -> int:
    """Bytes of all arrays of a type.

    Example:
        >>> size("(f32[2,3]{1,0}, pred[])"), size("s32[5]")
        (25, 20)
    """
    return sum(BYTES.get(kind, 0) * math.prod(shape) for kind, shape in _arrays(type_))


def _arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", type_)
    return [(kind, tuple(int(n) for n in shape.split(",") if n)) for kind, shape in found]


class Program:
    """An optimized program.

    Args:
        text: the result of `jax.stages.Compiled.as_text`.

    Example:
        >>> program = Program('''
        ... ENTRY %main (x: f32[8]) -> f32[8] {
        ...   %x = f32[8]{0} parameter(0)
        ...   ROOT %y = f32[8]{0} negate(%x), metadata={op_name="y"}
        ... }''')
        >>> program.cost.kernels, program.cost.bytes
        (1, 64)
    """

    def __init__(self, text: str) -> None:
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._costs: dict[str, Cost] = {}
        self._entry, current = "", ""
        for line in text.splitlines():
            start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if start:
                current = start[2]
                self._computations[current] = {}
                self._entry = current if start[1] else self._entry
            elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line):
                instruction = _instruction(*found.groups())
                self._computations[current][instruction.name] = instruction

    @cached_property
    def cost(self) -> Cost:
        """The costs of running it once."""
        return self._cost(self._entry)

    def _cost(self, computation: str) -> Cost:
        if computation not in self._costs:
            total = Cost()
            for instruction in self._computations[computation].values():
                self._add(total, instruction, computation)
            self._costs[computation] = total
        return self._costs[computation]

    def _add(self, total: Cost, instruction: Instruction, computation: str) -> None:
        operation = instruction.operation
        if operation == "while":
            trips = self._trips(instruction, computation)
            total.unknown_loops += trips is None
            total.add(self._cost(instruction.called("body")), trips or 1)
        elif operation == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            names = listed[1].split(", ") if listed else []
            names += [instruction.called(f"{which}_computation") for which in ("true", "false")]
            branches = [self._cost(name.lstrip("%")) for name in names if name]
            total.add(max(branches, key=lambda cost: (cost.cycles, cost.kernels)))
            total.conditionals += 1
        elif operation in ("call", "async-start"):
            called = instruction.called("to_apply") or instruction.called("calls")
            total.add(self._cost(called))
        elif operation not in FREE and not operation.endswith("-done"):
            moved = self._bytes(instruction, computation)
            flops = self._flops(instruction, computation)
            estimated = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            cycles = int(estimated[1]) if estimated else 0
            total.add(Cost(1, bytes=moved, flops=flops, cycles=cycles, transfers={moved: 1}))

    def _trips(self, loop: Instruction, computation: str) -> int | None:
        """How often a loop runs: XLA's number, or the bound that its counter is compared with."""
        known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        around = self._computations[computation]
        condition = self._computations.get(loop.called("condition"), {})
        initial = around.get(loop.operands[0])

        def constant(instruction: Instruction | None, here: dict[str, Instruction]) -> int | None:
            if instruction is None:
                return None
            number = re.match(r"constant\((-?\d+)\)", instruction.rest)
            if number:
                return int(number[1])
            if instruction.operation in COPIES:
                return constant(here.get(instruction.operands[0]), here)
            part = re.search(r"index=(\d+)", instruction.rest)
            if instruction.operation != "get-tuple-element" or part is None:
                return None
            whole = here.get(instruction.operands[0])
            if whole and whole.operation == "parameter" and here is condition:
                whole, here = initial, around
            if whole is None or whole.operation != "tuple":
                return None
            return constant(here.get(whole.operands[int(part[1])]), here)

        compared = (each for each in condition.values() if each.type.startswith("pred[]"))
        operands = (condition.get(name) for each in compared for name in each.operands)
        limits = (constant(each, condition) for each in operands)
        # The counter itself is also an operand, with its first value: zero.
        return max((limit for limit in limits if limit), default=None)

    def _bytes(self, instruction: Instruction, computation: str) -> int:
        """Bytes read and written; only the part of an array sliced or updated in place."""
        here, written = self._computations[computation], size(instruction.type)
        read = [size(here[name].type) for name in instruction.operands if name in here]
        inside = self._computations.get(instruction.called("calls"), {})
        operations = {each.operation for each in inside.values()} | {instruction.operation}
        if "dynamic-update-slice" in operations:
            return 2 * max(sum(each for each in read if each < written / 2), 1)
        if "dynamic-slice" in operations:
            read = [min(each, written) for each in read]
        return written + sum(read)

    def _flops(self, instruction: Instruction, computation: str) -> int:
        """FLOPs of a kernel, including fused operations."""
        inside = self._computations.get(instruction.called("calls"), {})
        total = sum(self._flops(each, instruction.called("calls")) for each in inside.values())
        here = self._computations[computation]
        shapes = [_shape(here[name].type) for name in instruction.operands if name in here]
        result = _shape(instruction.type)
        if instruction.operation == "convolution":
            return total + _convolution_flops(instruction, shapes[0], shapes[1], result)
        contracted = re.search(r'lhs_contracting_dim\w*"?[=:][{\[]([\d,"]*)', instruction.rest)
        labels = re.search(r"dim_labels=\w+_(\w+)->(\w+)", instruction.rest)
        if contracted and len(shapes) > 1:
            axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
            total += 2 * math.prod(result) * math.prod(shapes[0][axis] for axis in axes)
        elif labels and len(shapes) > 1:
            kernel, images = shapes[1], result
            if "convBackwardFilter" in instruction.rest:
                kernel, images = result, shapes[1]
            elif "convBackwardInput" in instruction.rest:
                images = shapes[0]
            outputs = kernel[labels[1].index("o")]
            total += 2 * math.prod(images) * math.prod(kernel) // max(outputs, 1)
        return total


def _convolution_flops(
    instruction: Instruction, x: tuple[int, ...], kernel: tuple[int, ...], result: tuple[int, ...]
) -> int:
    """Without products with zeros around or between the pixels.

    The compiler for TPUs makes convolutions of products of many matrices, in which most are.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    assert labels is not None
    fields = dict(each.split("=") for each in window[1].split()) if window else {}
    total = 2 * result[labels[3].index("b")] * result[labels[3].index("f")]
    total *= kernel[labels[2].index("i")]
    for axis in range(len(x) - 2):
        numbers = {name: value.split("x")[axis] for name, value in fields.items()}
        stride, dilation, between = (
            int(numbers.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate")
        )
        size = kernel[labels[2].index(str(axis))]
        low = int(numbers.get("pad", "0").partition("_")[0])
        first = np.arange(result[labels[3].index(str(axis))]) * stride - low
        read = first[:, None] + np.arange(size) * dilation
        last = (x[labels[1].index(str(axis))] - 1) * between
        total *= int(((read >= 0) & (read <= last) & (read % between == 0)).sum())
    return total


def _shape(type_: str) -> tuple[int, ...]:
    """The shape of the first array of a type."""
    arrays = _arrays(type_)
    return arrays[0][1] if arrays else ()


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    type_, rest = text[:end], text[end:].lstrip()
    operation, _, arguments = rest.partition("(")
    operands = arguments[: _closing("(" + arguments) - 1]
    return Instruction(name, type_, operation, tuple(re.findall(r"%([\w.\-]+)", operands)), rest)


def _closing(text: str) -> int:
    """Index where the opening parenthesis of a text closes."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i
    return len(text)
