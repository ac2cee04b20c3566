"""Time or memory of token distillation with 32,000 tokens: both heads inside, whole logits, or the products alone.

Prints one line of JSON: seconds of the processor by name for ``time``, MiB at the peak and kept between the forward
and the backward pass for ``memory``. Memory is measured of one way alone, in a process of its own.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.tokens.fused import fused_sum
from lightning_kd.losses.tokens.heads import Aim, Head

STUDENT, TEACHER, VOCABULARY = 512, 1024, 32_000
AIMS = {"forward_kl": Aim(), "reverse_kl": Aim("reverse_kl"), "jsd": Aim("jsd", beta=0.5)}


class Shapes:
    """Hidden states of both networks and their heads."""

    def __init__(self, tokens: int) -> None:
        torch.manual_seed(0)
        self.student, self.teacher = torch.randn(tokens, STUDENT).requires_grad_(), torch.randn(tokens, TEACHER)
        self.heads = nn.Linear(STUDENT, VOCABULARY, bias=False), nn.Linear(TEACHER, VOCABULARY, bias=False)

    def products(self, chunk: int) -> None:
        """The four products of a step, which no way can do without."""
        weight, other = (head.weight for head in self.heads)
        of_hidden, of_weight = torch.empty_like(self.student), torch.zeros_like(weight)
        with torch.no_grad():
            for start in range(0, len(self.student), chunk):
                rows = slice(start, start + chunk)
                output, _ = self.student[rows] @ weight.T, self.teacher[rows] @ other.T
                torch.mm(output, weight, out=of_hidden[rows])
                of_weight.addmm_(output.T, self.student[rows])

    def fused(self, name: str, chunk: int | None = None, memory: str = "save", counts: Tensor | None = None) -> Tensor:
        """The loss with both heads inside."""
        heads = Head(self.heads[0]), Head(self.heads[1])
        return fused_sum(self.student, self.teacher, heads, AIMS[name], counts=counts, memory=memory, chunk=chunk)[0]

    def whole(self, name: str) -> Tensor:
        """The loss of whole logits, written with care."""
        with torch.no_grad():
            log_p = F.log_softmax(self.heads[1](self.teacher), -1)
        log_q = F.log_softmax(self.heads[0](self.student), -1)
        if name == "forward_kl":
            return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        if name == "reverse_kl":
            return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
        mixture = torch.logaddexp(log_p, log_q) - math.log(2.0)
        return sum(F.kl_div(mixture, one, reduction="sum", log_target=True) for one in (log_p, log_q)) / 2

    def backward(self, loss: Tensor) -> None:
        (loss / len(self.student)).backward()
        self.student.grad = self.heads[0].weight.grad = None


def seconds(tokens: int, chunk: int, rounds: int = 3) -> dict[str, float]:
    """The best of some rounds in turn, so that what else the machine does hits all alike."""
    shapes = Shapes(tokens)
    three_quarters = torch.arange(tokens) % 4 != 0
    ways: dict[str, Callable[[], None]] = {"products": lambda: shapes.products(chunk)}
    for name in AIMS:
        ways[f"fused {name}"] = lambda name=name: shapes.backward(shapes.fused(name, chunk))
        ways[f"whole {name}"] = lambda name=name: shapes.backward(shapes.whole(name))
    ways["fused jsd, 25 % masked"] = lambda: shapes.backward(shapes.fused("jsd", chunk, counts=three_quarters))
    # of one thread the seconds of the processor, which others do not lengthen; several wait for one another
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(ways, math.inf)
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            way()
            best[name] = min(best[name], clock() - start)
    return best


def _kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def mebibytes(way: str, name: str, tokens: int) -> tuple[float, float]:
    """The growth of the peak over the inputs, and what is kept from the forward to the backward pass."""
    shapes = Shapes(tokens)
    memory = "recompute" if way == "recompute" else "save"
    shapes.heads[0].weight.requires_grad_(way != "frozen")
    few = Shapes(2)
    (few.whole(name) if way == "whole" else few.fused(name, memory=memory)).backward()  # what is set up but once
    del few
    Path("/proc/self/clear_refs").write_text("5")
    before, held = _kib("VmHWM"), _kib("VmRSS")
    loss = shapes.whole(name) if way == "whole" else shapes.fused(name, memory=memory)
    kept = _kib("VmRSS") - held
    (loss / tokens).backward()
    return (_kib("VmHWM") - before) / 1024, kept / 1024


if __name__ == "__main__":
    what, threads, *rest = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if what == "time":
        print(json.dumps(seconds(*map(int, rest))))
    else:
        print(json.dumps(mebibytes(rest[0], rest[1], int(rest[2]))))
