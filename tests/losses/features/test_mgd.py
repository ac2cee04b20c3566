"""Masked generative distillation: the authors' numbers, and what is masked by whom."""

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.losses import MGDLoss
from lightning_kd.losses.features import mgd
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


def built(student: tuple[int, ...], teacher: tuple[int, ...], **options: object) -> MGDLoss:
    loss = MGDLoss("a", "b", **options)
    loss.build({"a": student}, {"b": teacher})
    return loss.double()


@pytest.mark.parametrize("record", golden("mgd"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    arrays = record.arrays
    masked = "channels" if record.suffix == "__channels" else "positions"
    shapes = tuple(arrays["s0"].shape), tuple(arrays["t0"].shape)
    loss = built(*shapes, mask_ratio=record.hyper["mask_ratio"], masked=masked)
    own = nn.Module()
    own.generation = loss.generators[0]
    if "param.align.weight" in arrays:
        own.align = loss.projectors[0].conv
    given = {name.removeprefix("param."): value for name, value in arrays.items() if name.startswith("param.")}
    own.load_state_dict(given)

    def value(s: list[Tensor], t: list[Tensor], _: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(record.hyper["draw_seed"])
        return loss(s[0], t[0])

    check_golden(record, value, loss.projectors, own)


def seen(loss: MGDLoss, student: Tensor) -> Tensor:
    """What the generating block is given."""
    given = []
    with loss.generators[0].register_forward_pre_hook(lambda _, args: given.append(args[0])):
        loss(student, student)
    return given[0]


def test_a_position_is_masked_in_all_of_its_channels_in_each_sample_by_itself() -> None:
    student = 1 + random(50, 3, 10, 8, seed=1).abs()
    zero = seen(built((2, 3, 10, 8), (2, 3, 10, 8), mask_ratio=0.65), student) == 0
    assert (zero == zero[:, :1]).all()
    assert not torch.equal(zero[0], zero[1])
    assert zero.double().mean() == pytest.approx(0.65, abs=0.03)  # of 4000: four deviations


def test_a_channel_is_masked_at_all_of_its_positions() -> None:
    student = 1 + random(400, 10, 2, 3, seed=1).abs()
    zero = seen(built((2, 10, 2, 3), (2, 10, 2, 3), mask_ratio=0.15, masked="channels"), student) == 0
    assert (zero == zero[:, :, :1, :1]).all()
    assert not torch.equal(zero[0], zero[1])
    assert zero.double().mean() == pytest.approx(0.15, abs=0.023)


def test_each_step_draws_anew_and_the_state_of_random_numbers_brings_it_back() -> None:
    loss, student = built((2, 3, 6, 6), (2, 3, 6, 6)), random(2, 3, 6, 6, seed=1)
    state = torch.random.get_rng_state()
    first, second = seen(loss, student), seen(loss, student)
    assert not torch.equal(first, second)
    torch.random.set_rng_state(state)
    assert torch.equal(seen(loss, student), first)


def test_processes_with_the_same_seed_mask_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, student = built((2, 1, 40, 40), (2, 1, 40, 40), mask_ratio=0.5), 1 + random(2, 1, 40, 40, seed=1).abs()
    masks = []
    for rank in range(8):
        with monkeypatch.context() as patch:
            patch.setattr(mgd, "is_distributed", lambda: True)
            patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            torch.manual_seed(7)
            masks.append((seen(loss, student) == 0).flatten())
    torch.manual_seed(7)
    assert torch.equal((seen(loss, student) == 0).flatten(), masks[0])
    for one in masks:
        assert one.double().mean() == pytest.approx(0.5, abs=0.04)
    same = [(one == other).double().mean().item() for i, one in enumerate(masks) for other in masks[:i]]
    assert max(same) < 0.95  # as all would be 1 without the shift


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_ratio": 1.5}, "expected mask_ratio from 0 to 1, got 1.5"),
        ({"mask_ratio": float("nan")}, "expected mask_ratio from 0 to 1, got nan"),
        ({"masked": "pixels"}, "expected masked 'positions' or 'channels', got 'pixels'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MGDLoss("a", "b", **options)
