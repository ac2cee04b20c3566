"""How the outputs of networks of tokens (B, T, V) are read through both doors: their classes are on the last axis."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import HybridLoss, TokenKDLoss
from lightning_kd.teachers import Ensemble
from tests import support

DOORS = ["module", "callback"]
B, T, V = 6, 5, 4
IDS = torch.randint(0, 9, (B, T), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(T) < torch.tensor([[5], [4], [3], [5], [2], [1]])
LABELS = (IDS % V).masked_fill(~REAL, -100)


def softmax(z):
    return z.softmax(-1)


def log_softmax(z):
    return z.log_softmax(-1)


class Tagger(nn.Module):
    """A score of each class at each token, and at the end a function of them."""

    def __init__(self, end=None, classes=V, seed=1, padding=None):
        super().__init__()
        self.body = support.seeded(lambda: nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, classes)), seed).double()
        self.end, self.padding = end, padding

    def forward(self, input_ids, attention_mask=None):
        out = self.body(input_ids)
        out = out if self.end is None else self.end(out)
        return out if self.padding is None else torch.where(REAL[: len(out), : out.shape[1], None], out, self.padding)


class Mine(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.net = network

    def task(self, batch):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return F.cross_entropy(self.net(**inputs).flatten(0, 1), batch["labels"].flatten())

    def training_step(self, batch, batch_idx):
        return self.task(batch)

    def validation_step(self, batch, batch_idx):
        self.task(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data(length=T, mask=True):
    rows = [{"input_ids": IDS[i, :length], "labels": LABELS[i, :length]} for i in range(B)]
    if mask:
        rows = [row | {"attention_mask": REAL[i, :length].long()} for i, row in enumerate(rows)]
    return DataLoader(rows, batch_size=B)


def fit(door, student, teacher, losses, loader=None, **options):
    loader = data() if loader is None else loader
    if door == "module":
        options["optimizer"] = lambda weights: torch.optim.SGD(weights, lr=0.0)
        made, callbacks = DistillationModule(student, teacher, losses, **options), []
    else:
        made, callbacks = Mine(student), [DistillationCallback(teacher, losses, **options)]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(made, loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def refused(words, *args, **kwargs):
    with pytest.raises(ValueError, match=words):
        fit(*args, **kwargs)


def kd(**options):
    return [TokenKDLoss(shift=False, **options)]


def by_hand(student, teacher, temperature=1.0, length=T):
    with torch.no_grad():
        q, p = ((net.body(IDS[:, :length]) / temperature).log_softmax(-1) for net in (student, teacher))
    return float((p.exp() * (p - q)).sum(-1)[REAL[:, :length]].mean())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("padding", [None, 0.0, 7.0])
def test_a_token_teacher_that_ends_in_softmax_is_refused_and_served(door, padding):
    teacher = Tagger(softmax, seed=2, padding=padding)
    words = r"teacher's outputs \(\d, 5, 4\) are probabilities.*teacher_outputs='probabilities'"
    refused(words, door, Tagger(), teacher, kd())
    refused(words, door, Tagger(), teacher, [HybridLoss(kd())])
    metrics = fit(door, Tagger(), teacher, kd(temperature=2.0), teacher_outputs="probabilities")
    assert metrics["train/token_kd"] == pytest.approx(by_hand(Tagger(), teacher, 2.0), rel=1e-6)
    assert metrics["val/teacher_accuracy"] == fit(door, Tagger(), Tagger(seed=2), kd())["val/teacher_accuracy"]


@pytest.mark.parametrize("door", DOORS)
def test_padding_that_labels_alone_tell_does_not_disturb(door):
    teacher = Tagger(softmax, seed=2, padding=7.0)
    refused("are probabilities.*teacher_outputs='probabilities'", door, Tagger(), teacher, kd(), data(mask=False))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("padding", [None, 7.0])
@pytest.mark.parametrize("said", [None, "log_probabilities"])
def test_logarithms_of_probabilities_of_tokens_teach_as_their_logits(door, said, padding):
    teacher = Tagger(log_softmax, seed=2, padding=padding)
    metrics = fit(door, Tagger(), teacher, kd(temperature=2.0), teacher_outputs=said)
    assert metrics["train/token_kd"] == pytest.approx(by_hand(Tagger(), teacher, 2.0), rel=1e-6)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_rows_of_one_token_are_no_single_scores(kind):
    end = {"probabilities": softmax, "log_probabilities": log_softmax}[kind]
    teacher = Tagger(end, seed=2)
    metrics = fit("module", Tagger(), teacher, kd(), data(1), teacher_outputs=kind)
    assert metrics["train/token_kd"] == pytest.approx(by_hand(Tagger(), teacher, length=1), rel=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_a_student_of_tokens_that_ends_in_softmax_is_refused(door):
    words = "the student's outputs .* are probabilities.*Let the student end with the layer before"
    refused(words, door, Tagger(softmax), Tagger(seed=2), kd())


@pytest.mark.parametrize("door", DOORS)
def test_what_is_said_of_a_token_teacher_is_compared_with_what_there_is(door):
    for kind in ("probabilities", "log_probabilities", "label_probabilities"):
        words = f"teacher_outputs='{kind}', but the teacher's outputs"
        refused(words, door, Tagger(), Tagger(seed=2), kd(), teacher_outputs=kind)
    trusted = fit(door, Tagger(), Tagger(softmax, seed=2), kd(), teacher_outputs="logits")
    assert trusted["train/token_kd"] < by_hand(Tagger(), Tagger(seed=2))


def test_an_ensemble_of_tokens_refuses_a_member_that_ends_in_softmax():
    members = [Tagger(seed=2), Tagger(softmax, seed=3)]
    with pytest.raises(ValueError, match=r"member 1.*returns probabilities"):
        Ensemble(members)(IDS)
    columns = Tagger(lambda z: z.softmax(1), seed=3)  # of tokens the classes are last: such are logits
    assert Ensemble([members[0], columns])(IDS).shape == (B, T, V)


# Classes


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("length", [T, V, 3])
@pytest.mark.parametrize("classes", [4, 7])
def test_the_classes_of_a_token_teacher_are_named_on_the_last_axis(door, length, classes):
    order = [3, 0, 2, 1] if classes == V else [6, 0, 5, 1]
    student, teacher = Tagger(), Tagger(seed=2, classes=classes)
    metrics = fit(door, student, teacher, kd(), data(length), teacher_classes=order)
    with torch.no_grad():
        q = student.body(IDS[:, :length]).log_softmax(-1)
        p = teacher.body(IDS[:, :length])[..., order].log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum(-1)[REAL[:, :length]].mean()
    assert metrics["train/token_kd"] == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_classes_of_tokens_that_cannot_be_are_refused_in_words(door):
    words = r"names the class 7, but the teacher's logits .*\(B, T, C\) of tokens"
    refused(words, door, Tagger(), Tagger(seed=2, classes=7), kd(), teacher_classes=[7, 1, 2, 3])
    words = "names 3 classes, but the student has 4"
    refused(words, door, Tagger(), Tagger(seed=2, classes=7), kd(), teacher_classes=[6, 1, 2])
    words = "TokenKDLoss compares all of the student's classes.*Leave the option out"
    refused(words, door, Tagger(), Tagger(seed=2, classes=3), kd(), student_classes=[3, 1, 2])


class Names(Tagger):
    """A network that names its output layer, which may be taken into the loss."""

    def get_output_embeddings(self):
        return self.body[1]


def test_an_output_layer_is_not_taken_into_the_loss_past_the_named_classes():
    order = [3, 0, 2, 1]
    words = "fused=True.*classes are read in another order"
    refused(words, "module", Names(), Names(seed=2), kd(fused=True), teacher_classes=order)
    words = "fused=True.*outputs are no logits"
    refused(words, "module", Names(), Names(softmax, seed=2), kd(fused=True), teacher_outputs="probabilities")
