"""Numbers that the authors' own code produced: ``tests/golden/NAME.npz``, described in ``manifest.json``; only read.

Keys of the arrays are ``<case>/<array><variant>``: ``s*`` student inputs, ``t*`` teacher inputs, ``param.*`` the state
of the loss's own modules, ``loss``, ``grad_s*``, ``grad_param.*`` and ``buffer_after.*`` (state after one call).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent.parent / "golden"
TOKENS = FOLDER / "tokens"
LOSS_TOLERANCE, GRADIENT_TOLERANCE, FLOAT32_TOLERANCE = 1e-10, 1e-8, 1e-5


@dataclass(frozen=True)
class Golden:
    """One variant of one case: its arrays with the case and the variant taken off their names."""

    name: str
    case: str
    suffix: str
    hyper: dict[str, float]
    arrays: dict[str, Tensor]
    float64_only: bool = False
    """Whether no formula meets the record in float32."""

    def __str__(self) -> str:
        return f"{self.name}-{self.case}{self.suffix}"


def golden(name: str, *suffixes: str, folder: Path = FOLDER) -> list[Golden]:
    """Read the named variants of every case, all if none is named; a variant that is nowhere is an error.

    What other implementations than the main one computed on the same inputs is only read by name.
    """
    found = [g for g in _read(folder, name, crossed=bool(suffixes)) if not suffixes or g.suffix in suffixes]
    missing = set(suffixes) - {g.suffix for g in found}
    if missing or not found:
        raise LookupError(f"{name}: no golden variant {sorted(missing)}")
    return found


def check_golden(
    record: Golden, formula: Callable[[list[Tensor], list[Tensor], dict[str, Tensor]], Tensor], *modules: nn.Module
) -> None:
    """Compare value and gradients with the record, in float64 and float32.

    ``formula`` gets the student inputs, the teacher inputs and the remaining arrays. The parameters of the modules
    are compared as ``grad_param.<anything>.<name>``: every recorded one must be met.
    """
    for dtype in (torch.float64,) if record.float64_only else (torch.float64, torch.float32):
        students = [a.clone().to(dtype).requires_grad_() for a in _numbered(record, "s")]
        teachers = [a.to(dtype) for a in _numbered(record, "t")]
        for module in modules:
            module.to(dtype).zero_grad()
        loss = formula(students, teachers, record.arrays)
        loss.backward()
        exact = dtype == torch.float64
        _close(loss, record.arrays["loss"], LOSS_TOLERANCE if exact else FLOAT32_TOLERANCE, "loss")
        tolerance = GRADIENT_TOLERANCE if exact else FLOAT32_TOLERANCE
        recorded = [(i, student) for i, student in enumerate(students) if f"grad_s{i}" in record.arrays]
        assert recorded or not students
        for i, student in recorded:
            _close(student.grad, record.arrays[f"grad_s{i}"], tolerance, f"grad_s{i}")
        largest = max(a.abs().max().item() for k, a in record.arrays.items() if k.startswith("grad_"))
        own = {n: p.grad for module in modules for n, p in module.named_parameters()}
        for key in (k for k in record.arrays if k.startswith("grad_param.")):
            name = max((n for n in own if key.endswith("." + n)), key=len, default=None)
            assert name is not None, f"{record}: no parameter for {key}, only {sorted(own)}"
            _close(own[name], record.arrays[key], tolerance, key, floor=largest)


def _numbered(record: Golden, letter: str) -> list[Tensor]:
    return [a for k, a in sorted(record.arrays.items()) if k[0] == letter and k[1:].isdigit()]


def _close(ours: Tensor | None, theirs: Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    """Compare by the largest error over the largest number; a parameter whose true gradient is 0 needs a floor."""
    if ours is None and what.startswith("grad_s"):  # an input that has no part in this variant
        assert not theirs.any(), f"{what}: no gradient"
        return
    assert ours is not None, f"{what}: no gradient"
    assert ours.shape == theirs.shape, what
    error = (ours.detach().double() - theirs).abs().max().item()
    scale = max(theirs.abs().max().item(), floor)
    assert error <= tolerance * scale, f"{what}: off by {error:.3g}, expected at most {tolerance:.1g} of {scale:.3g}"


def _read(folder: Path, name: str, crossed: bool) -> Iterator[Golden]:
    entry = json.loads((folder / "manifest.json").read_text())["losses"][name]
    with np.load(folder / entry["file"]) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    for case in entry["cases"]:
        arrays_of_case = {k.split("/", 1)[1]: a for k, a in arrays.items() if k.startswith(case["id"] + "/")}
        others = [cross["saved_suffix"] for cross in case.get("cross", ()) if "saved_suffix" in cross]
        saved = [{"suffix": s, "hyper": {}, "outputs": [k for k in arrays_of_case if k.endswith(s)]} for s in others]
        outputs = {o for variant in [*case["variants"], *saved] for o in variant["outputs"]}
        for variant in [*case["variants"], *(saved if crossed else [])]:
            suffix = variant["suffix"]
            own = {o.removesuffix(suffix): arrays_of_case[o] for o in variant["outputs"]}
            inputs = {k: a for k, a in arrays_of_case.items() if k not in outputs}
            hyper = {**case["hyper"], **variant["hyper"]}
            yield Golden(name, case["id"], suffix, hyper, {**inputs, **own}, variant.get("float64_only", False))
