"""Other tasks and other axes: detection, series, volumes, sequences, graphs, numbers, labels, embeddings, by hand."""

import pytest
import torch
import torchvision
from lightning.pytorch import LightningModule
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import TensorDataset

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import EmbeddingLoss, KDLoss, MultiLabelKDLoss, RegressionKDLoss
from lightning_kd.losses.strategies import DistillationStrategyType as Strategy
from tests import support
from tests.ecosystem import by_hand, zoo
from tests.ecosystem.test_strategies import Fitted, close, images, of_timm, of_torchvision


def test_a_detector_through_the_callback():
    """The pyramids of two detectors, whose training step is their own."""

    def detector(seed):
        torch.manual_seed(seed)
        make = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
        return make(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64)

    class Detection(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = detector(0)

        def training_step(self, batch, batch_idx):
            pictures, boxes = batch
            return sum(self.net(pictures, boxes).values())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    class Backbones(DistillationCallback):
        def teacher_inputs(self, batch, args, kwargs):
            return (batch[0],), {}

    pictures = [torch.rand(3, 64, 64) for _ in range(2)]
    boxes = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in range(2)]
    module, teacher = Detection(), detector(1)
    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    teacher(pictures, boxes)  # a random network's features vanish without statistics
    callback = Backbones(
        teacher,
        [Strategy.ATTENTION_BASED.create(student="backbone.body.13", teacher="backbone.body.13", layout="NCHW")],
    )
    trainer = support.trainer(max_epochs=1, callbacks=[callback])
    trainer.fit(module, support.batches((pictures, boxes)))
    expected = []
    for net, training in ((module.net, True), (teacher, False)):
        call = (lambda net: net(pictures, boxes)) if training else (lambda net: net(pictures))
        (maps,), _ = by_hand.returned(net.train(training), ["backbone.body.13"], call)
        expected.append(maps.movedim(1, -1))
    close(trainer.callback_metrics["train/at"].double(), by_hand.attention(*expected))


class Series(nn.Module):
    """Convolutions over time, (B, C, L)."""

    def __init__(self, width):
        super().__init__()
        self.one = nn.Sequential(nn.Conv1d(2, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1))
        self.two = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 1))
        self.head = nn.Linear(width, zoo.CLASSES)

    def forward(self, x):
        return self.head(self.two(self.one(x)).mean(2))


def test_a_series_has_its_channels_in_the_middle():
    data = TensorDataset(torch.randn(4, 2, 7), torch.arange(4) % zoo.CLASSES)
    fitted = Fitted(Series(7), Series(5), Strategy.FEATURE_BASED.create(), data)
    (student,), (teacher,) = fitted.read()
    assert fitted.loss.student == "two"
    projected = fitted.loss.projectors[0](student.transpose(1, 2))  # the positions beside the batch, channels last
    close(fitted.value, (projected - teacher.transpose(1, 2)).square().mean())


def test_volumes():
    make = torchvision.models.video.r3d_18
    pair = (make(weights=None, num_classes=zoo.CLASSES) for _ in range(2))
    data = TensorDataset(torch.randn(4, 3, 4, 32, 32), torch.arange(4) % zoo.CLASSES)
    fitted = Fitted(*pair, Strategy.SIMILARITY_PRESERVING.create(), data)
    (student,), (teacher,) = fitted.read()
    assert fitted.loss.student == "layer4"
    close(fitted.value, by_hand.similarity(student, teacher))


class Sequence(nn.Module):
    """An LSTM that has time first, (L, B, C)."""

    def __init__(self, width):
        super().__init__()
        self.lstm = nn.LSTM(4, width)
        self.head = nn.Linear(width, zoo.CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(0, 1))[0][-1])


def test_sequences_with_time_first():
    data = TensorDataset(torch.randn(4, 6, 4), torch.arange(4) % zoo.CLASSES)
    fitted = Fitted(
        Sequence(8), Sequence(12), Strategy.SIMILARITY_PRESERVING.create(student="lstm", teacher="lstm"), data
    )
    (student,), (teacher,) = fitted.read()
    close(fitted.value, by_hand.similarity(student.transpose(0, 1), teacher.transpose(0, 1)))


class Graph(nn.Module):
    """Two graph convolutions on a graph that is one batch: a row is a node."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, width), nn.Linear(width, zoo.CLASSES)

    def forward(self, nodes, edges):
        return edges @ self.outer((edges @ self.inner(nodes)).relu())


def test_the_nodes_of_a_graph():
    edges = torch.eye(6) * 0.5 + torch.rand(6, 6) / 12
    batch = {"nodes": torch.randn(6, 5), "edges": edges, "labels": torch.arange(6) % zoo.CLASSES}
    student, teacher = Graph(4), Graph(8)
    module = DistillationModule(
        student,
        teacher,
        [KDLoss(), Strategy.PROBABILISTIC_TRANSFER.create(student="inner", teacher="inner")],
        task_loss=nn.CrossEntropyLoss(),
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
    )
    trainer = support.trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(module, *[support.batches(batch)] * 2)
    call = {"nodes": batch["nodes"], "edges": edges}
    kd = by_hand.kl(student(**call), teacher(**call), module.losses["kd"].temperature)
    close(trainer.callback_metrics["train/kd"].double(), kd)
    pkt = by_hand.neighbours(student.inner(batch["nodes"]), teacher.inner(batch["nodes"]))
    close(trainer.callback_metrics["train/pkt"].double(), pkt, 2e-3)


def test_regression():
    data = TensorDataset(images().tensors[0], torch.randn(4, zoo.CLASSES))
    pair = of_torchvision("mobilenet_v3_small"), of_torchvision("resnet18")
    fitted = Fitted(*pair, RegressionKDLoss(), data, task_loss=nn.MSELoss())
    student, teacher = fitted.outputs()
    close(fitted.value, (student - teacher).double().square().mean())


def test_several_labels():
    data = TensorDataset(images().tensors[0], torch.randint(0, 2, (4, zoo.CLASSES)).float())
    pair = of_timm("resnet10t"), of_timm("convnext_atto")
    fitted = Fitted(*pair, MultiLabelKDLoss(), data, task_loss=nn.BCEWithLogitsLoss())
    p, q = (one.double().sigmoid() for one in fitted.outputs())
    divergence = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    close(fitted.value, divergence.sum(1).mean(), 1e-3)


def test_embeddings():
    pair = of_timm("vit_tiny_patch16_224", img_size=64, depth=2), of_timm("resnet18")
    fitted = Fitted(*pair, EmbeddingLoss(), images())
    assert (fitted.loss.student, fitted.loss.teacher) == ("fc_norm", "global_pool")
    (student,), (teacher,) = fitted.read()
    projected = next(iter(fitted.loss.projectors))(student)
    close(fitted.value, (1 - torch.cosine_similarity(projected.double(), teacher.double())).mean())


# peft 0.21 asks transformers 5.24 by a name that it deprecates
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_student_with_adapters():
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base, teacher = (zoo.of_transformers("bert", **dry)[0] for _ in range(2))
    student = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))
    ids = torch.randint(1, 40, (4, 9))
    sentences = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": 1} for i in ids]
    fitted = Fitted(student, teacher, Strategy.SIMILARITY_PRESERVING.create(), sentences)
    assert fitted.loss.student == "base_model.model.bert.encoder.layer.5"
    (mine,), (its,) = fitted.read()
    close(fitted.value, by_hand.similarity(mine, its))
