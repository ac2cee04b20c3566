"""Self-distillation inside one network: what it sees, its classifiers, and a step without a teacher."""

import pytest
import torch
import torch.nn.functional as F

from lightning_kd import DistillationModule
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.functional import byot_loss
from lightning_kd.losses import BYOTLoss
from lightning_kd.losses.base import LOGITS
from tests import support
from tests.losses.case import check_float32, random

TARGET = torch.tensor([2, -100, 0, 1, 1])


def _arguments():
    return [random(5, 3, seed=1), random(5, 4, seed=2), random(5, 3, seed=3), random(5, 4, seed=4), TARGET]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_equals_a_loop_over_all_samples(temperature: float) -> None:
    label, divergence, hint = [], 0.0, 0.0
    for z, f, deep, last, y in zip(*_arguments(), strict=True):
        if y >= 0:
            label.append(-(z[y].exp() / z.exp().sum()).log().item())
        p, q = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (deep, z))
        divergence += (p * (p / q).log()).sum().item() / 5
        hint += (f - last).square().sum().item() / 5
    expected = 0.6 * sum(label) / 4 + 0.4 * temperature**2 * divergence + 0.2 * hint
    value = byot_loss(*_arguments(), temperature=temperature, alpha=0.4, hint_weight=0.2)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_no_gradient_reaches_the_end_of_the_network() -> None:
    arguments = [argument.requires_grad_() if argument.is_floating_point() else argument for argument in _arguments()]
    byot_loss(*arguments).backward()
    assert [argument.grad is not None for argument in arguments] == [True, True, False, False, False]


def test_a_batch_without_labels_learns_from_itself() -> None:
    logits, features, *rest, _ = _arguments()
    value = byot_loss(logits.requires_grad_(), features, *rest, torch.full((5,), -100), alpha=0.0, hint_weight=0.0)
    value.backward()
    assert value.item() == 0.0
    assert not logits.grad.any()


def test_an_empty_batch_still_backpropagates() -> None:
    arguments = [argument[:0] for argument in _arguments()]
    arguments[0].requires_grad_()
    value = byot_loss(*arguments)
    value.backward()
    assert value.item() == 0.0


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_extreme_inputs_stay_finite(dtype: torch.dtype, scale: float) -> None:
    *floats, target = _arguments()
    arguments = [(scale * argument.sign()).to(dtype) for argument in floats]
    for leaf in arguments[:2]:
        leaf.requires_grad_()
    value = byot_loss(*arguments, target)
    value.backward()
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert all(leaf.grad.isfinite().all() for leaf in arguments[:2])


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    *tensors, target = _arguments()
    clusters = [5 + 1e-3 * tensor for tensor in tensors]
    check_float32(lambda *arguments: byot_loss(*arguments, target), clusters, learning=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "expected temperature > 0"),
        ({"alpha": 1.1}, "expected alpha in 0..1"),
        ({"alpha": -0.1}, "expected alpha in 0..1"),
        ({"hint_weight": -1.0}, "expected hint_weight >= 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=f"byot_loss: {words}"):
        byot_loss(*_arguments(), **options)
    with pytest.raises(ValueError, match=f"BYOTLoss: {words}"):
        BYOTLoss(**options)


def _built(*shapes: tuple[int, ...], classes: int = 10) -> BYOTLoss:
    names = [f"layer{i}" for i in range(len(shapes))]
    loss = BYOTLoss(names)
    loss.build({**dict(zip(names, shapes, strict=True)), LOGITS: (2, classes)}, {})
    return loss


@pytest.mark.parametrize("size", [(32, 32), (4, 4), (9, 5), (3, 16), (2, 2)])
def test_every_classifier_ends_with_the_width_of_the_last_map(size: tuple[int, int]) -> None:
    loss = _built((2, 5, *size), (2, 16, 4, 4))
    logits, features = loss.classifiers[0](torch.zeros(2, 5, *size))
    assert logits.shape == (2, 10)
    assert features.shape == (2, 16)


def test_a_network_of_one_resolution_is_told_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"at least two layers .*one resolution needs names.*BYOTLoss\(\["):
        _built((2, 16, 4, 4))


def test_a_network_without_class_scores_is_refused() -> None:
    loss = BYOTLoss(["a", "b"])
    shapes = {"a": (2, 4, 4, 4), "b": (2, 4, 2, 2)}
    for logits in ({}, {LOGITS: (2, 10, 8, 8)}):
        with pytest.raises(ValueError, match=r"expected logits \(B, K\) of the student"):
            loss.build({**shapes, **logits}, {})


def test_it_needs_no_teacher() -> None:
    loss = BYOTLoss()
    assert not loss.needs_teacher
    assert loss.needs_layers


def test_it_trains_the_early_layers_without_a_teacher() -> None:
    student = DigitsConvNet(width=4)
    module = DistillationModule(student, None, [BYOTLoss()], task_loss=F.cross_entropy)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    support.trainer(max_steps=2, limit_val_batches=0).fit(module, datamodule=DigitsDataModule())
    assert all(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    (loss,) = module.losses.values()
    assert len(loss.student_layers) >= 2
    assert len(loss.classifiers) == len(loss.student_layers) - 1
