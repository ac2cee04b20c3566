"""Overhauled feature distillation: the authors' numbers, and where the margins come from."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.functional import ofd_loss
from lightning_kd.losses import OFDLoss
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("ofd_feat"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, rest: ofd_loss(s[0], t[0], rest["margin"]))


def _pooled(features: Tensor, rows: int, columns: int) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(features, (rows, columns))


@pytest.mark.parametrize(("student_size", "teacher_size"), [((5, 3), (5, 3)), ((6, 3), (3, 5)), ((1, 1), (2, 2))])
def test_it_equals_a_loop_over_all_responses(student_size: tuple[int, int], teacher_size: tuple[int, int]) -> None:
    student, teacher = random(3, 4, *student_size, seed=1), random(3, 4, *teacher_size, seed=2)
    margin = -random(4, seed=3).abs()
    size = [min(pair) for pair in zip(student_size, teacher_size, strict=True)]
    expected = 0.0
    for one, other in zip(_pooled(student, *size), _pooled(teacher, *size), strict=True):
        for channel in range(4):
            m = margin[channel].item()
            for s, t in zip(one[channel].flatten().tolist(), other[channel].flatten().tolist(), strict=True):
                if t > 0:
                    expected += (s - t) ** 2
                elif t > m:
                    expected += (s - t) ** 2 if s > t else 0.0
                else:
                    expected += (s - m) ** 2 if s > m else 0.0
    torch.testing.assert_close(ofd_loss(student, teacher, margin).item(), expected / 3)


def test_a_student_below_a_silent_teacher_has_nothing_to_learn() -> None:
    teacher = -random(2, 3, 4, 4, seed=1).abs() - 0.5
    margin = torch.full((3,), -0.4, dtype=torch.float64)
    student = (margin.reshape(1, -1, 1, 1) - random(2, 3, 4, 4, seed=2).abs()).requires_grad_()
    value = ofd_loss(student, teacher, margin)
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    student, teacher = (tight(4, 8, 5, 3, seed=seed) for seed in (1, 2))
    check_float32(lambda s, t: ofd_loss(s, t, torch.full((8,), -1.0)), [student, teacher])


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 2, 3, 3, requires_grad=True)
    value = ofd_loss(student, torch.zeros(0, 2, 3, 3), torch.zeros(2))
    value.backward()
    assert value.item() == 0.0


def _built(layer: nn.Module, width: int = 3) -> OFDLoss:
    loss = OFDLoss("a", "b")
    loss.see_layers({"a": nn.Identity()}, {"b": layer, "other": nn.BatchNorm2d(7)})
    loss.build({"a": (2, 2, 4, 4)}, {"b": (2, width, 4, 4)})
    return loss


def _norm(scale: list[float], offset: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(scale))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(scale))
        norm.bias.copy_(torch.tensor(offset))
    return norm


@pytest.mark.parametrize(
    "wrap", [lambda norm: norm, lambda norm: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Sequential(norm))]
)
def test_a_batch_normalisation_tells_the_margin(wrap) -> None:
    loss = _built(wrap(_norm([1.0, -2.0, 0.5], [0.0, 1.0, -1.0])))
    # mean of a normal distribution below 0, by the trapezoidal rule
    for margin, (mean, deviation) in zip(loss.margin, [(0.0, 1.0), (1.0, 2.0), (-1.0, 0.5)], strict=True):
        x = torch.linspace(-30.0, 0.0, 300_001, dtype=torch.float64)
        density = torch.exp(-(((x - mean) / deviation) ** 2) / 2)
        expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
        assert margin.item() == pytest.approx(expected.item(), rel=1e-6)
    before = loss.margin.clone()
    loss(random(2, 2, 4, 4, seed=1).float(), random(2, 3, 4, 4, seed=2).float())
    assert torch.equal(loss.margin, before)
    assert not loss.count.any()


def test_rare_negative_responses_have_a_margin_of_three_deviations() -> None:
    loss = _built(_norm([1.0, 0.0, 0.0], [4.0, -2.0, 2.0]))
    assert loss.margin.tolist() == [-3.0, -2.0, 0.0]


def test_a_norm_without_scale_and_offset_is_a_standard_normal_distribution() -> None:
    loss = _built(nn.BatchNorm2d(3, affine=False))
    assert loss.margin.tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 3)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 1), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), nn.ModuleList()])
def test_any_other_layer_shows_its_margin_in_training(layer: nn.Module) -> None:
    loss = _built(layer).double()
    batches = [random(2, 3, 4, 4, seed=seed) for seed in range(5)]
    student = random(2, 2, 4, 4, seed=9)
    for batch in batches:
        loss(student, batch)
    seen = torch.cat(batches).transpose(0, 1)
    expected = torch.stack([channel[channel < 0].mean() for channel in seen])
    torch.testing.assert_close(loss.margin, expected)
    loss.eval()
    loss(student, 10 * batches[0])
    torch.testing.assert_close(loss.margin, expected)


def test_one_layer_of_each_kind() -> None:
    loss = OFDLoss(["a", "b"], ["c", "d"])
    loss.see_layers({}, {"c": nn.Conv2d(1, 2, 1), "d": _norm([1.0] * 3, [0.0] * 3)})
    loss.build({"a": (2, 2, 4, 4), "b": (2, 2, 2, 2)}, {"c": (2, 2, 4, 4), "d": (2, 3, 2, 2)})
    maps = [random(2, 2, 4, 4, seed=1).float(), random(2, 2, 2, 2, seed=2).float()]
    teachers = [random(2, 2, 4, 4, seed=3).float(), random(2, 3, 2, 2, seed=4).float()]
    loss(maps, teachers)
    first = teachers[0].transpose(0, 1)
    expected = [*(channel[channel < 0].mean().item() for channel in first), *[-math.sqrt(2 / math.pi)] * 3]
    assert loss.margin.tolist() == pytest.approx(expected)


def test_a_channel_without_negative_responses_has_the_margin_zero() -> None:
    loss = _built(nn.Identity()).double()
    loss(random(2, 2, 4, 4, seed=1), random(2, 3, 4, 4, seed=2).abs())
    assert not loss.margin.any()


def test_a_checkpoint_holds_the_margins() -> None:
    loss = _built(nn.Identity())
    student, teacher = random(2, 2, 4, 4, seed=1).float(), random(2, 3, 4, 4, seed=2).float()
    loss(student, teacher)
    again = _built(nn.Identity())
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    for other in (loss, again):
        other(student, 2 * teacher)
    assert torch.equal(loss.margin, again.margin)


def test_the_margins_know_nothing_of_the_layers_after_build() -> None:
    loss = _built(nn.BatchNorm2d(3))
    assert not [module for module in loss.modules() if module not in {loss, *loss.projectors.modules()}]


def test_the_connector_starts_as_in_the_published_code() -> None:
    torch.manual_seed(0)
    loss = OFDLoss("a", "b")
    loss.build({"a": (2, 300, 4, 4)}, {"b": (2, 200, 4, 4)})
    weight = loss.projectors[0].conv.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert loss.projectors[0].conv.bias is None


def test_all_processes_show_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, which has seen -8 ten times in each channel, takes part in every sum."""
    other = iter([torch.full((3,), -80.0, dtype=torch.float64), torch.full((3,), 10)])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(next(other)))
    loss = _built(nn.Identity()).double()
    loss(random(2, 2, 4, 4, seed=1), torch.full((2, 3, 3, 5), -1.0, dtype=torch.float64))
    assert loss.margin.tolist() == pytest.approx([(30 * -1.0 + 10 * -8.0) / 40] * 3)
    assert loss.count.tolist() == [40] * 3
