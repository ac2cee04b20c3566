"""Numbers of tokens or frames: padding does not count, wherever it stands and however much there is."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import EmbeddingLoss, KDLoss, RegressionKDLoss
from lightning_kd.losses.base import StepTensors
from tests import support

LENGTHS, C = (2, 5, 3), 2


class Frames(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.embed, self.last = nn.Embedding(9, C), last

    def forward(self, ids, attention_mask=None):
        values = self.embed(ids)
        return values if self.last else values.mT


def net(seed, last):
    return support.seeded(lambda: Frames(last), seed)


def batch(side, extra):
    generator = torch.Generator().manual_seed(3)
    size = max(LENGTHS) + extra
    ids, mask = torch.zeros(len(LENGTHS), size, dtype=torch.long), torch.zeros(len(LENGTHS), size, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(size - length, size)
        ids[row, place] = torch.randint(1, 9, (length,), generator=generator)
        mask[row, place] = 1
    return {"ids": ids, "attention_mask": mask}


def by_hand(kind):
    """Sum over the tokens that are no padding, one by one."""
    given = batch("right", 0)
    student, teacher = net(1, last=True), net(2, last=True)
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for token in given["ids"][row, :length]:
            for s, t in zip(student.embed.weight[token].tolist(), teacher.embed.weight[token].tolist(), strict=True):
                d = abs(s - t)
                total += d * d if kind == "mse" else d * d / 2 if d <= 1 else d - 0.5
    return total / (sum(LENGTHS) * C)


@pytest.mark.parametrize("kind", ["mse", "huber"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("right", 6), ("left", 1)])
def test_padding_does_not_count(kind, last, side, extra):
    module = DistillationModule(net(1, last), net(2, last), [RegressionKDLoss(kind)])
    loader = support.batches(batch(side, extra))
    logged = support.fit(module, train=loader, val=loader, max_epochs=1, limit_val_batches=0).callback_metrics
    assert float(logged["train/regression_kd"]) == pytest.approx(by_hand(kind), rel=1e-5)


@pytest.mark.parametrize("last", [True, False])
def test_the_metric_and_the_loss_are_of_the_same_tokens(last):
    module = DistillationModule(net(1, last), net(2, last), [RegressionKDLoss()])
    loader = support.batches(batch("right", 4))
    found = support.trainer().validate(module, loader, verbose=False)[0]
    assert found["val/mse_to_teacher"] == pytest.approx(by_hand("mse"), rel=1e-5)


def built(loss, *shape):
    loss.masked = True
    loss.build({"<logits>": shape}, {"<logits>": shape})
    return loss


def test_the_bounded_form_takes_each_token_for_a_sample():
    student = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
    step = StepTensors(student, teacher, target=torch.zeros(1, 3, 2), mask=torch.tensor([[True, True, False]]))
    loss = built(RegressionKDLoss("bounded"), 1, 3, 2)
    # squared errors of the student 2 and 8, of the teacher 4 and 4: the first is better than the teacher
    assert float(loss.evaluate(step)) == pytest.approx(8.0 / 2)
    assert int(loss.counted) == 2


def test_a_mask_of_other_tokens_says_nothing_of_one_output_for_each_text():
    student, teacher = torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [2.0]])
    step = StepTensors(student, teacher, mask=torch.tensor([[True], [False]]))
    assert float(built(RegressionKDLoss(), 2, 1).evaluate(step)) == 2.5


class Shaped(Frames):
    """Makes outputs of other positions than its inputs, as networks of audio do."""

    def __init__(self, shape):
        super().__init__(last=True)
        self.shape = shape

    def forward(self, ids, attention_mask=None):
        return {
            "half": super().forward(ids)[:, ::2],
            "scalars": super().forward(ids)[..., 0],
            "square": super().forward(ids) @ torch.ones(C, ids.shape[1]),
        }[self.shape]


@pytest.mark.parametrize("loss", [KDLoss(), EmbeddingLoss("<output>", "<output>")])
def test_losses_that_take_a_row_of_tokens_for_one_sample_say_so(loss):
    module = DistillationModule(*(support.seeded(lambda: Shaped("scalars"), seed) for seed in (1, 2)), [loss])
    loader = support.batches(batch("right", 0))
    with pytest.warns(UserWarning, match=r"\(3, 5\).* one sample of 5 numbers, so those at padding count"):
        support.fit(module, train=loader, val=loader, max_epochs=1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("half", r"the mask of the batch has the shape \(3, 5\), but the student's outputs have \(3, 3, 2\)"),
        ("scalars", r"both have the shape \(3, 5\).*outputs of shape \(3, 5, 1\) for tokens"),
        ("square", r"outputs have \(3, 5, 5\), so it is not known which axis"),
    ],
)
def test_outputs_of_other_positions_than_the_mask_are_refused_at_set_up(shape, words):
    student, teacher = (support.seeded(lambda: Shaped(shape), seed) for seed in (1, 2))
    module = DistillationModule(student, teacher, [RegressionKDLoss()])
    loader = support.batches(batch("right", 0))
    with pytest.raises(ValueError, match=r"Part 'regression_kd': .*" + words):
        support.fit(module, train=loader, val=loader, max_epochs=1)


def test_a_batch_as_long_as_it_has_channels_keeps_its_axis():
    loss = RegressionKDLoss()
    loss.check_mask("regression_kd", (3, 5), (3, C, 5), (3, C, 5))
    built(loss, 3, C, 5)
    student = torch.tensor([[[1.0, 7.0], [2.0, 8.0]]])  # two channels of two frames; the second frame is padding
    step = StepTensors(student, torch.zeros(1, 2, 2), mask=torch.tensor([[True, False]]))
    assert float(loss.evaluate(step)) == (1 + 4) / 2
