"""The end of a document does not predict the first token of the next one in its row."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.capture.documents import document_starts
from lightning_kd.losses import TokenKDLoss
from lightning_kd.losses.tokens.selection import counting_positions
from tests import support

IDS = torch.tensor([[7, 5, 9, 3, 8], [3, 8, 2, 11, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
PLACES = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 0]])
PREDICTS = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 0, 0]], dtype=torch.bool)
"""Which positions predict a token of their own document."""


class Net(nn.Module):
    """Reads each token alone, so that it keeps documents apart."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.head = nn.Embedding(12, 8), nn.Linear(8, 12)

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None):
        logits = self.head(self.tokens(input_ids))
        if labels is None:
            return logits
        return {"logits": logits, "loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def test_which_tokens_start_a_document():
    starts = document_starts(PLACES, MASK, IDS.shape)
    assert starts.nonzero().tolist() == [[0, 3], [1, 2]]
    assert document_starts(PLACES[:1], None, IDS.shape).nonzero().tolist() == [[0, 3], [1, 3]]
    assert document_starts(PLACES, torch.tensor([True, False]), IDS.shape).nonzero().tolist() == [[0, 3]]
    for unfit in (None, PLACES[:, :3], PLACES[[0, 0, 0]]):
        assert document_starts(unfit, None, IDS.shape) is None
    assert document_starts(PLACES, None, torch.Size([2])) is None


def test_a_start_is_not_predicted_but_predicts():
    starts = document_starts(PLACES, MASK, IDS.shape)
    found = counting_positions("it", IDS.shape, mask=MASK, shift=True, starts=starts)
    assert found.equal(PREDICTS)
    aligned = counting_positions("it", IDS.shape, mask=MASK, starts=starts)
    assert aligned.equal(MASK.bool())


LABELS = {"no labels": None, "the tokens": IDS.masked_fill(MASK == 0, -100)}


@pytest.mark.parametrize("tokens", ["labels", "mask"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_the_loss_and_the_perplexity_leave_it_out(labels, tokens):
    student, teacher = Net(0), Net(1)
    with torch.no_grad():
        q, p = (net(IDS).double().log_softmax(-1) for net in (student, teacher))
    expected = (p.exp() * (p - q)).sum(-1)[PREDICTS].mean()
    batch = {"input_ids": IDS, "attention_mask": MASK, "position_ids": PLACES}
    if labels is not None:
        batch["labels"] = labels
    still = partial(torch.optim.SGD, lr=0.0)
    module = DistillationModule(student, teacher, [TokenKDLoss(shift=True, tokens=tokens)], optimizer=still)
    trainer, data = support.trainer(max_epochs=1), support.batches(batch)
    trainer.fit(module, data, data)
    for name in ("train/token_kd", "val/token_kd"):
        torch.testing.assert_close(trainer.callback_metrics[name].double(), expected, rtol=1e-5, atol=0.0)
    if labels is not None:
        following = IDS.roll(-1, 1)
        surprise = -q.gather(-1, following[..., None])[..., 0][PREDICTS].mean()
        found = trainer.callback_metrics["val/perplexity"].double()
        torch.testing.assert_close(found, surprise.exp(), rtol=1e-5, atol=0.0)


def test_the_students_own_loss_is_told_of():
    batch = {"input_ids": IDS, "attention_mask": MASK, "position_ids": PLACES, "labels": LABELS["the tokens"]}
    data = support.batches(batch)

    class Causal(Net):
        loss_type = "ForCausalLM"

    def fit():
        still = partial(torch.optim.SGD, lr=0.0)
        losses = [TokenKDLoss(shift=True)]
        module = DistillationModule(Causal(0), Net(1), losses, task_loss="model", optimizer=still)
        support.trainer(max_epochs=1).fit(module, data, data)

    with pytest.warns(UserWarning, match="first token of each document in a row of several.*Label that token -100"):
        fit()
    batch["labels"] = batch["labels"].masked_fill(document_starts(PLACES, MASK, IDS.shape), -100)
    fit()  # warnings are errors here
