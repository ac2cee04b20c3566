"""Contrastive representation distillation against a straight transcription: forward, backward and update of the banks.

python -m pytest tests/benchmarks/test_crd.py

Each measurement is a process of its own with one thread; its time is that of the processor, its memory the growth of
its peak.
"""

import json
import math
import resource
import statistics
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from lightning_kd.functional import crd_loss
from tests.support import processes

NEGATIVES, DIM, BATCH, TEMPERATURE = 16384, 128, 64, 0.07


def as_written(student, teacher, student_bank, teacher_bank, rows, log_normalizers):
    """Fetch every row as a vector, as the authors' code does."""
    total = 0.0
    for x, bank, log_z in ((student, teacher_bank, log_normalizers[0]), (teacher, student_bank, log_normalizers[1])):
        vectors = bank.index_select(0, rows.view(-1)).view(BATCH, NEGATIVES + 1, DIM)
        p = torch.exp(torch.bmm(vectors, x.view(BATCH, DIM, 1)) / TEMPERATURE) / log_z.exp()
        share = NEGATIVES / len(bank)
        positive = torch.log(p[:, 0] / (p[:, 0] + share + 1e-7))
        negative = torch.log(share / (p[:, 1:] + share + 1e-7))
        total = total - (positive.sum() + negative.sum()) / BATCH
    return total


def ours(student, teacher, student_bank, teacher_bank, rows, log_normalizers):
    return crd_loss(student, teacher, student_bank, teacher_bank, rows, log_normalizers=log_normalizers)


def measure(function, num_samples, rounds):
    """Print milliseconds, MiB, and the loss and size of the gradient of the first round."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bound = 1 / math.sqrt(DIM / 3)
    banks = [torch.empty(num_samples, DIM).uniform_(-bound, bound) for _ in range(2)]
    leaves = [F.normalize(torch.randn(BATCH, DIM), dim=1).requires_grad_() for _ in range(2)]
    rows = torch.randint(num_samples, (BATCH, NEGATIVES + 1))
    log_normalizers = torch.tensor([math.log(1e3 * num_samples)] * 2)
    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, first = [], []
    for _ in range(rounds):
        start = time.process_time()
        loss = function(*leaves, *banks, rows, log_normalizers)
        grads = torch.autograd.grad(loss, leaves)
        first = first or [loss.item(), grads[0].abs().sum().item()]
        with torch.no_grad():
            for bank, x in zip(banks, leaves, strict=True):
                own = rows[:, 0]
                bank.index_copy_(0, own, F.normalize(0.5 * bank[own] + 0.5 * x, dim=1))
        times.append(1e3 * (time.process_time() - start))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([statistics.median(times), grown, *first]))


def measured(name, num_samples, rounds):
    code = f"from tests.benchmarks import test_crd as b; b.measure(b.{name}, {num_samples}, {rounds})"
    (done,) = processes.run([[sys.executable, "-c", code]], limit=600)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("num_samples", "aim", "lighter"), [(50_000, 12, 25), (1_280_000, 1, 30)])
def test_it_is_as_many_times_faster_and_lighter(num_samples, aim, lighter, tell):
    fast, slow = measured("ours", num_samples, 7), measured("as_written", num_samples, 3)
    assert fast[2:] == pytest.approx(slow[2:], rel=1e-3)
    tell(
        f"CRD n={num_samples}: {fast[0]:.0f} ms, {fast[1]:.0f} MiB, as written {slow[0]:.0f} ms, {slow[1]:.0f} MiB, "
        f"{slow[0] / fast[0]:.1f}x (aim {aim}x), {slow[1] / fast[1]:.0f}x lighter (aim {lighter}x)"
    )
    assert slow[0] / fast[0] >= 0.8 * aim
    assert slow[1] / fast[1] >= 0.8 * lighter
