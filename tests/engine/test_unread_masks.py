"""A batch whose mask of padding has another name than attention_mask is told at set-up, and never guessed at."""

import warnings

import pytest
import torch
from torch import nn

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.losses import HintLoss, KDLoss, TokenKDLoss
from tests import support

B, T = 4, 6
REAL = torch.arange(T) < torch.tensor([[6], [4], [2], [5]])
TOLD = "is not read"


class Encoder(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, ids, **extra):
        x = self.mix(self.embed(ids))
        return self.head(x.mean(1))


class Tagger(Encoder):
    def forward(self, ids, **extra):
        return self.head(self.mix(self.embed(ids)))


class Two(Encoder):
    def forward(self, ids, pads):
        return super().forward(ids)


def ids():
    return torch.randint(2, 9, (B, T), generator=torch.Generator().manual_seed(0))


def fit(batch, losses=None, net=Encoder, door="module", base=DistillationModule, words=TOLD):
    losses = losses or [HintLoss("mix", "mix")]
    loader = support.batches(batch)
    student, teacher = support.seeded(net, 1), support.seeded(net, 2)
    if door == "callback":
        module, callbacks = User(student), [DistillationCallback(teacher, losses)]
    else:
        module, callbacks = base(student, teacher, losses), []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        support.fit(module, callbacks=callbacks, train=loader, max_epochs=1, limit_val_batches=0)
    return [str(one.message) for one in seen if words in str(one.message)]


class User(support.UserModule):
    def training_step(self, batch, batch_idx):
        batch = dict(batch)
        return self.criterion(self.net(**batch), torch.zeros(B, dtype=torch.long))


MASKS = {
    "mask": REAL,
    "src_key_padding_mask": ~REAL,
    "padding_mask": REAL.long(),
    "pads": REAL.float(),
    "lengths": REAL.sum(1),
    "seq_len": REAL.sum(1),
}


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("key", MASKS)
def test_an_entry_that_looks_like_a_mask_is_told_with_the_remedy(key, door):
    told = fit({"ids": ids(), key: MASKS[key]}, door=door)
    assert len(told) == 1
    assert f"{key!r} of the batch, {tuple(MASKS[key].shape)}" in told[0].replace("of shape ", "")
    assert "unpack_batch" in told[0]
    assert "mask=" in told[0]


def test_a_mask_without_a_name_is_told_too():
    assert "input 1" in fit(((ids(), ~REAL), torch.zeros(B, dtype=torch.long)), net=Two)[0]


def test_a_loss_of_tokens_is_told_too():
    assert len(fit({"ids": ids(), "mask": REAL}, [TokenKDLoss(shift=False)], net=Tagger)) == 1


@pytest.mark.parametrize(
    "batch",
    [
        {"ids": ids(), "attention_mask": REAL},
        {"ids": ids(), "attention_mask": REAL, "special_tokens_mask": ~REAL},
        {"ids": ids(), "token_type_ids": REAL.long()},
        {"ids": ids(), "position_ids": torch.arange(T).expand(B, T)},
        {"ids": ids(), "weights": torch.rand(B, T)},
        {"ids": ids(), "labels": REAL.long()},
        {"ids": ids(), "flags": torch.ones(B, T + 1, dtype=torch.bool)},
        {"ids": ids(), "count": torch.tensor([1, 2, 1, 2])},
    ],
    ids=lambda batch: "-".join(batch),
)
def test_nothing_else_is(batch):
    assert fit(batch) == []


def test_nothing_is_told_where_no_loss_reads_tokens_or_the_user_reads_the_batch():
    assert fit({"ids": ids(), "mask": REAL}, [KDLoss()]) == []

    class Reads(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(args=(batch["ids"],), mask=batch["mask"])

    assert fit({"ids": ids(), "mask": REAL}, base=Reads) == []


@pytest.mark.parametrize(("mask", "told"), [(None, 1), (REAL, 0), (torch.ones_like(REAL), 0)])
def test_a_mask_that_the_users_method_gives_the_network_alone_is_told(mask, told):
    class Reads(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(kwargs={"ids": batch["ids"], "attention_mask": batch["mask"]}, mask=mask)

    found = fit({"ids": ids(), "mask": REAL}, base=Reads, words="count every token, padding too")
    assert len(found) == told
