"""Rows padded on the left and rows of several documents, whichever batch they come in and whatever else is given."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.documents import Documents, begins_in
from lightning_kd.capture.padding import Positions
from lightning_kd.functional import mutual_learning_loss
from lightning_kd.losses import MutualLearning, TokenKDLoss
from tests import support

LEFT = torch.tensor([[0, 0, 7, 5, 9], [3, 8, 2, 11, 6]])
MASK = (LEFT != 0).long()
RIGHT = torch.tensor([[7, 5, 9, 0, 0], [3, 8, 2, 11, 6]])
DOCUMENTS = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])


class Counts(nn.Module):
    """Adds to each token's embedding that of its position, which it counts from the start of the row."""

    def __init__(self, seed=0, size=12):
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.places = nn.Embedding(16, size), nn.Embedding(16, size)
        self.head = nn.Linear(size, 16)

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None):
        places = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        logits = self.head(torch.tanh(self.tokens(input_ids) + self.places(places)))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


class Pooled(Counts):
    """Scores each row by the mean over the tokens that are no padding."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        scores = super().forward(input_ids, attention_mask, position_ids)["logits"]
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return (scores * real[..., None]).sum(1) / real.sum(1, keepdim=True)


class Recurrent(nn.Module):
    """Reads whatever comes before, and takes no mask."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.body = nn.Embedding(16, 8), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 16)

    def forward(self, input_ids):
        return self.head(self.body(self.tokens(input_ids))[0] * 4)


class Pointwise(nn.Sequential):
    """Reads each token alone, and takes no mask."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(nn.Embedding(16, 8), nn.Linear(8, 16))

    def forward(self, input_ids):
        return super().forward(input_ids)


def told(network, *, may_change=True):
    return Positions(network, "student", may_change=may_change)


LATER = {"input_ids": LEFT, "attention_mask": MASK}
EXPECTED = [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    "first",
    [
        {"input_ids": RIGHT},
        {"input_ids": RIGHT, "attention_mask": torch.ones_like(RIGHT)},
        {"input_ids": RIGHT[:, :1], "attention_mask": torch.ones(2, 1, dtype=torch.long)},
        {"input_ids": RIGHT, "labels": RIGHT},
        {"input_ids": LEFT, "attention_mask": MASK, "labels": LEFT},
        None,
    ],
    ids=["no mask", "no padding", "one token", "labels", "left with labels", "not set up"],
)
def test_positions_are_given_whatever_the_first_batch_was(first):
    positions = told(Counts())
    if first is not None:
        positions.settle((), first)
    for batch in (LATER, {**LATER, "labels": LEFT}):
        assert positions((), batch)["position_ids"].tolist() == EXPECTED
    right = {"input_ids": RIGHT, "attention_mask": (RIGHT != 0).long()}
    assert positions((), right) is right


def test_a_mask_that_is_given_by_its_place_is_read():
    batch = ((LEFT, MASK), torch.tensor([1, 2]))
    seen = []
    student = Pooled()
    student.places.register_forward_hook(lambda _, args, out: seen.append(args[0].tolist()))
    still = partial(torch.optim.SGD, lr=0.0)
    data = support.batches(batch)
    module = DistillationModule(student, task_loss=nn.CrossEntropyLoss(), optimizer=still)
    support.trainer(max_epochs=1).fit(module, data, data)
    assert seen[-1] == EXPECTED


class Theirs(LightningModule):
    def __init__(self, net, *names):
        super().__init__()
        self.net, self.names = net, names

    def training_step(self, batch, batch_idx):
        return self.net(**{name: batch[name] for name in self.names})["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_step_that_gives_labels_is_refused_too():
    batch = {"input_ids": LEFT, "attention_mask": MASK, "labels": LEFT}
    callback = DistillationCallback(Counts(1), [TokenKDLoss(shift=True)])
    trainer = support.trainer(max_epochs=1, callbacks=[callback])
    with pytest.raises(ValueError, match=r"student Counts .* counts the padding as positions.*position_ids ="):
        trainer.fit(Theirs(Counts(), "input_ids", "attention_mask", "labels"), support.batches(batch))


class Needs(Counts):
    """Takes only rows with a mark, as a network of text and images does with the place of the image."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        if not (input_ids == 11).any():
            raise RuntimeError("there is no place for the image")
        return super().forward(input_ids, attention_mask, position_ids)["logits"]


class Never(Counts):
    """Cannot be called by itself."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        raise RuntimeError("the cache is empty.")


def test_rows_that_cannot_be_cut_are_tried_whole():
    long = torch.tensor([[0, 0, 0, *[5] * 8, 11], [3] * 11 + [11]])
    batch = {"input_ids": long, "attention_mask": (long != 0).long()}
    positions = told(Needs())
    positions.settle((), batch)
    assert positions.how == "add"
    assert positions((), batch)["position_ids"][0].tolist() == [0, 0, 0, *range(9)]


def test_what_cannot_be_tried_is_refused_only_with_padding_on_the_left():
    positions = told(Never())
    right = {"input_ids": RIGHT, "attention_mask": (RIGHT != 0).long()}
    positions.settle((), right)
    assert positions((), right) is right
    with pytest.raises(ValueError, match=r"student Never .*could not be tried: the cache is empty\. Pad on the right"):
        positions((), LATER)


def test_padding_that_a_network_finds_itself_is_tried_with_its_own_token():
    """The first batch has no padding, so that its token is guessed; the network knows it is 10."""

    class Finds(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(16, 4)

        def forward(self, input_ids, attention_mask=None):
            real = (input_ids != 10).float()[..., None]
            return (self.tokens(input_ids) * real).cumsum(1)

    positions = told(Finds())
    positions.settle((), {"input_ids": RIGHT[1:], "attention_mask": torch.ones(1, 5, dtype=torch.long)})
    batch = {"input_ids": LEFT.masked_fill(LEFT == 0, 10), "attention_mask": MASK}
    assert positions((), batch) is batch
    assert positions.how == "as it is"


# What a batch tells and a network does not take


def fit(student, batch, *, teacher=None, then=None):
    still = partial(torch.optim.SGD, lr=0.0)
    guide = teacher or Pointwise(1)
    module = DistillationModule(student.train(), guide, [TokenKDLoss(shift=True)], optimizer=still)
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, support.batches(batch), support.batches(batch if then is None else then))
    return trainer.callback_metrics


PADDED = {"input_ids": LEFT, "attention_mask": MASK, "labels": LEFT.masked_fill(LEFT == 0, -100)}
PACKED = {"input_ids": RIGHT + 1, "position_ids": DOCUMENTS, "labels": RIGHT}


@pytest.mark.filterwarnings("ignore:No network takes the column")
@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("batch", "why"),
    [(PADDED, "it reads the padding. Pad on the right"), (PACKED, "It takes no position_ids.*one document a row")],
)
def test_who_does_not_take_what_it_needs_is_refused(role, batch, why):
    student, teacher = (Recurrent(), Pointwise(1)) if role == "student" else (Pointwise(), Recurrent(1))
    with pytest.raises(ValueError, match=rf"The {role} Recurrent .*{why}"):
        fit(student, batch, teacher=teacher)
    plain = {"input_ids": RIGHT, "attention_mask": (RIGHT != 0).long(), "labels": RIGHT}
    with pytest.raises(ValueError, match=rf"The {role} Recurrent .*{why}"):
        fit(student, plain, teacher=teacher, then=batch)
    fit(student, plain, teacher=teacher)


@pytest.mark.filterwarnings("ignore:No network takes the column")
@pytest.mark.parametrize("batch", [PADDED, PACKED])
def test_who_reads_each_token_alone_needs_not_be_told(batch):
    assert fit(Pointwise(), batch)["train/token_kd"] > 0


def test_a_network_that_was_not_given_the_positions_of_a_batch_is_told_what_to_give():
    class Step(Theirs):
        def training_step(self, batch, batch_idx):
            return self.net(batch["input_ids"])["logits"].mean()

    callback = DistillationCallback(Pointwise(1), [TokenKDLoss(shift=True)])
    with pytest.raises(ValueError, match=r"student Counts .*called without position_ids; call it with those"):
        support.trainer(max_epochs=1, callbacks=[callback]).fit(Step(Counts()), support.batches(PACKED))


def test_peers_are_called_as_the_student_is():
    rows = [(RIGHT[:1, :3]), RIGHT[1:]]
    target = torch.tensor([1, 2])
    nets = [Pooled(0), Pooled(1)]
    with torch.no_grad():
        alone = [torch.cat([net(row) for row in rows]) for net in nets]
    expected = mutual_learning_loss(alone, target)
    batch = {"input_ids": LEFT, "attention_mask": MASK, "labels": target}
    still = partial(torch.optim.SGD, lr=0.0)
    loss = MutualLearning(nets[1:])
    module = DistillationModule(nets[0], None, [loss], task_loss=nn.CrossEntropyLoss(), optimizer=still)
    trainer, data = support.trainer(max_epochs=1), support.batches(batch)
    trainer.fit(module, data, data)
    torch.testing.assert_close(trainer.callback_metrics["train/mutual_learning"], expected)


# Documents


def test_where_documents_begin():
    positions = torch.tensor([[0, 1, 2, 3, 0, 1], [1, 1, 0, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0]])
    assert begins_in(positions, mask).nonzero().tolist() == [[0, 3], [1, 3]]


class Packs(nn.Module):
    """Sums over the document that positions tell, as Llama does: only without a mask and a cache."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(16, 4)

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=True):
        values = self.tokens(input_ids)
        if attention_mask is not None:
            values = values * (attention_mask != 0)[..., None]
        document = torch.zeros_like(input_ids)
        if attention_mask is None and position_ids is not None and not use_cache:
            begins = F.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0))
            document = begins.long().cumsum(-1)
        size = input_ids.shape[1]
        seen = (document[:, :, None] == document[:, None]) & torch.ones(size, size).tril().bool()
        return seen.float() @ values


FULL = torch.ones_like(DOCUMENTS)
PART = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("first", [None, FULL, PART, PART.flip(0)], ids=["no mask", "ones", "padded", "padded second"])
@pytest.mark.parametrize("then", [None, FULL, PART, PART.flip(0)], ids=["no mask", "ones", "padded", "padded second"])
def test_documents_stay_apart_whatever_masks_their_batches_have(first, then):
    network = Packs()
    positions = told(network)
    for mask in (first, then):
        batch = {"input_ids": RIGHT + 1, "position_ids": DOCUMENTS}
        if mask is not None:
            batch["attention_mask"] = mask
        found = network(**positions((), batch))
        for row, stop in ((0, 3), (1, 2)):
            ids = batch["input_ids"][row]
            parts = [network(ids[None, :stop]), network(ids[None, stop:])]
            real = torch.ones(5, dtype=torch.bool) if mask is None else mask[row].bool()
            torch.testing.assert_close(found[row, real], torch.cat(parts, 1)[0, real])


def test_a_network_that_cannot_be_called_with_documents_is_refused_in_words():
    documents = Documents(Never(), "student", may_change=True, whole=torch.no_grad)
    with pytest.raises(ValueError, match=r"keeps apart the documents.*could not be tried: the cache is empty\. Give"):
        documents((), {"input_ids": RIGHT, "position_ids": DOCUMENTS}, DOCUMENTS, None)


def test_rows_of_one_document_are_called_as_they_are():
    documents = Documents(Never(), "student", may_change=True, whole=torch.no_grad)
    batch = {"input_ids": RIGHT, "position_ids": torch.arange(5).expand(2, 5)}
    assert documents((), batch, batch["position_ids"], None) is batch


class OfFive(Counts):
    """Takes rows of five tokens only."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return super().forward(input_ids, attention_mask, position_ids)["logits"] + torch.zeros(1, 5, 1)


class SeesAll(Recurrent):
    """Takes rows of five tokens only, and reads the padding."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids) + torch.zeros(1, 5, 1)


def test_a_network_of_rows_of_one_length_is_tried_at_that_length():
    positions = told(OfFive())
    positions.settle((), {"input_ids": RIGHT, "attention_mask": (RIGHT != 0).long()})
    assert positions((), LATER)["position_ids"].tolist() == EXPECTED
    with pytest.raises(ValueError, match=r"student SeesAll .* it reads the padding"):
        told(SeesAll()).settle((), LATER)


class Last(Counts):
    """Scores each row by its last token, padding or not."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return super().forward(input_ids, attention_mask, position_ids)["logits"][:, -1]


class TakesAll(Counts):
    """Mixes every token with the mean of its row, padding too."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        logits = super().forward(input_ids, attention_mask, position_ids)["logits"]
        return logits + logits.mean(1, keepdim=True)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("make", [Last, TakesAll])
def test_who_reads_padding_on_the_right_is_warned_of(make, role):
    with pytest.warns(UserWarning, match=f"The {role} {make.__name__} gives a row that is padded on the right another"):
        Positions(make(), role, may_change=True).settle((), {"input_ids": RIGHT, "attention_mask": (RIGHT != 0).long()})


@pytest.mark.parametrize("make", [Counts, Pooled])
def test_who_does_not_is_not(make):
    Positions(make(), "student", may_change=True).settle(
        (), {"input_ids": RIGHT, "attention_mask": (RIGHT != 0).long()}
    )


def test_rows_without_padding_on_the_right_tell_nothing_of_it():
    full = {"input_ids": RIGHT[1:], "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    Positions(Last(), "student", may_change=True).settle((), full)
