"""The same ratios on a GPU: losses against a transcription of their formula, and a step against a loop by hand.

    python -m pytest tests/benchmarks/test_on_gpu.py

Times are those of CUDA events around many passes, so they hold the launches that a step cannot hide. Memory is the
growth of torch's own peak.
"""

import copy
import itertools
import statistics
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.data.cifar_models import resnet8, resnet20, resnet56
from lightning_kd.losses import HintLoss, KDLoss
from tests import support
from tests.benchmarks.by_hand import TEMPERATURES, recorded, whole_loss
from tests.benchmarks.test_speed import ROWS

pytestmark = pytest.mark.gpu
LAYERS, BATCH, STEPS = ("stage2", "stage3"), 256, 100


def passes(function, inputs, count):
    """Return the milliseconds of one forward and backward pass, and the MiB that it takes at most."""
    leaves = [x.clone().requires_grad_(i < len(inputs) // 2) for i, x in enumerate(inputs)]
    function(*leaves).backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function(*leaves).backward()
    mebibytes = (torch.cuda.max_memory_allocated() - before) / 2**20
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        function(*leaves).backward()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / count, mebibytes


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_loss_beside_its_transcription(row, tell):
    inputs = [torch.randn(s, generator=torch.Generator().manual_seed(i)).cuda() for i, s in enumerate(row.shapes)]
    found = {row.ours: [], row.written: []}
    with torch.device("cuda"):  # where a transcription makes its constants
        for _ in range(3):
            for function, own in found.items():
                own.append(passes(function, inputs, 10))
    (ours, light), (written, heavy) = (min(own) for own in found.values())
    tell(
        f"{row}: {ours:.2f} ms, {light:.1f} MiB; as written {written:.2f} ms, {heavy:.1f} MiB; "
        f"{written / ours:.1f}x faster, {heavy / max(light, 0.1):.1f}x lighter"
    )


def by_hand(student, teacher, batches, projectors, precision):
    features = recorded(student, teacher, LAYERS)
    for part in (student, teacher, projectors):
        part.cuda()
    optimizer = torch.optim.SGD([*student.parameters(), *projectors.parameters()], lr=1e-4)
    times = []
    for batch in batches:
        torch.cuda.synchronize()
        times.append(time.perf_counter())
        batch = [tensor.cuda() for tensor in batch]
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = whole_loss(student, teacher, projectors, features, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return times


def in_trainer(student, teacher, batches, precision):
    losses = [*(KDLoss(t) for t in TEMPERATURES), *(HintLoss(name, name) for name in LAYERS)]
    options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": lambda p: torch.optim.SGD(p, lr=1e-4)}
    module = DistillationModule(student, teacher, losses, **options)
    times = []

    def mark(*_):
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    module.on_train_batch_start = mark
    made = support.trainer(max_epochs=1, log_every_n_steps=50, accelerator="gpu", devices=1, precision=precision)
    made.fit(module, DataLoader(batches, batch_size=None))
    return times


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "pair", [(resnet8, resnet20), (resnet20, resnet56)], ids=lambda p: "-".join(m.__name__ for m in p)
)
@pytest.mark.filterwarnings(
    "ignore:Found .* in eval mode:UserWarning", "ignore:You defined a .validation_step.:UserWarning"
)
def test_a_step_beside_a_loop_by_hand(pair, precision, tell):
    student, teacher = (make(10) for make in pair)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    batches = [(x, torch.randint(0, 10, (BATCH,), generator=generator))] * STEPS
    projectors = nn.ModuleList([nn.Conv2d(width, width, 1) for width in (32, 64)])
    best = {"by hand": float("inf"), "module": float("inf")}
    for _ in range(3):
        networks = copy.deepcopy((student, teacher, projectors))
        runs = {
            "by hand": by_hand(*networks[:2], batches, networks[2], precision),
            "module": in_trainer(*copy.deepcopy((student, teacher)), batches, precision),
        }
        for name, times in runs.items():
            gaps = [after - before for before, after in itertools.pairwise(times)]
            best[name] = min(best[name], statistics.median(gaps[20:]))
    names = " from ".join(make.__name__ for make in pair)
    line = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in best.items())
    tell(f"{names}, batch {BATCH}, {precision}: {line}; ratio {best['module'] / best['by hand']:.3f}")
