"""All strategies by ``create()`` on pairs of networks that nobody here wrote; each value is computed by hand."""

import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses import ABLoss
from lightning_kd.losses.strategies import DistillationStrategyType as Strategy
from tests import support
from tests.ecosystem import by_hand, zoo

CLASSES = zoo.CLASSES
ZERO = {"lr": 0.0}


def images(side=64, count=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, side, side, generator=generator)
    return TensorDataset(x, torch.arange(count) % CLASSES)


def of_torchvision(name, **options):
    return still(torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options))


def of_timm(name, **options):
    return still(timm.create_model(name, pretrained=False, num_classes=CLASSES, **options))


def still(net):
    """Without dropout, so that two calls agree."""
    for layer in net.modules():
        if isinstance(layer, nn.Dropout | nn.modules.dropout.AlphaDropout) or type(layer).__name__ == "StochasticDepth":
            layer.p = 0.0
        elif type(layer).__name__ == "DropPath":
            layer.drop_prob = 0.0
    return net


def swin(width):
    sizes = {"img_size": 56, "window_size": 7, "embed_dim": width, "depths": (1, 1, 2), "num_heads": (1, 2, 4)}
    return of_timm("swin_tiny_patch4_window7_224", **sizes)


class Fitted:
    """A step of a fit whose learning rate is 0: what it logged, and what the layers of both networks return."""

    def __init__(self, student, teacher, loss, data, **options):
        torch.manual_seed(3)
        settings = {"task_loss": nn.CrossEntropyLoss(), "optimizer": lambda weights: torch.optim.SGD(weights, **ZERO)}
        self.module = DistillationModule(student, teacher, [loss], **settings | options)
        self.before = {}
        trainer = support.trainer(max_epochs=1, limit_val_batches=0, limit_train_batches=1, callbacks=[self.remember()])
        self.batch = next(iter(DataLoader(data, batch_size=4)))
        trainer.fit(self.module, *[DataLoader(data, batch_size=4)] * 2)
        ((self.name, self.loss),) = self.module.losses.items()
        self.logged = trainer.callback_metrics
        self.value = trainer.callback_metrics[f"train/{self.name}"].double()

    def remember(self):
        """A callback that copies the state before the step."""
        return LambdaCallback(
            on_train_batch_start=lambda _, module, *__: self.before.update(
                {name: value.clone() for name, value in module.state_dict().items()}
            )
        )

    def read(self, student=None, teacher=None):
        """What the layers that the loss has chosen return, the student training, the teacher not."""
        loss = self.loss
        sides = []
        for net, layers, training in (
            (self.module.student, student or loss.student_layers, True),
            (self.module.teacher, teacher or loss.teacher_layers, False),
        ):
            if isinstance(net, nn.Module):
                sides.append(by_hand.returned(net.train(training), layers, self.call)[0])
        return sides if len(sides) == 2 else sides[0]

    def call(self, net):
        if isinstance(self.batch, dict):
            return net(**{name: value for name, value in self.batch.items() if name != "labels"}).logits
        return net(self.batch[0])

    def outputs(self):
        return [
            by_hand.returned(net.train(training), [], self.call)[1]
            for net, training in ((self.module.student, True), (self.module.teacher, False))
        ]


def close(value, expected, tolerance=2e-4):
    assert expected.abs() > 1e-7  # not 0 by accident
    torch.testing.assert_close(value, expected.detach().double(), rtol=tolerance, atol=1e-8)


def test_response():
    fitted = Fitted(of_torchvision("resnet18"), of_timm("convnext_atto"), Strategy.RESPONSE_BASED.create(), images())
    close(fitted.value, by_hand.kl(*fitted.outputs(), temperature=fitted.loss.temperature))


def test_response_of_a_segmentation_network_with_several_outputs():
    class Segmentation(DistillationModule):
        def logits_of(self, output):
            return output["out"]

    make = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    student, teacher = (still(make(weights=None, weights_backbone=None, num_classes=CLASSES)) for _ in range(2))
    x = torch.randn(4, 3, 32, 32)
    module = Segmentation(
        student,
        teacher,
        [Strategy.RESPONSE_BASED.create()],
        task_loss=nn.CrossEntropyLoss(),
        optimizer=lambda weights: torch.optim.SGD(weights, **ZERO),
    )
    trainer = support.trainer(max_epochs=1, limit_val_batches=0)
    data = TensorDataset(x, torch.randint(0, CLASSES, (4, 32, 32)))
    trainer.fit(module, *[DataLoader(data, batch_size=4)] * 2)
    with torch.no_grad():
        outputs = (net(x)["out"].movedim(1, -1).flatten(0, 2) for net in (student.train(), teacher.eval()))
    temperature = module.losses["kd"].temperature
    close(trainer.callback_metrics["train/kd"].double(), by_hand.kl(*outputs, temperature=temperature))


def test_features():
    fitted = Fitted(
        of_torchvision("mobilenet_v3_small"), of_timm("resnet18"), Strategy.FEATURE_BASED.create(), images()
    )
    assert (fitted.loss.student, fitted.loss.teacher) == ("features", "layer4")
    (student,), (teacher,) = fitted.read()
    close(fitted.value, (fitted.loss.projectors[0](student) - teacher).square().mean())


def test_attention_over_the_positions_of_swin():
    fitted = Fitted(swin(16), swin(32), Strategy.ATTENTION_BASED.create(), images(56))
    student, teacher = fitted.read()
    assert [one.shape[3] for one in student] == [16, 32, 64]  # channels last
    close(fitted.value, sum(by_hand.attention(s, t) for s, t in zip(student, teacher, strict=True)))


def test_attention_between_a_convolutional_network_and_a_transformer():
    teacher = of_timm("vit_tiny_patch16_224", img_size=64, depth=4)
    fitted = Fitted(of_timm("resnet18"), teacher, Strategy.ATTENTION_BASED.create(), images())
    assert fitted.loss.teacher == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    expected = 0.0
    for s, t in zip(*fitted.read(), strict=True):
        patches = t[:, 1:].transpose(1, 2).unflatten(2, (4, 4))  # without the class token
        size = [min(sides) for sides in zip(s.shape[2:], patches.shape[2:], strict=True)]
        s, t = (nn.functional.adaptive_avg_pool2d(one, size).movedim(1, -1) for one in (s, patches))
        expected += by_hand.attention(s, t)
    close(fitted.value, expected)


def test_relations_of_deit_and_vit():
    sizes = {"img_size": 64, "depth": 2}
    pair = (of_timm(f"{name}_tiny_patch16_224", **sizes) for name in ("deit", "vit"))
    fitted = Fitted(*pair, Strategy.RELATION_BASED.create(), images())
    (student,), (teacher,) = fitted.read()
    assert student.shape == (4, 192)  # the class token that the head reads
    close(fitted.value, by_hand.relations(student, teacher))


def test_contrast():
    data = Indexed(TensorDataset(images(count=2).tensors[0], torch.tensor([0, 1])))  # one negative for each
    loss = Strategy.CONTRASTIVE_BASED.create(negatives=3, dim=8)
    fitted = Fitted(of_torchvision("shufflenet_v2_x0_5"), of_torchvision("resnet18"), loss, data)
    (student,), (teacher,) = fitted.read()
    unit = nn.functional.normalize
    embedded = (fitted.loss.student_embedding(student), fitted.loss.teacher_embedding(teacher))
    s, t = (unit(one.double()) for one in embedded)
    banks = [fitted.before[f"losses.{fitted.name}.{role}_bank"].double() for role in ("student", "teacher")]
    expected = 0.0
    for anchors, bank in ((s, banks[1]), (t, banks[0])):
        scores = torch.stack([(anchors[i] @ bank[[i, 1 - i, 1 - i, 1 - i]].T / 0.07).exp() for i in (0, 1)])
        chances, floor = scores / (scores.mean() * 2), 3 / 2
        own, others = chances[:, 0], chances[:, 1:]
        expected -= (own / (own + floor)).log().mean() + (floor / (others + floor)).log().sum(1).mean()
    close(fitted.value, expected)


def test_similarity():
    pair = of_timm("efficientnet_b0"), of_torchvision("convnext_tiny")
    fitted = Fitted(*pair, Strategy.SIMILARITY_PRESERVING.create(), images(32))
    (student,), (teacher,) = fitted.read()
    close(fitted.value, by_hand.similarity(student, teacher))


def test_flow():
    pair = of_torchvision("resnet18"), of_torchvision("resnet34")
    fitted = Fitted(*pair, Strategy.FLOW_BASED.create(stage_length=0), images(96))
    expected = 0.0
    student, teacher = fitted.read()
    for i in range(3):
        expected += (by_hand.flow(*student[i : i + 2]) - by_hand.flow(*teacher[i : i + 2])).square().mean()
    close(fitted.value, expected)


@pytest.mark.parametrize("padding", [0, 5])
def test_neighbours_of_sentences(padding):
    student, _ = zoo.of_transformers("distilbert", dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher, _ = zoo.of_transformers("bert", **dry)
    ids = torch.randint(1, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    sentences = [
        {
            "input_ids": nn.functional.pad(i, (0, padding)),
            "attention_mask": nn.functional.pad(m, (0, padding)),
            "labels": 1,
        }
        for i, m in zip(ids, mask, strict=True)
    ]
    fitted = Fitted(student, teacher, Strategy.PROBABILISTIC_TRANSFER.create(), sentences)
    assert (fitted.loss.student, fitted.loss.teacher) == ("pre_classifier", "bert.pooler")
    fitted.batch = {"input_ids": ids, "attention_mask": mask}
    (student,), (teacher,) = fitted.read()
    close(fitted.value, by_hand.neighbours(student, teacher), 2e-3)


def test_padding_changes_nothing_in_features():
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ids = torch.randint(1, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    values = []
    for padding in (0, 10):
        torch.manual_seed(1)
        pair = [zoo.of_transformers("bert", **dry)[0] for _ in range(2)]
        padded, mask = (nn.functional.pad(one, (0, padding)) for one in (ids, torch.ones_like(ids)))
        sentences = [{"input_ids": i, "attention_mask": m, "labels": 1} for i, m in zip(padded, mask, strict=True)]
        fitted = Fitted(*pair, Strategy.SIMILARITY_PRESERVING.create(), sentences)
        assert fitted.loss.student == "bert.encoder.layer.5"
        values.append(fitted.value)
    close(values[1], values[0])


def test_information():
    fitted = Fitted(of_timm("resnet18"), of_timm("resnet10t"), Strategy.VARIATIONAL_INFORMATION.create(), images())
    expected = 0.0
    for s, t, regressor, scale in zip(*fitted.read(), fitted.loss.regressors, fitted.loss.log_scales, strict=True):
        expected += by_hand.information(regressor, scale, s, t)
    close(fitted.value, expected)


def test_factors():
    loss = Strategy.FACTOR_TRANSFER.create(stage_length=0)
    fitted = Fitted(of_timm("mobilenetv2_050"), of_timm("resnet18"), loss, images())
    (student,), (teacher,) = fitted.read()
    factors = fitted.loss.translators[0](student), fitted.loss.paraphrasers[0](teacher)
    s, t = (one.double() / one.double().flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for one in factors)
    close(fitted.value, (s - t).abs().mean())


def test_selectivity():
    fitted = Fitted(
        of_timm("mnasnet_small"), of_timm("efficientnet_b0"), Strategy.NEURON_SELECTIVITY.create(), images()
    )
    student, teacher = fitted.read()
    assert [s.shape[2:] for s in student] == [t.shape[2:] for t in teacher]
    pairs = [by_hand.selectivity(s, t) for s, t in zip(student, teacher, strict=True) if s.shape[2] > 1]
    close(fitted.value, sum(pairs))


def test_itself():
    fitted = Fitted(of_torchvision("resnet18"), None, Strategy.SELF_DISTILLATION.create(), images())
    *early, last = by_hand.returned(
        fitted.module.student.train(), ["layer1", "layer2", "layer3", "layer4"], fitted.call
    )[0]
    _, logits = by_hand.returned(fitted.module.student, [], fitted.call)
    target = fitted.batch[1]
    expected = 0.0
    for classifier, maps in zip(fitted.loss.classifiers, early, strict=True):
        inner = classifier.bottleneck(maps).mean((2, 3))
        scores = classifier.linear(inner)
        right = scores.double().softmax(1)[range(4), target]
        hint = (inner - last.mean((2, 3))).double().square().sum(1).mean()
        expected += -0.7 * right.log().mean() + 0.3 * by_hand.kl(scores, logits, 3.0) + 0.03 * hint
    close(fitted.value, expected)


def test_hybrid():
    fitted = Fitted(of_torchvision("resnet18"), of_timm("regnetx_002"), Strategy.HYBRID.create(), images())
    kd, hint = fitted.loss.losses
    (student,), (teacher,) = fitted.read(hint.student_layers, hint.teacher_layers)
    soft = by_hand.kl(*fitted.outputs(), temperature=kd.temperature)
    close(fitted.value, 0.9 * soft + (hint.projectors[0](student) - teacher).square().mean())


def test_every_strategy_is_here():
    names = set(re.findall(r"Strategy\.([A-Z_]+)\.create", Path(__file__).read_text()))
    assert names == {strategy.name for strategy in Strategy}


PAIRS_OF_BOUNDARIES = {
    "resnet18 after resnet34": ("resnet18", "resnet34", {}, ["layer1", "layer2", "layer3", "layer4"]),
    "resnet18 after wide resnet50": ("resnet18", "wide_resnet50_2", {}, ["layer1", "layer2", "layer3", "layer4"]),
    "with all connectors": ("resnet18", "resnet34", {"connector": "all"}, ["layer1", "layer2", "layer3", "layer4"]),
}


@pytest.mark.filterwarnings("ignore:The first stage takes 1 epoch")
@pytest.mark.parametrize("name", PAIRS_OF_BOUNDARIES)
def test_boundaries_in_the_first_stage(name):
    learner, guide, options, stages = PAIRS_OF_BOUNDARIES[name]
    fitted = Fitted(of_torchvision(learner), of_timm(guide), ABLoss(stage_length=1, **options), images())
    # before the last activation of each stage: bn2 with the shortcut added, which the last block's relu then takes
    for layers, relu in ((fitted.loss.student_layers, "relu"), (fitted.loss.teacher_layers, "act[23]")):
        for layer, stage in zip(layers, stages, strict=True):
            assert re.fullmatch(rf"<input of {stage}\.\d\.{relu}>", layer)
    total, students, teachers = 0.0, *fitted.read()
    for i, (s, t, connector) in enumerate(zip(students, teachers, fitted.loss.projectors, strict=True)):
        differ = s.shape[1:] != t.shape[1:]
        assert isinstance(connector, nn.Identity) == (not differ and "connector" not in options)
        if differ or options:  # a 1x1 convolution and a BatchNorm with the batch's own statistics, by hand
            convolved = torch.einsum("oi,bihw->bohw", connector.conv.weight[:, :, 0, 0].double(), s.double())
            variance, mean = torch.var_mean(convolved, dim=(0, 2, 3), correction=0, keepdim=True)
            norm = connector.bn
            scale, shift = (one.double().view(1, -1, 1, 1) for one in (norm.weight, norm.bias))
            s = (convolved - mean) / (variance + norm.eps).sqrt() * scale + shift
        s, t = s.double(), t.double()
        fires = (s + 1).square() * ((s > -1) & (t <= 0)) + (s - 1).square() * ((s <= 1) & (t > 0))
        total += fires.sum() / len(s) / 2 ** (len(students) - 1 - i) * 3 / 1000  # the authors' loss_balance of stages
    close(fitted.value, total)
    assert "train/task" not in fitted.logged  # in the first stage the task waits
