"""Several teachers as one: the mean of their answers, whatever form these have."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.losses import EmbeddingLoss, KDLoss, RegressionKDLoss
from lightning_kd.teachers import Ensemble
from tests import support


class Answer(nn.Module):
    """Returns the same thing for every input."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def test_the_softmax_of_the_answer_is_the_mean_of_the_softmaxes():
    logits = [torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed)).double() for seed in range(3)]
    answer = Ensemble([Answer(one) for one in logits])(None)
    expected = sum(one.exp() / one.exp().sum(-1, keepdim=True) for one in logits) / 3
    torch.testing.assert_close(answer.softmax(-1), expected)
    torch.testing.assert_close(answer.exp(), expected)


def test_logits_can_be_averaged_instead():
    first, second = torch.tensor([[1.0, -3.0]]), torch.tensor([[5.0, 4.0]])
    answer = Ensemble([Answer(first), Answer(second)], average="logits")(None)
    assert answer.tolist() == [[3.0, 0.5]]


def test_one_member_answers_as_alone():
    logits = torch.tensor([[1.0, -3.0, 0.5]])
    torch.testing.assert_close(Ensemble([Answer(logits)])(None).softmax(-1), logits.softmax(-1))
    torch.testing.assert_close(Ensemble([Answer(logits)], "logits")(None), logits)


def test_outputs_may_have_every_form_that_a_model_may_return():
    logits = torch.tensor([[2.0, 0.0]])
    forms = [logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, torch.zeros(1))]
    answer = Ensemble([Answer(form) for form in forms], "logits")(None)
    torch.testing.assert_close(answer, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sure_members_that_disagree_stay_finite(dtype):
    members = [Answer(torch.tensor([[1e4, -1e4]], dtype=dtype)), Answer(torch.tensor([[-1e4, 1e4]], dtype=dtype))]
    answer = Ensemble(members)(None)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, torch.full((1, 2), 0.5).log())


def test_the_inputs_reach_every_member_and_no_output_changes():
    class Scale(nn.Module):
        def forward(self, x, *, factor):
            return factor * x

    x = torch.tensor([[1.0, 2.0]])
    assert Ensemble([Scale(), Scale()], "logits")(x, factor=3.0).tolist() == [[3.0, 6.0]]
    kept = x.clone()
    Ensemble([Answer(x), Answer(x)], "logits")(None)
    assert torch.equal(x, kept)


def test_it_teaches_and_stays_untouched():
    torch.manual_seed(0)
    teacher = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)])
    before = [p.clone() for p in teacher.parameters()]
    module = DistillationModule(nn.Linear(4, 3), teacher, losses=[KDLoss()])
    assert all(not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not any("members" in name for name in module.state_dict())


def test_no_members_are_refused():
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])


def test_another_average_is_refused():
    with pytest.raises(ValueError, match=r"expected average to be one of .*'vote', 'confidence'\], got 'votes'"):
        Ensemble([nn.Identity()], "votes")


def test_unequal_shapes_are_named():
    ensemble = Ensemble([Answer(torch.zeros(2, 3)), Answer(torch.zeros(2, 4))])
    with pytest.raises(ValueError, match=r"one shape from all members, got \[\(2, 3\), \(2, 4\)\]"):
        ensemble(None)


def test_a_member_without_logits_is_named():
    ensemble = Ensemble([nn.Identity(), Answer({"hidden": torch.zeros(1)})])
    with pytest.raises(ValueError, match=r"member 1 \(Answer\) returned a dict without logits"):
        ensemble(torch.zeros(1, 2))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_member_that_ends_in_softmax_is_refused(average):
    scores = torch.tensor([[1.0, -3.0], [0.5, 2.0]])
    with pytest.raises(ValueError, match=r"member 1 \(Answer\) returns probabilities: each row adds up to 1"):
        Ensemble([Answer(scores), Answer(scores.softmax(1))], average)(None)
    Ensemble([Answer(scores), Answer(scores.log_softmax(1))], average)(None)


def randoms(*shape):
    return [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() for seed in range(3)]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2), (4, 5, 2, 3, 2), (4, 2, 2, 2)])
def test_pixels_have_their_classes_on_axis_1(shape):
    logits = randoms(*shape)
    answer = Ensemble([Answer(one) for one in logits])(None)
    expected = sum(one.softmax(1) for one in logits) / 3
    torch.testing.assert_close(answer.softmax(1), expected)
    torch.testing.assert_close(answer.exp(), expected)


def test_the_axis_of_the_classes_of_a_series_can_be_told():
    logits = randoms(4, 5, 6)
    answer = Ensemble([Answer(one) for one in logits], class_axis=1)(None)
    torch.testing.assert_close(answer.softmax(1), sum(one.softmax(1) for one in logits) / 3)
    with pytest.raises(ValueError, match="class_axis"):
        Ensemble([Answer(one) for one in logits], class_axis=3)(None)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 3, 2)])
def test_a_single_logit_gives_the_mean_chance_of_a_yes(shape):
    logits = randoms(*shape)
    answer = Ensemble([Answer(one) for one in logits])(None)
    torch.testing.assert_close(answer.sigmoid(), sum(one.sigmoid() for one in logits) / 3)
    torch.testing.assert_close(Ensemble([Answer(logits[0])])(None), logits[0])


def test_a_chance_of_a_yes_that_is_almost_certain_keeps_its_odds():
    answer = Ensemble([Answer(torch.tensor([[40.0], [-40.0]])), Answer(torch.tensor([[50.0], [-50.0]]))])(None)
    expected = 40.0 + torch.tensor(2.0).log() - torch.log1p(torch.tensor(-10.0).exp())
    torch.testing.assert_close(answer, torch.tensor([[expected], [-expected]]))


def test_a_segmentation_learns_from_the_mean_of_its_teachers():
    members = [nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)]
    student, x = nn.Conv2d(3, 5, 1), torch.randn(4, 3, 6, 7)
    y = torch.randint(0, 5, (4, 6, 7))
    sgd = partial(torch.optim.SGD, lr=0.0)
    losses, task = [KDLoss(1.0)], nn.CrossEntropyLoss()
    module = DistillationModule(student, Ensemble(members), losses, task_loss=task, optimizer=sgd)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    found = support.fit(module, train=loader, val=loader, max_epochs=1).callback_metrics
    with torch.no_grad():
        target = sum(one(x).softmax(1) for one in members) / 2
        # the mean over samples and pixels of the sum over classes
        kl = F.kl_div(student(x).log_softmax(1), target, reduction="none").sum(1).mean()
        accuracy = (target.argmax(1) == y).double().mean()
    assert found["train/kd"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert found["val/teacher_accuracy"].item() == pytest.approx(accuracy.item())


@pytest.mark.parametrize(
    "loss", [RegressionKDLoss(), EmbeddingLoss("<output>", "<output>")], ids=lambda o: type(o).__name__
)
def test_numbers_are_not_taken_for_class_scores(loss):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
    members = [support.seeded(partial(nn.Linear, 4, 3), seed) for seed in (1, 2)]
    student = support.seeded(partial(nn.Linear, 4, 3), 3)

    def fit(teacher):
        module = DistillationModule(student, teacher, [copy.deepcopy(loss)], task_loss=nn.MSELoss())
        loader = DataLoader(TensorDataset(x, y), batch_size=4)
        return support.fit(module, train=loader, val=loader, max_epochs=1).callback_metrics

    with pytest.raises(ValueError, match=r"reads the teacher's outputs as numbers.*average='logits'"):
        fit(Ensemble(members))
    found = fit(Ensemble(members, average="logits"))
    with torch.no_grad():
        mean = sum(member(x) for member in members) / 2
    assert float(found["val/teacher_mse"]) == pytest.approx(float(F.mse_loss(mean, y)), rel=1e-5)
