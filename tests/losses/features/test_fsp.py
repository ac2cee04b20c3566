"""Flow: the authors' numbers, and that resolution does not matter."""

import pytest
import torch

from lightning_kd.functional import fsp_loss, fsp_matrix
from lightning_kd.losses import FSPLoss
from lightning_kd.losses.features import fsp
from lightning_kd.losses.stage import Stage
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("fsp", ""), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: sum(fsp_loss(*s[i : i + 2], *t[i : i + 2]) for i in range(len(s) - 1)))


def test_the_matrix_does_not_depend_on_the_resolution() -> None:
    bottom, top = random(2, 3, 4, 5, seed=1), random(2, 4, 4, 5, seed=2)
    finer = [torch.repeat_interleave(torch.repeat_interleave(m, 2, dim=2), 3, dim=3) for m in (bottom, top)]
    torch.testing.assert_close(fsp_matrix(*finer), fsp_matrix(bottom, top))


def test_unequal_channels_are_refused_with_the_remedy() -> None:
    maps = [random(2, channels, 3, 3, seed=channels) for channels in (2, 3, 2, 4)]
    with pytest.raises(ValueError, match=r"student \(2, 2, 3, 3\) and \(2, 3, 3, 3\), teacher .* with a projector"):
        fsp_loss(*maps)


@pytest.mark.parametrize("shapes", [{"a": (2, 3, 4, 4)}, {"a": (2, 3, 4, 4), "b": (2, 3)}])
def test_fewer_than_two_maps_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="at least two layers of each network that return maps"):
        FSPLoss(list(shapes), list(shapes)).build(shapes, shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e4])
def test_extreme_maps_are_finite(size: float, dtype: torch.dtype) -> None:
    maps = [(size * random(4, 3, 2, 2, seed=seed)).to(dtype).requires_grad_(seed < 2) for seed in range(4)]
    loss = fsp_loss(*maps)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in maps[:2])


def test_the_published_method_has_two_stages() -> None:
    assert FSPLoss().stage == Stage(None, "epoch", then_stops=True)
    assert FSPLoss(stage_length=30, stage_unit="step").stage == Stage(30, "step", then_stops=True)
    assert FSPLoss(stage_length=0).stage is None
    with pytest.raises(ValueError, match="length >= 0"):
        FSPLoss(stage_length=-1)


@pytest.mark.parametrize("offset", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("small", [(6, 5), (3, 2)])
def test_float32_is_exact_for_a_tight_cluster_far_from_zero(offset: float, small: tuple[int, int]) -> None:
    sizes = [(4, 8, 6, 5), (4, 7, *small), (4, 8, 6, 5), (4, 7, *small)]
    check_float32(fsp_loss, [tight(*size, seed=seed, offset=offset) for seed, size in enumerate(sizes)], learning=2)


def test_both_networks_at_once_give_the_bits_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [random(4, 3, 6, 5, seed=seed).float() for seed in range(4)]
    at_once = fsp_loss(*maps)
    monkeypatch.setattr(fsp, "_SMALL_MAPS", 0)
    assert torch.equal(fsp_loss(*maps), at_once)
