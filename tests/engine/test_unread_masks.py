"""A batch whose mask of padding has another name than attention_mask is told at set-up, and never guessed at."""

import warnings

import pytest
import torch
from torch import nn

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.losses import EmbeddingLoss, HiddenStateLoss, HintLoss, KDLoss, TokenKDLoss
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


SQUARE = REAL[:, None, :].expand(B, T, T)
UNREAD = {
    "3-D": SQUARE,
    "4-D": SQUARE[:, None],
    "3-D ints": SQUARE.long(),
    "additive": torch.zeros(B, 1, T, T).masked_fill(~SQUARE[:, None], -1e9),
    "lengths": REAL.sum(1),
}


class Asks(Encoder):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


class Tags(Tagger):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("shape", UNREAD)
def test_an_attention_mask_of_another_shape_is_told_with_the_remedy(shape, door):
    mask = UNREAD[shape]
    told = fit({"input_ids": ids(), "attention_mask": mask}, door=door, net=Asks, words="padding too")
    assert len(told) == 1
    assert f"attention_mask of shape {tuple(mask.shape)}" in told[0]
    assert "Override unpack_batch to return Batch(..., mask=...)" in told[0]


def test_an_attention_mask_of_another_shape_is_told_to_a_loss_of_tokens():
    batch = {"input_ids": ids(), "attention_mask": UNREAD["4-D"]}
    assert len(fit(batch, [TokenKDLoss(shift=False)], net=Tags, words="padding too")) == 1
    labels = torch.zeros(B, T, dtype=torch.long).masked_fill(~REAL, -100)  # which tell it themselves
    assert fit(batch | {"labels": labels}, [TokenKDLoss(shift=False)], net=Tags, words="padding too") == []
    assert len(
        fit(batch | {"labels": labels}, [TokenKDLoss(shift=False, tokens="mask")], net=Tags, words="padding too")
    )


def test_an_attention_mask_of_another_shape_is_told_to_no_other_loss_and_to_no_reader_of_the_batch():
    batch = {"input_ids": ids(), "attention_mask": UNREAD["4-D"]}
    assert fit(batch, [KDLoss()], net=Asks, words="padding too") == []
    assert fit({"input_ids": ids()}, net=Asks, words="padding too") == []

    class Reads(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(kwargs=dict(batch), mask=None)

    assert fit(batch, base=Reads, net=Asks, words="padding too") == []


class Choices(nn.Module):
    """Scores of several texts of each sample, which it reads as so many rows."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, input_ids, attention_mask):
        x = self.mix(self.embed(input_ids.flatten(0, 1)))
        real = attention_mask.flatten(0, 1).unsqueeze(-1).float()
        return self.head((x * real).sum(1) / real.sum(1)).unflatten(0, input_ids.shape[:2])


@pytest.mark.parametrize("loss", [HiddenStateLoss, EmbeddingLoss])
def test_the_mask_of_multiple_choice_is_read_for_each_choice(loss):
    given = torch.randint(2, 9, (B, 3, T), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(T) < torch.tensor([[6, 2, 3], [4, 4, 1], [2, 5, 5], [5, 6, 1]])[..., None]
    student, teacher = support.seeded(Choices, 1), support.seeded(Choices, 2)
    with torch.no_grad():
        s, t = student.mix(student.embed(given)), teacher.mix(teacher.embed(given))
        values = (s - t).square().mean(-1) if loss is HiddenStateLoss else 1 - torch.cosine_similarity(s, t, -1)
        expected = values[mask].mean()
    made = loss("mix", "mix")
    module = DistillationModule(student, teacher, [made], optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train = support.batches({"input_ids": given, "attention_mask": mask.long()})
        trainer = support.fit(module, train=train, max_epochs=1, limit_val_batches=0)
    assert not [one for one in seen if "padding" in str(one.message)]
    names = {HiddenStateLoss: "hidden_state", EmbeddingLoss: "embedding"}
    assert float(trainer.callback_metrics[f"train/{names[loss]}"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("low", [float("-inf"), -1e4])
def test_a_mask_that_is_added_to_scores_is_refused(low, door):
    added = torch.zeros(B, T).masked_fill(~REAL, low)
    with pytest.raises(ValueError, match=r"as masks do that are added to scores.*mask=attention_mask == 0"):
        fit({"ids": ids(), "attention_mask": added}, door=door)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_mask_that_leaves_nothing_is_refused(dtype):
    with pytest.raises(ValueError, match="zero everywhere in the first samples"):
        fit({"ids": ids(), "attention_mask": torch.zeros(B, T, dtype=dtype)})


class MakesMask(support.UserModule):
    def training_step(self, batch, batch_idx):
        added = torch.zeros(B, T).masked_fill(batch["pads"], -1e4)
        return self.criterion(self.net(batch["ids"], attention_mask=added), torch.zeros(B, dtype=torch.long))


def test_a_mask_that_a_step_of_the_users_own_adds_to_scores_is_refused():
    callback = DistillationCallback(support.seeded(Encoder, 2), [HintLoss("mix", "mix")])
    loader = support.batches({"ids": ids(), "pads": ~REAL})
    with pytest.raises(ValueError, match="as masks do that are added to scores"):
        support.fit(MakesMask(support.seeded(Encoder, 1)), callbacks=[callback], train=loader, limit_val_batches=0)


class Added(DistillationModule):
    def unpack_batch(self, batch):
        read = super().unpack_batch(batch)
        read.mask = batch["attention_mask"] == 0
        return read


def test_an_unpack_batch_of_the_users_own_may_read_it():
    added = torch.zeros(B, T).masked_fill(~REAL, -1e4)
    assert fit({"ids": ids(), "attention_mask": added}, base=Added) == []


LABELS = torch.where(REAL, ids(), -100)


def labels_told(batch, losses=None, **options):
    losses = losses or [TokenKDLoss(shift=False)]
    return fit(batch, losses, net=Tagger, words="as labels of tokens do", **options)


@pytest.mark.parametrize("more", [{}, {"attention_mask": REAL}], ids=["alone", "beside a mask"])
@pytest.mark.parametrize("key", ["targets", "lm_labels"])
def test_labels_of_another_name_are_told_with_the_remedy(key, more):
    (told,) = labels_told({"ids": ids(), key: LABELS, **more})
    assert told.startswith(f"'{key}' of the batch, of shape (4, 6), holds -100 as labels of tokens do")
    assert "Name it labels" in told


def test_labels_that_are_read_or_that_no_loss_would_read_are_not_told():
    batch = {"ids": ids(), "targets": LABELS}
    assert labels_told({"ids": ids(), "labels": LABELS, "other": LABELS}) == []
    assert labels_told(batch, [HintLoss("mix", "mix")]) == []
    assert labels_told({"ids": ids(), "kinds": ids()}) == []
