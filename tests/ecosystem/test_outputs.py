"""Outputs of torchvision's, timm's and transformers' networks: heads by name, embeddings, the teacher's inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from lightning_kd import DistillationModule  # noqa: E402
from lightning_kd.losses import EmbeddingLoss, KDLoss, RKDLoss  # noqa: E402
from lightning_kd.teachers import Renormalize  # noqa: E402
from tests import support  # noqa: E402

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def value_of(module, batch):
    module.prepare(batch)
    module.training_step(batch, 0)
    return {name: float(value) for name, value in module.run.log.flush().items()}


def kl(student, teacher, temperature=4.0):
    student, teacher = (F.log_softmax(z.double() / temperature, 1) for z in (student, teacher))
    positions = student.numel() / student.shape[0] / student.shape[1]
    return float(F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2 / positions)


def segmentation(seed):
    def make():
        net = torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=3, aux_loss=True
        )
        for part in net.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        return net

    return support.seeded(make, seed)


def test_segmentation_networks_have_a_main_and_a_side_output():
    student, teacher = segmentation(1), segmentation(2)
    target = torch.randint(0, 3, (4, 32, 32), generator=torch.Generator().manual_seed(1))
    losses = [KDLoss(), KDLoss(head="aux")]
    module = DistillationModule(student, teacher, losses, task_loss=nn.CrossEntropyLoss(), logits="out")
    with torch.no_grad():
        z, t = segmentation(1).train()(IMAGES), teacher.eval()(IMAGES)
    values = value_of(module, (IMAGES, target))
    assert values["kd"] == pytest.approx(kl(z["out"], t["out"]), rel=1e-3)
    assert values["kd_2"] == pytest.approx(kl(z["aux"], t["aux"]), rel=1e-3)
    assert values["task"] == pytest.approx(float(F.cross_entropy(z["out"], target)), rel=1e-4)


def test_deit_learns_the_task_by_one_head_and_the_teacher_by_the_other():
    def deit():
        return timm.create_model(
            "deit_tiny_distilled_patch16_224", pretrained=False, num_classes=3, img_size=32, depth=2
        )

    student, teacher = (
        support.seeded(deit, 1),
        support.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), 2),
    )
    student.set_distilled_training(True)
    target = torch.tensor([0, 1, 2, 0])
    given = {"task_loss": nn.CrossEntropyLoss()}
    module = DistillationModule(student, teacher, [KDLoss(head=1)], logits=0, **given)
    module.student.train()
    values = value_of(module, (IMAGES, target))
    with torch.no_grad():
        (main, distilled), t = student.train()(IMAGES), teacher(IMAGES)
    assert values["kd"] == pytest.approx(kl(distilled, t), rel=1e-4)
    assert values["task"] == pytest.approx(float(F.cross_entropy(main, target)), rel=1e-4)


def bert(width, seed):
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return support.seeded(lambda: transformers.BertModel(config), seed)


def test_sentence_encoders_are_compared_by_their_pooled_output():
    ids = torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    student, teacher = bert(8, 1), bert(8, 2)
    losses = [EmbeddingLoss(), RKDLoss()]
    module = DistillationModule(student, teacher, losses, logits="pooler_output")
    values = value_of(module, batch)
    assert [loss.student for loss in losses] == ["<output>"] * 2
    with torch.no_grad():
        expected = 1 - F.cosine_similarity(student(**batch).pooler_output, teacher(**batch).pooler_output)
    assert values["embedding"] == pytest.approx(float(expected.mean()), rel=1e-4)
    named = EmbeddingLoss("<output.pooler_output>", "<output.pooler_output>")
    module = DistillationModule(student, teacher, [named])
    assert value_of(module, batch)["embedding"] == pytest.approx(float(expected.mean()), rel=1e-4)
    words = r"which of its tensors is meant is not known \(it has \['last_hidden_state', 'pooler_output'\]"
    with pytest.raises(ValueError, match=words):
        DistillationModule(student, teacher, [EmbeddingLoss()]).prepare(batch)


def test_the_statistics_of_timms_models():
    student = support.seeded(lambda: timm.create_model("resnet18", pretrained=False, num_classes=3), 1)
    teacher = support.seeded(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1), 2)
    module = DistillationModule(student, teacher, [KDLoss()], teacher_inputs=Renormalize())
    mean, std = (torch.tensor(student.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert teacher.pretrained_cfg["mean"] == (0.5, 0.5, 0.5) != student.pretrained_cfg["mean"]
    values = value_of(module, IMAGES)
    with torch.no_grad():
        t = teacher.eval()((IMAGES * std + mean - 0.5) / 0.5)
        z = support.seeded(lambda: timm.create_model("resnet18", pretrained=False, num_classes=3), 1).train()(IMAGES)
    assert values["kd"] == pytest.approx(kl(z, t), rel=1e-3)
