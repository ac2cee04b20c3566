"""Every loss on a GPU gives the numbers of the CPU."""

import pytest
import torch

from tests.losses.case import TOLERANCE, Case, Inputs, build
from tests.losses.cases import CASES

COMPARABLE = [case for case in CASES if case.permutation_invariant]
"""Not the losses that draw random numbers: a GPU draws others than the CPU does."""


def numbers(case: Case, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the value, then the gradients of the student's tensors and of the loss's own parameters."""
    inputs: Inputs = case.inputs()
    component = build(case.loss, case.options, inputs, dtype).to(device)
    if case.prepare is not None:
        case.prepare(component)
    here = inputs.to(dtype).map(lambda tensor: tensor.to(device), lambda tensor: tensor.to(device)).fresh()
    torch.manual_seed(3)
    value = component(*here.args, **here.extra)
    value.backward()
    leaves = [*here.learning, *(p for p in component.parameters() if p.requires_grad)]
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def check(case: Case, device: str, dtype: torch.dtype, tolerance: float) -> None:
    expected, found = numbers(case, "cpu", torch.float64), numbers(case, device, dtype)
    assert len(found) == len(expected)
    largest = max(there.abs().max().item() for there in expected)
    for here, there in zip(found, expected, strict=True):
        assert here.device.type == device
        scale = max(there.abs().max().item(), 1e-3 * largest)  # some gradients are zero but for rounding
        assert (here.cpu().double() - there).abs().max().item() <= tolerance * scale


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # torch 2.11, first in a backward pass
@pytest.mark.parametrize("case", COMPARABLE, ids=str)
def test_a_gpu_gives_the_numbers_of_the_cpu(case: Case) -> None:
    check(case, "cuda", torch.float64, 1e-9)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # torch 2.11, first in a backward pass
@pytest.mark.parametrize("case", COMPARABLE, ids=str)
def test_a_gpu_gives_them_in_float32(case: Case) -> None:
    tolerance = {**TOLERANCE, **case.tolerance}[torch.float32]
    check(case, "cuda", torch.float32, 100 * tolerance)


@pytest.mark.parametrize("case", COMPARABLE, ids=str)
def test_the_check_itself_runs_without_a_gpu(case: Case) -> None:
    check(case, "cpu", torch.float32, 100 * {**TOLERANCE, **case.tolerance}[torch.float32])
