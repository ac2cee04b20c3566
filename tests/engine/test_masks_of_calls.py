"""The mask and labels that the student is called with say what counts, wherever in the batch they stand."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.losses import HiddenStateLoss, TokenKDLoss
from tests import support

B, T, C = 3, 5, 7
REAL = (torch.arange(T) < torch.tensor([[5], [2], [4]])).long()
IDS = torch.randint(1, C, (B, T), generator=torch.Generator().manual_seed(0)) * REAL
Pair = namedtuple("Pair", "input_ids attention_mask")


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(C, 4), nn.Linear(4, C)

    def forward(self, input_ids, attention_mask=None, decoder_attention_mask=None, labels=None):
        return self.head(self.embed(input_ids))


STUDENT, TEACHER = support.seeded(Tagger, 1), support.seeded(Tagger, 2)


def expected(loss, mask=REAL):
    """By hand, over the tokens that are no padding."""
    with torch.no_grad():
        student, teacher = (net.embed(IDS) if loss == "hidden_state" else net(IDS) for net in (STUDENT, TEACHER))
    if loss == "hidden_state":
        of_each = (student - teacher).square().mean(-1)
    else:
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        of_each = (log_p.exp() * (log_p - log_q)).sum(-1)
    return float((of_each * mask).sum() / mask.sum())


def losses(name):
    return [HiddenStateLoss("embed", "embed") if name == "hidden_state" else TokenKDLoss(shift=False)]


class User(support.UserModule):
    def __init__(self, net, call):
        super().__init__(net)
        self.call = call

    def training_step(self, batch, batch_idx):
        return 0.0 * self.call(self.net, batch).sum()

    def validation_step(self, batch, batch_idx):
        self.call(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(batch, call, name, callback=DistillationCallback):
    module = User(support.seeded(Tagger, 1), call)
    loader = support.batches(batch)
    callbacks = [callback(support.seeded(Tagger, 2), losses(name))]
    return support.fit(module, train=loader, val=loader, max_epochs=1, callbacks=callbacks).callback_metrics


STEPS = {
    "flat": ({"input_ids": IDS, "attention_mask": REAL}, lambda net, b: net(**b)),
    "another name": ({"ids": IDS, "mask": REAL}, lambda net, b: net(b["ids"], attention_mask=b["mask"])),
    "by place": ({"ids": IDS, "mask": REAL}, lambda net, b: net(b["ids"], b["mask"])),
    "nested": ({"text": {"input_ids": IDS, "attention_mask": REAL}}, lambda net, b: net(**b["text"])),
    "a tuple": ((IDS, REAL), lambda net, b: net(b[0], attention_mask=b[1])),
    "a named tuple": (Pair(IDS, REAL), lambda net, b: net(b.input_ids, attention_mask=b.attention_mask)),
    "made in the step": (IDS, lambda net, b: net(b, attention_mask=(b != 0).long())),
    "of floats": ({"ids": IDS, "mask": REAL.float()}, lambda net, b: net(b["ids"], attention_mask=b["mask"])),
}


@pytest.mark.parametrize("name", ["hidden_state", "token_kd"])
@pytest.mark.parametrize("step", STEPS)
def test_padding_does_not_count_wherever_the_mask_is(step, name):
    logged = fit(*STEPS[step], name)
    assert expected(name) != pytest.approx(expected(name, torch.ones_like(REAL)), rel=1e-3)
    assert float(logged[f"train/{name}"]) == pytest.approx(expected(name), rel=1e-5)
    if name == "token_kd":
        assert float(logged["val/token_kd"]) == pytest.approx(expected(name), rel=1e-5)


def test_the_mask_of_the_call_goes_before_that_of_the_batch():
    shorter = REAL * (torch.arange(T) < 3)

    def call(net, batch):
        return net(batch["input_ids"], attention_mask=shorter[: len(batch["input_ids"])])

    logged = fit({"input_ids": IDS, "attention_mask": REAL}, call, "hidden_state")
    assert float(logged["train/hidden_state"]) == pytest.approx(expected("hidden_state", shorter), rel=1e-5)


@pytest.mark.parametrize("mask", [REAL * (torch.arange(T) < 3), None])
def test_the_mask_of_the_users_own_method_goes_before_both(mask):
    class Reads(DistillationCallback):
        def unpack_batch(self, batch):
            return Batch(mask=None if mask is None else mask.bool())

    logged = fit(*STEPS["another name"], "hidden_state", Reads)
    by_hand = expected("hidden_state", torch.ones_like(REAL) if mask is None else mask)
    assert float(logged["train/hidden_state"]) == pytest.approx(by_hand, rel=1e-5)


def test_which_token_sees_which_is_no_mask_of_padding():
    def call(net, batch):
        return net(batch, attention_mask=torch.ones(T, T).tril())

    logged = fit(IDS, call, "hidden_state")
    by_hand = expected("hidden_state", torch.ones_like(REAL))
    assert float(logged["train/hidden_state"]) == pytest.approx(by_hand, rel=1e-5)


def test_the_module_reads_the_mask_of_a_place():
    module = DistillationModule(support.seeded(Tagger, 1), support.seeded(Tagger, 2), losses("hidden_state"))
    loader = support.batches(((IDS, REAL), None))
    logged = support.fit(module, train=loader, max_epochs=1, limit_val_batches=0).callback_metrics
    assert float(logged["train/hidden_state"]) == pytest.approx(expected("hidden_state"), rel=1e-5)


ANSWER = REAL * (torch.arange(T) > 0)
"""The tokens behind a prompt of one token."""
LABELS = torch.where(ANSWER.bool(), IDS, -100)
OTHER = torch.where((REAL * (torch.arange(T) > 1)).bool(), IDS, -100)
LABELLED = {
    "made in the step": (IDS, lambda net, b: net(b, labels=torch.where((b != 0) & (torch.arange(T) > 0), b, -100))),
    "beside a mask": (
        {"input_ids": IDS, "attention_mask": REAL, "answer": LABELS},
        lambda net, b: net(b["input_ids"], b["attention_mask"], labels=b["answer"]),
    ),
    "beside other labels": (
        {"input_ids": IDS, "labels": OTHER, "answer": LABELS},
        lambda net, b: net(b["input_ids"], labels=b["answer"]),
    ),
    "beside another target": (
        (IDS, OTHER),
        lambda net, b: net(b[0], labels=torch.where((b[0] != 0) & (torch.arange(T) > 0), b[0], -100)),
    ),
}


@pytest.mark.parametrize("step", LABELLED)
def test_the_labels_of_the_call_say_what_counts(step):
    logged = fit(*LABELLED[step], "token_kd")
    for prefix in ("train", "val"):
        assert float(logged[f"{prefix}/token_kd"]) == pytest.approx(expected("token_kd", ANSWER), rel=1e-5)


def test_the_target_of_the_users_own_method_goes_before_the_labels_of_the_call():
    class Reads(DistillationCallback):
        def unpack_batch(self, batch):
            return Batch(target=batch["labels"])

    logged = fit(*LABELLED["beside other labels"], "token_kd", Reads)
    assert float(logged["train/token_kd"]) == pytest.approx(expected("token_kd", OTHER != -100), rel=1e-5)


def test_labels_that_are_no_ids_are_no_target():
    def call(net, batch):
        return net(batch["input_ids"], labels=torch.rand(len(batch["input_ids"]), T))

    logged = fit({"input_ids": IDS, "labels": LABELS}, call, "token_kd")
    assert float(logged["train/token_kd"]) == pytest.approx(expected("token_kd", ANSWER), rel=1e-5)
