"""Metrics of the user on logits (B, T, V) get the pairs of logits and labels that the package's own metrics get."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lightning_kd.losses import HintLoss, RKDLoss, TokenKDLoss
from lightning_kd.metrics import NegativeFlips
from tests.fit.test_token_means import ALL, WHOLE, evaluate, expected, split, still
from tests.losses.tokens.test_in_fit import LENGTH, VOCABULARY, networks

ACCURACY = {"num_classes": VOCABULARY, "average": "micro", "ignore_index": -100}


def unlabelled_padding(fill):
    """The same texts, whose padding the mask alone tells; the first token predicts nothing of its own."""
    labels = torch.where(ALL["attention_mask"].bool(), ALL["input_ids"], fill)
    return ALL | {"labels": labels}


@pytest.mark.parametrize("size", [1, 3, 7])
def test_torchmetrics_see_the_pairs_of_a_causal_model(size):
    metrics = {"ppl": Perplexity(ignore_index=-100), "acc": MulticlassAccuracy(**ACCURACY), "flips": NegativeFlips()}
    found = evaluate(still([TokenKDLoss()], metrics=metrics), split(ALL, size))
    assert found["val/ppl"] == pytest.approx(WHOLE["val/perplexity"], rel=1e-5)
    assert found["val/teacher_ppl"] == pytest.approx(WHOLE["val/teacher_perplexity"], rel=1e-5)
    assert found["val/acc"] == pytest.approx(WHOLE["val/accuracy"], rel=1e-5)
    assert found["val/flips"] == pytest.approx(flips(), rel=1e-5)


def flips():
    student, teacher = networks()
    with torch.no_grad():
        ours, theirs = (net(ALL["input_ids"], ALL["attention_mask"]).logits.argmax(-1) for net in (student, teacher))
    labels = ALL["labels"][:, 1:]
    counts = (labels != -100) & (ALL["attention_mask"][:, :-1] == 1)
    return float(((theirs[:, :-1] == labels) & (ours[:, :-1] != labels))[counts].double().mean())


@pytest.mark.parametrize("mark", [-100, 3])
def test_padding_that_the_mask_alone_tells_counts_as_ignored(mark):
    metrics = MetricCollection({"ppl": Perplexity(ignore_index=mark)})
    found = evaluate(still([TokenKDLoss()], metrics=metrics), split(unlabelled_padding(5), 3))
    wanted = expected(unlabelled_padding(5))["val/perplexity"]
    if mark == 3:  # an id of the vocabulary, which does not count then
        student, _ = networks()
        with torch.no_grad():
            logs = student(ALL["input_ids"], ALL["attention_mask"]).logits[:, :-1].log_softmax(-1)
        ids, mask = ALL["input_ids"][:, 1:], ALL["attention_mask"].bool()
        counts = mask[:, 1:] & mask[:, :-1] & (ids != mark)
        wanted = float((-logs.gather(2, ids[..., None]).squeeze(2))[counts].mean().exp())
    assert found["val/ppl"] == pytest.approx(wanted, rel=1e-5)


def test_a_metric_without_ignore_index_sees_the_labels_that_there_are():
    whole = {name: value[[0, 4]] for name, value in ALL.items()}  # without padding
    whole["labels"] = whole["input_ids"]
    found = evaluate(still([TokenKDLoss()], metrics={"ppl": Perplexity()}), split(whole, 1))
    student, _ = networks()
    with torch.no_grad():
        logits = student(whole["input_ids"], whole["attention_mask"]).logits[:, :-1]
    wanted = F.cross_entropy(logits.flatten(0, 1), whole["input_ids"][:, 1:].flatten()).exp()
    assert found["val/ppl"] == pytest.approx(float(wanted), rel=1e-5)


class Shifts(Perplexity):
    """A user's metric that shifts itself."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        assert preds.shape[1] == LENGTH
        super().update(preds[:, :-1], target[:, 1:])


def test_a_metric_of_the_users_own_shifts_itself_and_is_told(caplog):
    with caplog.at_level("INFO"):
        found = evaluate(still([TokenKDLoss()], metrics={"own": Shifts(ignore_index=-100)}), split(ALL, 3))
    assert found["val/own"] == pytest.approx(WHOLE["val/perplexity"], rel=1e-5)
    assert sum("metrics: own get logits" in one.message for one in caplog.records) == 1


def test_it_is_told_where_nothing_says_what_a_position_predicts(caplog):
    unnamed = still([RKDLoss("block", "block")], metrics={"ppl": Perplexity(ignore_index=-100)})
    unnamed.student.__class__ = type("Unnamed", (type(unnamed.student),), {})
    with caplog.at_level("INFO"):
        evaluate(unnamed, split(ALL, 3))
    assert sum("metrics: ppl get logits" in one.message for one in caplog.records) == 1
    caplog.clear()
    with caplog.at_level("INFO"):
        evaluate(still([TokenKDLoss()], metrics={"ppl": Perplexity(ignore_index=-100)}), split(ALL, 3))
    assert not [one for one in caplog.records if "metrics: " in one.message]


@pytest.mark.filterwarnings("ignore:val.agreement is left out")
def test_as_many_tokens_as_classes_are_read_with_the_classes_last():
    square = {name: value.repeat(1, 2)[:, :VOCABULARY] for name, value in ALL.items()}
    metrics = {"acc": MulticlassAccuracy(**ACCURACY)}
    found = evaluate(still([TokenKDLoss(shift=False)], metrics=metrics), split(square, 3))
    student, _ = networks()
    with torch.no_grad():
        right = student(square["input_ids"], square["attention_mask"]).logits.argmax(-1) == square["labels"]
    assert found["val/acc"] == pytest.approx(float(right[square["labels"] != -100].double().mean()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:val/agreement is left out")
@pytest.mark.parametrize("size", [1, 7])
def test_a_token_beyond_the_vocabulary_makes_the_perplexity_infinite_in_any_split(size):
    labels = ALL["labels"].clone()
    labels[0, 1] = VOCABULARY + 2
    words = f"token {VOCABULARY + 2}, but the {{}} knows {VOCABULARY} tokens"
    with (
        pytest.warns(UserWarning, match=words.format("student")),
        pytest.warns(UserWarning, match=words.format("teacher")),
    ):
        found = evaluate(still([TokenKDLoss()]), split(ALL | {"labels": labels}, size))
    assert found["val/perplexity"] == found["val/teacher_perplexity"] == float("inf")


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_causal_model_is_compared_with_the_next_token_whatever_the_losses_are(size):
    found = evaluate(still([HintLoss("block", "block")]), split(ALL, size))
    names = [name for name in WHOLE if name.endswith(("accuracy", "agreement", "perplexity"))]
    assert len(names) == 4
    assert {name: found[name] for name in names} == pytest.approx({name: WHOLE[name] for name in names}, rel=1e-5)
