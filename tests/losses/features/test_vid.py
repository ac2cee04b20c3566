"""Variational information: the authors' numbers, the likelihood, and where the variance is best."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_kd.functional import vid_loss
from lightning_kd.losses import VIDLoss
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("vid"), ids=str)
def test_it_equals_repdistillers_code(record: Golden) -> None:
    arrays = record.arrays
    loss = VIDLoss("a", "b")
    loss.build({"a": tuple(arrays["s0"].shape)}, {"b": tuple(arrays["t0"].shape)})
    loss.double()
    if record.case == "c0":  # as RepDistiller starts: that code computes it in float32
        torch.testing.assert_close(loss.log_scales[0].detach(), arrays["param.log_scale"], rtol=1e-6, atol=0.0)
    loss.regressors[0].load_state_dict(
        {k.removeprefix("param.regressor."): v for k, v in arrays.items() if k.startswith("param.regressor.")}
    )
    loss.log_scales[0] = nn.Parameter(arrays["param.log_scale"].clone())
    own = nn.Module()
    own.regressor, own.log_scale = loss.regressors[0], loss.log_scales[0]
    check_golden(record, lambda s, t, _: loss(s[0], t[0]), own)


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 5, 2, 7)], ids=str)
def test_it_is_the_likelihood_element_by_element(shape: tuple[int, ...]) -> None:
    prediction, target, log_scale = random(*shape, seed=1), random(*shape, seed=2), random(5, seed=3)
    channel = 2 if len(shape) == 3 else 1
    total = 0.0
    for where in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        variance = torch.tensor(math.log1p(math.exp(log_scale[where[channel]])) + 1e-3).double()
        normal = torch.distributions.Normal(prediction[tuple(where)], variance.sqrt())
        total -= normal.log_prob(target[tuple(where)]).item() + 0.5 * math.log(2 * math.pi)
    expected = total / target.numel()
    assert vid_loss(prediction, target, log_scale, eps=1e-3).item() == pytest.approx(expected, rel=1e-7)


def test_the_best_variance_is_the_mean_squared_residual() -> None:
    prediction, target = (
        random(6, 3, 4, 5, seed=1),
        random(6, 3, 4, 5, seed=2) * torch.tensor([1.0, 3.0, 0.2])[:, None, None],
    )
    residual = (prediction - target).square().mean((0, 2, 3))
    log_scale = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = vid_loss(prediction, target, log_scale)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    found = log_scale.detach().exp().log1p() + 1e-5
    torch.testing.assert_close(found, residual, rtol=1e-4, atol=0.0)
    at_best = (residual - 1e-5).expm1().log()
    assert vid_loss(prediction, target, at_best).item() == pytest.approx((1 + residual.log().mean().item()) / 2)


def test_the_variances_are_trained_and_saved() -> None:
    loss = VIDLoss(["a", "b"], ["c", "d"])
    loss.build({"a": (2, 3), "b": (2, 4, 3, 3)}, {"c": (2, 5), "d": (2, 6, 3, 3)})
    names = dict(loss.named_parameters())
    assert {"log_scales.0", "log_scales.1"} <= names.keys()
    assert {"log_scales.0", "log_scales.1"} <= loss.state_dict().keys()
    assert [names[f"log_scales.{i}"].shape for i in (0, 1)] == [(5,), (6,)]
    before = copy.deepcopy(loss)
    loss([torch.ones(2, 3), torch.ones(2, 4, 3, 3)], [torch.ones(2, 5), torch.ones(2, 6, 3, 3)]).backward()
    torch.optim.SGD(loss.parameters(), lr=0.1).step()
    for now, then in zip(loss.parameters(), before.parameters(), strict=True):
        assert not torch.equal(now, then)


@pytest.mark.parametrize("variance", [2e-5, 0.3, 5.0, 1e4])
def test_it_starts_at_the_initial_variance(variance: float) -> None:
    loss = VIDLoss("a", "b", initial_variance=variance)
    loss.build({"a": (2, 3)}, {"b": (2, 4)})
    started = nn.functional.softplus(loss.log_scales[0]) + 1e-5
    torch.testing.assert_close(started, torch.full((4,), variance), rtol=1e-4, atol=0.0)


def test_a_large_scale_does_not_overflow() -> None:
    log_scale = torch.tensor([100.0, -1e4], requires_grad=True)
    loss = vid_loss(torch.zeros(1, 2), torch.ones(1, 2), log_scale)
    loss.backward()
    # (1 / 100 + log 100 + 1 / 1e-5 + log 1e-5) / 4
    assert loss.item() == pytest.approx((0.01 + math.log(100) + 1e5 + math.log(1e-5)) / 4, rel=1e-5)
    assert log_scale.grad.isfinite().all()


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    prediction, target = (5 + 1e-3 * random(4, 8, 6, 5, seed=seed) for seed in (1, 2))
    grads = []
    for dtype in (torch.float64, torch.float32):
        leaves = [
            prediction.float().to(dtype).requires_grad_(),
            torch.full((8,), -13.0, dtype=dtype, requires_grad=True),
        ]
        loss = vid_loss(leaves[0], target.float().to(dtype), leaves[1])
        loss.backward()
        grads.append([x.double() for x in (loss.detach(), leaves[0].grad, leaves[1].grad)])
    for exact, single in zip(*grads, strict=True):
        assert (single - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_an_empty_batch_is_zero() -> None:
    prediction = torch.zeros(0, 3, requires_grad=True)
    loss = vid_loss(prediction, torch.zeros(0, 3), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0.0}, "expected eps > 0"),
        ({"initial_variance": 1e-6}, "expected initial_variance > eps"),
        ({"hidden_channels": 0}, "expected a whole number hidden_channels >= 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VIDLoss(**options)
