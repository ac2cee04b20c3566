"""Several teachers as one: the mean of their answers, whatever form these have."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import Ensemble


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
    with pytest.raises(ValueError, match="expected average 'probabilities' or 'logits', got 'votes'"):
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
