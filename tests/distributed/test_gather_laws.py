"""Losses that compare samples, on two processes: what ``gather`` means for value and gradient of each of them."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_kd.losses import CRDLoss, DistillationLoss
from lightning_kd.losses.base import LOGITS, StepTensors
from tests.losses.case import Case, Inputs, build
from tests.losses.cases import CASES
from tests.losses.test_conformance import exported_losses
from tests.support import processes


def takes_gather(loss: type[DistillationLoss]) -> bool:
    return "gather" in inspect.signature(loss).parameters


GATHERING = [case for case in CASES if takes_gather(case.loss)]
WAYS = [(case, gather) for case in GATHERING for gather in (True, False)]


@pytest.mark.parametrize("loss", exported_losses())
def test_losses_that_compare_samples_take_gather_and_say_what_it_means(loss: type[DistillationLoss]) -> None:
    assert takes_gather(loss) == (loss.relational or loss is CRDLoss)
    if takes_gather(loss):
        assert inspect.signature(loss).parameters["gather"].default is True
        said = " ".join(str(loss.__doc__).split("gather: ")[1].split())
        assert "its gradient is that of one process with the whole batch; if not" in said or loss is CRDLoss
        assert "the gradient is the mean of the processes'." in said


def component(case: Case, gather: bool) -> tuple[DistillationLoss, Inputs]:
    inputs = case.inputs()
    built = build(case.loss, {**case.options, "gather": gather}, inputs)
    if isinstance(built, CRDLoss):  # the draws are the processes' own, so they are made to depend on the row alone
        places = torch.arange(built.negatives + 1)
        built.draw = lambda index: (index[:, None] + places) % built.num_samples  # type: ignore[method-assign]
    return built, inputs


def half(inputs: Inputs, rank: int) -> Inputs:
    rows = len(inputs.students[0]) // 2
    return inputs.rows(lambda t: t[rank * rows : (rank + 1) * rows])


def found(built: DistillationLoss, inputs: Inputs) -> dict[str, Tensor]:
    """Value and gradients of a training step."""
    inputs = inputs.fresh()
    student_layers, teacher_layers = (
        list(layers) or [LOGITS] for layers in (built.student_layers, built.teacher_layers)
    )
    student, teacher = (
        dict(zip(student_layers, inputs.students, strict=True)),
        dict(zip(teacher_layers, inputs.teachers, strict=True)),
    )
    extra = {name: inputs.extra.get(name) for name in ("target", "index")}
    value = built.evaluate(StepTensors(student.pop(LOGITS, None), teacher.pop(LOGITS, None), student, teacher, **extra))
    value.backward()  # type: ignore[no-untyped-call]
    gradients = {f"student {i}": tensor.grad for i, tensor in enumerate(inputs.students)}
    own = {name: parameter.grad for name, parameter in built.named_parameters()}
    memory = {name: buffer.clone() for name, buffer in built.named_buffers() if buffer.is_floating_point()}
    return {"value": value.detach(), **{k: v for k, v in {**gradients, **own, **memory}.items() if v is not None}}


def work(rank: int, folder: Path) -> None:
    results = []
    with processes.process_group(rank, folder / "init", limit=120):
        for case, gather in WAYS:
            built, inputs = component(case, gather)
            results.append(found(built, half(inputs, rank)))
    torch.save(results, folder / str(rank))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes.spawned(work, folder, limit=300)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


def averaged(ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What DDP makes of the processes' gradients: the mean; of a process's own samples, half."""
    return {
        name: torch.cat([one[name] for one in ranks]) / 2
        if name.startswith("student ")
        else torch.stack([one[name] for one in ranks]).mean(0)
        for name in ranks[0]
    }


@pytest.mark.parametrize("number", range(len(WAYS)), ids=[f"{case}-gather={gather}" for case, gather in WAYS])
def test_gathered_equals_one_process_and_local_equals_the_mean_of_halves(
    number: int, ranks: list[list[dict[str, Tensor]]]
) -> None:
    case, gather = WAYS[number]
    built, inputs = component(case, gather)
    both = [one[number] for one in ranks]
    if gather:
        expected = found(built, inputs)
    else:
        expected = averaged([found(copy.deepcopy(built), half(inputs, rank)) for rank in range(2)])
    mean = averaged(both)
    assert mean.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(mean[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    for name in {name for name, _ in built.named_buffers() if gather} & mean.keys():
        assert torch.equal(both[0][name], both[1][name])


@pytest.mark.parametrize("case", GATHERING, ids=str)
def test_the_two_are_different_losses(case: Case, ranks: list[list[dict[str, Tensor]]]) -> None:
    gathered, local = (averaged([one[WAYS.index((case, gather))] for one in ranks]) for gather in (True, False))
    assert any(not torch.allclose(gathered[name], local[name]) for name in gathered)
