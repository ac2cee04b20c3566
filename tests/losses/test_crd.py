"""Contrastive representation distillation: the authors' numbers, the banks' life, and what a batch may hold."""

import json

import numpy as np
import pytest
import torch

from lightning_kd.losses import CRDLoss
from lightning_kd.losses import crd as family
from tests.losses.golden import FLOAT32_TOLERANCE, FOLDER, GRADIENT_TOLERANCE, LOSS_TOLERANCE

CASES = json.loads((FOLDER / "manifest.json").read_text())["losses"]["crd"]["cases"]
BANKS = ("student_bank", "teacher_bank")


def built(rows=12, classes=3, student=4, teacher=6, seed=0, **options):
    torch.manual_seed(seed)
    loss = CRDLoss("a", "b", **{"dim": 5, "negatives": 7, **options})
    loss.set_dataset(rows, None if classes is None else torch.arange(rows) % classes)
    loss.build({"a": (2, student)}, {"b": (2, teacher)})
    return loss


def same(ours, theirs, tolerance):
    error = (ours.detach().double() - theirs.double()).abs().max().item()
    assert error <= tolerance * theirs.abs().max().item(), error


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["product", "rows"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_two_steps_equal_the_authors_code(case, dtype, way, monkeypatch):
    if case["dtype"] == "float32" and dtype == torch.float64:
        dtype = torch.float32  # their numbers have no more digits
    monkeypatch.setattr(family, "PRODUCT_RATIO", 16 if way == "product" else 0)
    with np.load(FOLDER / "crd.npz") as stored:
        arrays = {k.split("/")[1]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith(case["id"])}
    hyper = case["hyper"]
    exact = dtype == torch.float64
    loss_tolerance = LOSS_TOLERANCE if exact else FLOAT32_TOLERANCE
    tolerance = GRADIENT_TOLERANCE if exact else FLOAT32_TOLERANCE
    loss = built(
        hyper["n"],
        None,
        hyper["s"],
        hyper["t"],
        dim=hyper["d"],
        negatives_from="any",
        temperature=hyper["nce_t_as_stored"],
        momentum=hyper["nce_m"],
    ).to(dtype)
    with torch.no_grad():
        for ours, theirs in (("student", "s"), ("teacher", "t")):
            for name in ("weight", "bias"):
                loss.get_parameter(f"{ours}_embedding.{name}").copy_(arrays[f"param.embed_{theirs}.linear.{name}"])
        loss.student_bank.copy_(arrays["param.contrast.memory_v1"])
        loss.teacher_bank.copy_(arrays["param.contrast.memory_v2"])
    for step in ("step1", "step2"):
        loss.zero_grad()
        student = arrays[f"{step}.s0"].to(dtype).requires_grad_()
        index = arrays[f"{step}.idx"]
        value = loss(
            student, arrays[f"{step}.t0"].to(dtype), index=index, contrast_index=arrays[f"{step}.contrast_idx"]
        )
        value.backward()
        same(value, arrays[f"{step}.loss"], loss_tolerance)
        same(student.grad, arrays[f"{step}.grad_s0"], tolerance)
        for side, embedding in (("s", loss.student_embedding), ("t", loss.teacher_embedding)):
            for name, parameter in embedding.named_parameters():
                same(parameter.grad, arrays[f"{step}.grad_param.embed_{side}.linear.{name}"], tolerance)
        for i, bank in enumerate((loss.student_bank, loss.teacher_bank)):
            same(bank[index], arrays[f"{step}.memory_v{i + 1}_rows"], tolerance)
            assert bank.double().sum().item() == pytest.approx(arrays[f"{step}.memory_v{i + 1}_sum"].item(), abs=1e-4)
            same(loss.log_normalizers[i].exp(), arrays[f"{step}.Z_v{i + 1}"], tolerance)
