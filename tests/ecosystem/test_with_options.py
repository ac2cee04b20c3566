"""What is found of networks by themselves stands back behind the options of the doors, and goes with fused heads."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.engine.model_loss import ModelLoss
from lightning_kd.engine.task import count_of_labels, labels_of
from lightning_kd.losses import KDLoss, TokenKDLoss
from lightning_kd.teachers import Renormalize
from tests import support
from tests.ecosystem import by_hand
from tests.ecosystem.test_classes import bert, of_timm, pictures
from tests.ecosystem.test_hf_adapters import sentences
from tests.ecosystem.test_positions import gpt2, llama


def still(weights):
    return torch.optim.SGD(weights, lr=0.0)


def fitted(student, teacher, loss, *batches, **options):
    module = DistillationModule(student.train(), teacher, [loss], optimizer=still, **options)
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, support.batches(*batches), support.batches(batches[0]))
    return trainer.callback_metrics


def test_a_named_head_is_aligned_too():
    student, teacher = bert(["cat", "dog", "emu"], 0), bert(["emu", "Cat", "dog"], 1)
    batch = sentences()
    call = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        mine, its = student.eval()(**call).logits, teacher.eval()(**call).logits
    found = fitted(student, teacher, KDLoss(head="logits"), batch)["train/kd"]
    torch.testing.assert_close(found.double(), by_hand.kl(mine, its[:, [1, 2, 0]], 4.0), rtol=1e-4, atol=0.0)


def test_classes_that_are_named_are_not_aligned_again():
    student, teacher = bert(["cat", "dog"], 0), bert(["dog", "fox"], 1)
    batch = sentences() | {"labels": torch.tensor([0, 1, 0, 1])[: len(sentences()["input_ids"])]}
    call = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        mine, its = student.eval()(**call).logits, teacher.eval()(**call).logits
    found = fitted(student, teacher, KDLoss(), batch, teacher_classes=[1, 0])["train/kd"]
    torch.testing.assert_close(found.double(), by_hand.kl(mine, its[:, [1, 0]], 4.0), rtol=1e-4, atol=0.0)


def test_a_view_of_the_teacher_is_not_asked_for_again(caplog):
    student, teacher = of_timm("resnet10t"), of_timm("resnet10t", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    loader = torch.utils.data.DataLoader(pictures(), batch_size=4)
    view = Renormalize.between(student, teacher)
    module = DistillationModule(student, teacher, [KDLoss()], teacher_inputs=view)
    with caplog.at_level("INFO"):
        support.trainer(max_epochs=1).fit(module, loader, loader)
    assert "normalised" not in caplog.text


@pytest.mark.parametrize("teacher", [llama, gpt2])
def test_documents_that_come_later_with_heads_inside_the_loss(teacher):
    ids = torch.tensor([[7, 5, 9, 3, 8], [3, 8, 2, 11, 6]])
    one = {"input_ids": ids, "position_ids": torch.arange(5).expand(2, 5)}
    several = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])}
    fused, whole = (
        fitted(llama(0), teacher(1), TokenKDLoss(fused=fused), one, several)["train/token_kd"]
        for fused in (True, False)
    )
    torch.testing.assert_close(fused, whole, rtol=1e-4, atol=1e-6)


def test_how_many_labels_the_own_loss_is_a_mean_over():
    target = torch.tensor([[3, -100, 4], [5, 1, -100]])
    assert [int(labels_of(ModelLoss(net), target)) for net in (llama(), bert(["a"], 0, "TokenClassification"))] == [
        2,
        4,
    ]
    assert count_of_labels(ModelLoss(llama()), target, rows=2) == 2
    assert labels_of(ModelLoss(bert(["a", "b"], 0)), torch.tensor([0, 1])) is None
    assert labels_of(ModelLoss(nn.Linear(1, 1)), target) is None  # which mean it is, is not known
