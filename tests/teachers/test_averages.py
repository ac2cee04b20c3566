"""How the members of an ensemble become one: every formula by hand, with weights, classes and learned weights."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import Ensemble
from tests import support
from tests.teachers.test_ensemble import Answer

P = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]


def of(*probabilities, dtype=torch.float64, shift=0.0):
    """Members that answer with logits of these probabilities of one sample."""
    return [Answer(torch.tensor([one], dtype=dtype).log() + shift * i) for i, one in enumerate(probabilities)]


def shares(values):
    return [value / sum(values) for value in values]


def by_hand(average, p, w):
    columns = list(zip(*p, strict=True))
    if average == "probabilities":
        return [sum(a * b for a, b in zip(w, c, strict=True)) for c in columns]
    if average in ("geometric", "logits"):
        return shares([math.prod(b**a for a, b in zip(w, c, strict=True)) for c in columns])
    if average == "max":
        return shares([max(c) for c in columns])
    if average == "median":
        middle = [sorted(c)[(len(c) - 1) // 2 : len(c) // 2 + 1] for c in columns]
        return shares([sum(m) / len(m) for m in middle])
    if average == "vote":
        votes = [sum(a for a, one in zip(w, p, strict=True) if one.index(max(one)) == i) for i in range(len(columns))]
        return shares([max(vote, 1e-4) for vote in votes])
    doubt = shares([math.exp(-sum(x * math.log(x) for x in one)) for one in p])
    sure = [(1 - d) / (len(p) - 1) for d in doubt]
    return [sum(a * b for a, b in zip(sure, c, strict=True)) for c in columns]


AVERAGES = ["probabilities", "logits", "geometric", "max", "median", "vote", "confidence"]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("average", AVERAGES)
def test_the_softmax_of_the_answer_is_the_formula(average, count):
    # logits may have any offset, which differs from member to member
    answer = Ensemble(of(*P[:count], shift=2.5), average)(None)
    expected = torch.tensor([by_hand(average, P[:count], [1 / count] * count)], dtype=torch.float64)
    torch.testing.assert_close(answer.softmax(1), expected, rtol=1e-12, atol=1e-12)
    if average != "logits":
        torch.testing.assert_close(answer.exp(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("average", ["probabilities", "logits", "geometric", "vote"])
def test_a_member_of_more_weight_counts_more(average):
    answer = Ensemble(of(*P), average, weights=[6, 3, 1])(None)
    expected = torch.tensor([by_hand(average, P, [0.6, 0.3, 0.1])], dtype=torch.float64)
    torch.testing.assert_close(answer.softmax(1), expected)


@pytest.mark.parametrize("average", ["max", "median", "confidence"])
def test_weights_without_a_meaning_are_refused(average):
    with pytest.raises(ValueError, match=f"average='{average}' has no use for weights"):
        Ensemble(of(*P), average, weights=[1, 1, 1])


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [0, 0, 0], [1, math.nan, 1], [1, math.inf, 1]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="expected a finite weight >= 0 for each of the 3 members"):
        Ensemble(of(*P), weights=weights)


def test_a_member_of_weight_zero_has_no_say_even_where_it_is_sure():
    members = [Answer(torch.tensor([[0.0, -math.inf, 1.0]])), Answer(torch.tensor([[0.2, 0.1, 0.0]]))]
    for average in ("probabilities", "geometric", "vote"):
        answer = Ensemble(members, average, weights=[0, 1])(None)
        alone = Ensemble(members[1:], average)(None)
        torch.testing.assert_close(answer, alone)


@pytest.mark.parametrize("average", AVERAGES)
def test_one_member_answers_as_alone(average):
    alone = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    answer = Ensemble(of(*alone.tolist()), average)(None).softmax(1)
    expected = torch.tensor([by_hand("vote", alone.tolist(), [1])]).double() if average == "vote" else alone
    torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 1), ((2, 3, 4, 5), 1), ((2, 4, 3), 2)])
def test_every_pixel_and_token_is_its_own_case(average, shape, axis):
    logits = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double() for seed in range(4)]
    whole = Ensemble([Answer(one) for one in logits], average)(None).movedim(axis, -1).flatten(0, -2)
    rows = [one.movedim(axis, -1).flatten(0, -2) for one in logits]
    torch.testing.assert_close(whole, Ensemble([Answer(one) for one in rows], average)(None))


@pytest.mark.parametrize("average", AVERAGES)
def test_a_single_logit_stands_for_no_and_yes(average):
    single = [torch.tensor([[1.5], [-0.5]]), torch.tensor([[-0.25], [-2.0]]), torch.tensor([[3.0], [1.0]])]
    pairs = [torch.cat([torch.zeros_like(one), one], 1) for one in single]
    expected = Ensemble([Answer(one) for one in pairs], average)(None)
    answer = Ensemble([Answer(one) for one in single], average)(None)
    torch.testing.assert_close(answer, expected[:, 1:] - expected[:, :1])


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sure_members_in_half_precision_stay_finite(average, dtype):
    members = [Answer(torch.tensor([[3e4, -3e4]], dtype=dtype)), Answer(torch.tensor([[-3e4, 3e4]], dtype=dtype))]
    answer = Ensemble(members, average)(None)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.softmax(1), torch.full((1, 2), 0.5))


@pytest.mark.parametrize("average", AVERAGES)
def test_it_compiles_as_one_graph(average):
    ensemble = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)], average, weights=[1, 3] if average == "vote" else None)
    x = torch.randn(2, 4)
    compiled = torch.compile(ensemble, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), ensemble(x))


# Members of other classes


def test_members_of_disjoint_classes_share_the_whole_evenly():
    answer = Ensemble(of([0.9, 0.1], [0.2, 0.8]), classes=[[0, 2], [3, 1]])(None)
    torch.testing.assert_close(answer.exp(), torch.tensor([[0.45, 0.4, 0.05, 0.1]], dtype=torch.float64))


@pytest.mark.parametrize("average", ["probabilities", "geometric", "max", "vote"])
def test_a_member_has_no_say_on_a_class_that_it_lacks(average):
    one, other, w = [0.7, 0.2, 0.1], [0.4, 0.6], [0.75, 0.25]
    weights = w if average in ("probabilities", "geometric", "vote") else None
    answer = Ensemble(of(one, other), average, weights=weights, classes=[[0, 1, 2], [2, 3]])(None)
    both = {
        "probabilities": 0.75 * 0.1 + 0.25 * 0.4,
        "geometric": 0.1**0.75 * 0.4**0.25,
        "max": 0.4,
        "vote": 1e-4,
    }[average]
    expected = [1, 1e-4, both, 1] if average == "vote" else [0.7, 0.2, both, 0.6]
    torch.testing.assert_close(answer.exp(), torch.tensor([shares(expected)], dtype=torch.float64))


@pytest.mark.parametrize("average", ["probabilities", "geometric", "vote"])
def test_naming_all_classes_of_all_members_changes_nothing(average):
    plain = Ensemble(of(*P), average)(None)
    named = Ensemble(of(*P), average, classes=[[0, 1, 2]] * 3)(None)
    torch.testing.assert_close(named, plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": [[0, 1, 2]]}, "expected the classes of each of the 3 members, got 1 lists"),
        ({"classes": [[0, 1, 2], [0, 1, 2], [0, 1, 1]]}, r"different classes of member 2, from 0 on, got \[0, 1, 1\]"),
        ({"classes": [[0, 1, 2], [0, 1, 2], [0, 1, 4]]}, r"no member knows the class\(es\) \[3\]"),
        ({"classes": [[0, 1, 2]] * 3, "average": "median"}, "average='median' cannot join members of other classes"),
        (
            {"classes": [[0, 1, 2], [0, 1, 2], [2, 3, 4]], "weights": [1, 1, 0]},
            r"weight 0 know the class\(es\) \[3, 4\]",
        ),
    ],
)
def test_classes_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Ensemble(of(*P), **options)


def test_a_member_of_another_number_of_classes_is_named_when_it_answers():
    with pytest.raises(ValueError, match=r"classes names 2 classes of member 1 \(Answer\), but its logits have .*3\)"):
        Ensemble(of(*P[:2]), classes=[[0, 1, 2], [0, 1]])(None)


# Weights by labelled data


def labelled(*logits):
    """Members that answer the inputs 0 to N - 1 with rows of these logits."""

    class Row(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.dropout = nn.Dropout(0.5)
            self.table = torch.tensor(table)

        def forward(self, rows):
            return self.dropout(self.table[rows])

    return [Row(one) for one in logits]


def test_members_can_be_weighed_by_their_accuracy():
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    ensemble = Ensemble(labelled([right, right, right, wrong], [right, wrong, wrong, wrong])).train()
    batches = [(torch.tensor([0, 1]), torch.tensor([0, 0])), (torch.tensor([2, 3]), torch.tensor([0, 0]))]
    assert ensemble.weigh_by_accuracy(batches) == [0.75, 0.25]
    assert ensemble.weights == [0.75, 0.25]
    assert all(part.training for part in ensemble.modules())
    with pytest.raises(ValueError, match="no member has one right"):
        ensemble.weigh_by_accuracy([(torch.tensor([0, 1]), torch.tensor([-100, -100]))])
    with pytest.raises(ValueError, match="expected a class id for each of 2 answers, got 3"):
        ensemble.weigh_by_accuracy([(torch.tensor([0, 1]), torch.tensor([0, 0, 0]))])


def test_weights_can_be_learned_from_labels():
    half, full, none = [0.0, 0.0], [30.0, -30.0], [-30.0, 30.0]
    ensemble = Ensemble(labelled([half, half, half, half], [full, full, none, none]))
    rows, labels = torch.arange(4), torch.tensor([0, 0, 0, -100])  # the last has no label
    # the maximum of 2 log(w/2 + 1 - w) + log(w/2) is at w = 2/3
    found = ensemble.learn_weights([(rows, labels)], steps=100)
    assert found == pytest.approx([float(Fraction(2, 3)), float(Fraction(1, 3))], abs=1e-4)
    assert ensemble.weights == pytest.approx(found)
    with pytest.raises(ValueError, match="learned for average='probabilities'"):
        Ensemble(ensemble.members, "vote").learn_weights([(rows, labels)])


# In a fit


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("average", ["geometric", "confidence"])
def test_it_teaches_through_both_doors_with_layers_of_a_member(door, average):
    guide = Ensemble([support.teacher(), support.seeded(lambda: support.ConvNet(8), 8)], average)
    before = support.snapshot(guide)
    made, callbacks = support.through(door, guide=guide, losses=[KDLoss(), HintLoss("features", "members.1.features")])
    trainer = support.fit(made, callbacks=callbacks, max_epochs=1)
    support.assert_unchanged(guide, before)
    x, y = support.data().tensors
    with torch.no_grad():
        accuracy = (guide(x).argmax(1) == y).double().mean().item()
    assert trainer.callback_metrics["val/teacher_accuracy"].item() == pytest.approx(accuracy)


def test_a_student_of_all_classes_learns_from_specialists():
    members = [support.seeded(lambda: support.ConvNet(4, 2), seed) for seed in (1, 2)]
    made = support.module(teacher=Ensemble(members, classes=[[0, 1], [2, 3]]), losses=[KDLoss()])
    trainer = support.fit(made, max_epochs=1, train=DataLoader(support.data(), batch_size=8))
    assert trainer.callback_metrics["train/kd"].isfinite()
