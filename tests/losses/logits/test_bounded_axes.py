"""The bounded form takes the numbers of one sample at one position together, with a mask and without one."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.functional import regression_kd_loss
from lightning_kd.losses import HybridLoss, RegressionKDLoss
from lightning_kd.losses.base import StepTensors
from tests import support

B = 3


class Tokens(nn.Module):
    """Numbers (B, T, C) of a linear layer."""

    def __init__(self, count):
        super().__init__()
        self.layer = nn.Linear(4, count)

    def forward(self, x, attention_mask=None):
        return self.layer(x)


class Frames(nn.Module):
    """Numbers (B, C, T) of a convolution."""

    def __init__(self, count):
        super().__init__()
        self.layer = nn.Conv1d(4, count, 1)

    def forward(self, x, attention_mask=None):
        return self.layer(x.mT)


class Hidden(nn.Module):
    """Numbers (B, T, C) of no layer that tells."""

    def __init__(self, count):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, count))

    def forward(self, x, attention_mask=None):
        return torch.einsum("btd,dc->btc", x, self.table)


class Planes(nn.Module):
    """Maps (B, C, H, W), or (B, H, W, C) of a linear layer."""

    def __init__(self, count, last):
        super().__init__()
        self.layer = nn.Linear(4, count) if last else nn.Conv2d(4, count, 1)

    def forward(self, x, attention_mask=None):
        return self.layer(x)


def by_hand(student, teacher, target, axis):
    """Squared errors of each sample at each position, one by one."""
    student, teacher, target = (x.movedim(axis, -1).flatten(0, -2).tolist() for x in (student, teacher, target))
    total = 0.0
    for s, t, y in zip(student, teacher, target, strict=True):
        own = sum((a - b) ** 2 for a, b in zip(s, y, strict=True))
        its = sum((a - b) ** 2 for a, b in zip(t, y, strict=True))
        total += own if own > its else 0.0
    return total / len(student)


def made(kind, count, **options):
    student, teacher = (support.seeded(lambda: kind(count, **options), seed) for seed in (1, 2))
    return student, teacher


def batch(shape, out, axis, mask=None):
    generator = torch.Generator().manual_seed(5)
    columns = {"x": torch.randn(shape, generator=generator), "labels": torch.randn(out, generator=generator)}
    return columns if mask is None else {**columns, "attention_mask": mask}


def logged(student, teacher, given, loss=None):
    loss = RegressionKDLoss("bounded") if loss is None else loss
    module = DistillationModule(student, teacher, [loss])
    loader = support.batches(given)
    fitted = support.fit(module, train=loader, val=loader, max_epochs=1, limit_val_batches=0)
    return float(fitted.callback_metrics["train/loss"])


def values(student, teacher, given):
    with torch.no_grad():
        return student(given["x"]), teacher(given["x"]), given["labels"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "axis"), [(Tokens, 2), (Frames, 1)])
@pytest.mark.parametrize(("size", "count"), [(5, 2), (4, 4), (2, 5)])
def test_a_mask_of_ones_says_what_none_says(kind, axis, size, count, masked):
    student, teacher = made(kind, count)
    out = (B, size, count) if axis == 2 else (B, count, size)
    given = batch((B, size, 4), out, axis, torch.ones(B, size, dtype=torch.long) if masked else None)
    expected = by_hand(*values(student, teacher, given), axis)
    other = by_hand(*values(student, teacher, given), 3 - axis)
    assert abs(expected - other) > 1e-3  # the axis matters
    assert logged(student, teacher, given) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "huber"])
@pytest.mark.parametrize("maker", [Tokens, Frames])
def test_padding_is_left_out_where_both_axes_are_as_long(maker, kind):
    student, teacher = made(maker, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    given = batch((B, 4, 4), (B, 4, 4), 2, mask)
    own, its, _ = values(student, teacher, given)
    if maker is Frames:
        own, its = own.mT, its.mT
    square, huber = nn.functional.mse_loss, nn.functional.huber_loss
    expected = (square if kind == "mse" else huber)(own[mask.bool()], its[mask.bool()])
    assert logged(student, teacher, given, RegressionKDLoss(kind)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_tokens_of_which_nothing_tells_are_refused_with_the_remedy(inside):
    student, teacher = made(Hidden, 2)
    given = batch((B, 5, 4), (B, 5, 2), 2)
    loss = HybridLoss([RegressionKDLoss("bounded")]) if inside else RegressionKDLoss("bounded")
    with pytest.raises(ValueError, match=r"Part '.*regression_kd'.*shape \(\d, 5, 2\).*layout='NLC'\), or 'NCL'"):
        logged(student, teacher, given, loss)


@pytest.mark.parametrize(("layout", "axis"), [("NLC", 2), ("NCL", 1)])
@pytest.mark.parametrize("kind", [Hidden, Tokens])
def test_the_layout_says_it(kind, layout, axis):
    student, teacher = made(kind, 2)
    given = batch((B, 5, 4), (B, 5, 2), 2)
    expected = by_hand(*values(student, teacher, given), axis)
    found = logged(student, teacher, given, RegressionKDLoss("bounded", layout=layout))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_mask_tells_where_nothing_else_does():
    student, teacher = made(Hidden, 2)
    given = batch((B, 5, 4), (B, 5, 2), 2, torch.ones(B, 5, dtype=torch.long))
    expected = by_hand(*values(student, teacher, given), 2)
    assert logged(student, teacher, given) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("last", "axis"), [(True, 3), (False, 1)])
def test_maps_have_their_numbers_where_the_layer_puts_them(last, axis):
    student, teacher = made(Planes, 2, last=last)
    given = batch((B, 3, 5, 4) if last else (B, 4, 3, 5), (B, 3, 5, 2) if last else (B, 2, 3, 5), axis)
    expected = by_hand(*values(student, teacher, given), axis)
    assert logged(student, teacher, given) == pytest.approx(expected, rel=1e-5)


def test_the_formula_takes_the_axis():
    generator = torch.Generator().manual_seed(0)
    student, teacher, target = (torch.randn(3, 4, 5, generator=generator) for _ in range(3))
    for axis in (1, 2, -1, -2):
        found = regression_kd_loss(student, teacher, target, kind="bounded", axis=axis)
        assert float(found) == pytest.approx(by_hand(student, teacher, target, axis), rel=1e-5)
    for axis in (3, -4):
        with pytest.raises(ValueError, match=rf"axis={axis} is no axis of numbers of shape \(3, 4, 5\)"):
            regression_kd_loss(student, teacher, target, kind="bounded", axis=axis)


def test_the_loss_called_by_itself_asks_for_the_layout_too():
    student, teacher, target = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(2)).unbind(0)
    with pytest.raises(ValueError, match="layout='NLC'"):
        RegressionKDLoss("bounded")(student, teacher, target)
    for layout, axis in (("NLC", 2), ("NCL", 1)):
        found = RegressionKDLoss("bounded", layout=layout)(student, teacher, target)
        assert float(found) == pytest.approx(by_hand(student, teacher, target, axis), rel=1e-5)
    assert float(RegressionKDLoss()(student, teacher)) == pytest.approx(float((student - teacher).square().mean()))


def test_a_batch_without_padding_may_come_without_the_mask():
    student, teacher, target = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1)).unbind(0)
    for axis, tokens in ((2, 4), (1, 5)):
        loss = RegressionKDLoss("bounded")
        loss.masked = True
        loss.build({"<logits>": (2, 4, 5)}, {"<logits>": (2, 4, 5)})
        loss.settle_axis((2, 4, 5), tokens)
        for mask in (None, torch.ones(2, tokens, dtype=torch.bool)):
            found = loss.evaluate(StepTensors(student, teacher, target=target, mask=mask))
            assert float(found) == pytest.approx(by_hand(student, teacher, target, axis), rel=1e-5)
            assert int(loss.counted) == 2 * tokens


@pytest.mark.parametrize(
    ("layout", "said"),
    [("NHWC", r"names 4 axes, but the outputs have the shape \(\d, 5, 2\)"), ("LNC", "expected layout")],
)
def test_a_layout_that_cannot_be_is_refused(layout, said):
    student, teacher = made(Tokens, 2)
    with pytest.raises(ValueError, match=said):
        logged(student, teacher, batch((B, 5, 4), (B, 5, 2), 2), RegressionKDLoss("bounded", layout=layout))


def test_a_loss_forgets_where_another_network_has_its_numbers():
    loss = RegressionKDLoss("bounded")
    for kind, axis in ((Tokens, 2), (Frames, 1)):
        student, teacher = made(kind, 2)
        given = batch((B, 5, 4), (B, 5, 2) if axis == 2 else (B, 2, 5), axis)
        expected = by_hand(*values(student, teacher, given), axis)
        assert logged(student, teacher, given, loss) == pytest.approx(expected, rel=1e-5)


def test_a_layout_that_the_mask_contradicts_is_refused():
    student, teacher = made(Tokens, 2)
    given = batch((B, 5, 4), (B, 5, 2), 2, torch.ones(B, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"the mask of the batch has the shape \(\d, 5\), but the student's outputs"):
        logged(student, teacher, given, RegressionKDLoss(layout="NCL"))


@pytest.mark.parametrize(("layout", "axis"), [("NLC", 2), ("NCL", 1)])
def test_a_layout_tells_which_tokens_a_mask_names_where_both_axes_are_as_long(layout, axis):
    student, teacher = made(Hidden, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    given = batch((B, 5, 4), (B, 5, 5), axis, mask)
    own, its, _ = (one.movedim(axis, -1) for one in values(student, teacher, given))
    expected = float(nn.functional.mse_loss(own[mask.bool()], its[mask.bool()]))
    with pytest.raises(ValueError, match=r"not known which axis is that of the tokens\. Say it by"):
        logged(student, teacher, given, RegressionKDLoss())
    assert logged(student, teacher, given, RegressionKDLoss(layout=layout)) == pytest.approx(expected, rel=1e-5)
