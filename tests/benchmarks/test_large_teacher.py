"""What a large teacher costs each of two processes: whole, split by FSDP2, and never whole anywhere.

python -m pytest tests/benchmarks/test_large_teacher.py
"""

import re

import torch
from safetensors.torch import save_file

from tests.benchmarks.large_teacher import Teacher
from tests.support import processes


def measure(mode, file):
    """Mean over the two processes of the peak, and of what is held after training, in MiB."""
    freed_is_given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = processes.inherited(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", **freed_is_given_back)
    done = processes.program("benchmarks.large_teacher", mode, file, environment=environment, limit=600)
    found = re.findall(r"PEAK (\d+) AFTER (\d+)", done.stdout)
    assert len(found) == 2, done.stderr[-2000:]
    return tuple(sum(map(int, column)) / 2 for column in zip(*found, strict=True))


def test_a_split_teacher_takes_half_and_one_on_meta_is_never_whole(tmp_path, tell):
    torch.manual_seed(0)
    teacher = Teacher()
    file = tmp_path / "teacher.safetensors"
    save_file(teacher.state_dict(), file)
    size = sum(p.numel() * p.element_size() for p in teacher.parameters()) / 2**20
    del teacher
    cost = {mode: measure(mode, file) for mode in ("whole", "split", "meta")}
    tell(f"teacher of {size:.0f} MiB on two processes, MiB a process, peak and after training:")
    for mode, (peak, after) in cost.items():
        tell(f"  {mode}: {peak:.0f}, {after:.0f}")
    assert cost["split"][1] < 0.65 * cost["whole"][1]
    assert cost["meta"][0] < 0.75 * cost["whole"][0]
