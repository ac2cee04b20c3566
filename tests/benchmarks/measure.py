"""Time and memory of a loss beside those of a transcription: forward and backward, each in a fresh process.

Memory is the growth of the process's peak over what it held before, so a process can measure one thing once: a second
run would find the memory of the first. The two times are taken in turn in one process, and of each the best is kept:
what else the machine does then hits both alike. Runs on Linux.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from tests.support import processes

Shape = tuple[int, ...]
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Comparison:
    """Milliseconds and MiB of a loss and of its transcription."""

    milliseconds: tuple[float, float]
    mebibytes: tuple[float, float]

    @property
    def faster(self) -> float:
        """How many times faster than the transcription."""
        return self.milliseconds[1] / self.milliseconds[0]

    @property
    def lighter(self) -> float:
        """By what factor less memory than the transcription."""
        return self.mebibytes[1] / max(self.mebibytes[0], 0.1)

    def __str__(self) -> str:
        (ms, slow), (mib, heavy) = self.milliseconds, self.mebibytes
        return (
            f"{ms:.2f} ms, {mib:.1f} MiB; as written {slow:.2f} ms, {heavy:.1f} MiB; "
            f"{self.faster:.1f}x faster, {self.lighter:.1f}x lighter"
        )


def compare(ours: Loss, written: Loss, shapes: Sequence[Shape], rounds: tuple[int, int] = (20, 5)) -> Comparison:
    """Measure two functions of the same tensors, normal numbers of which the first half gets a gradient.

    Args:
        ours: The loss, a function of a module (so that another process can find it).
        written: Its transcription, likewise.
        shapes: Shape of every argument.
        rounds: How often each is timed.
    """
    names = [f"{function.__module__}:{function.__qualname__}" for function in (ours, written)]
    fast, slow = _run("time", names, shapes, rounds)
    (light,), (heavy,) = (_run("memory", [name], shapes, (1,)) for name in names)
    return Comparison((fast, slow), (light, heavy))


def _run(what: str, names: Sequence[str], shapes: Sequence[Shape], rounds: Sequence[int]) -> list[float]:
    task = json.dumps({"what": what, "names": names, "shapes": shapes, "rounds": rounds})
    # every larger block goes back to the system when it is freed, so that the peak is that of live tensors
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {})}
    done = processes.program("benchmarks.measure", task, environment=environment, limit=600)
    numbers: list[float] = json.loads(done.stdout)
    return numbers


def _main(what: str, names: list[str], shapes: list[list[int]], rounds: list[int]) -> list[float]:
    torch.set_num_threads(2)
    functions = [_find(name) for name in names]
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    few = [tensor[:2].contiguous() for tensor in inputs]
    for function in functions:
        _once(function, few)  # what is set up but once is no cost of the loss
    if what == "memory":
        return [_growth(functions[0], inputs)]
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(max(rounds)):
        for function, own, count in zip(functions, times, rounds, strict=True):
            if turn < count:
                own.append(_once(function, inputs))
    return [1e3 * min(own) for own in times]


def _find(name: str) -> Loss:
    module, _, attribute = name.partition(":")
    function: Loss = getattr(import_module(module), attribute)
    return function


def _once(function: Loss, inputs: Sequence[Tensor]) -> float:
    leaves = [x.clone().requires_grad_(i < len(inputs) // 2) for i, x in enumerate(inputs)]
    start = time.perf_counter()
    function(*leaves).backward()
    return time.perf_counter() - start


def _growth(function: Loss, inputs: Sequence[Tensor]) -> float:
    leaves = [x.requires_grad_(i < len(inputs) // 2) for i, x in enumerate(inputs)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    function(*leaves).backward()
    return (_peak() - before) / 2**10


def _peak() -> int:
    """Return the largest number of KiB that the process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(_main(**json.loads(sys.argv[1]))))
