"""A student with adapters is taught by its own base, and saved as any other, through both doors."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.hf import adapters_off
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.projectors import IdentityProjector
from tests import support
from tests.ecosystem import by_hand, zoo

# peft 0.21 asks transformers 5.24 by a name that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
WET = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.0}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LAYER = "base_model.model.bert.encoder.layer.3"


def with_adapters(base, frozen=False):
    torch.manual_seed(1)
    plan = LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.0, init_lora_weights=False)
    student = get_peft_model(base, plan)
    if frozen:
        name = next(n for n, _ in student.named_parameters() if "lora_A" in n)
        student.get_parameter(name).requires_grad_(False)
    return student


def bert(**options):
    torch.manual_seed(0)
    return zoo.of_transformers("bert", initializer_range=0.3, **options)[0]


def sentences():
    torch.manual_seed(2)
    ids = torch.randint(1, 40, (4, 9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4) % zoo.CLASSES}


class Theirs(LightningModule):
    def __init__(self, net, lr=0.0):
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.net(**batch)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=self.lr)


def fit(door, student, losses, lr=0.0, epochs=1):
    data = support.batches(sentences())
    if door == "module":
        net = DistillationModule(
            student,
            adapters_off(student),
            losses,
            task_loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.SGD, lr=lr),
        )
        callbacks = []
    else:
        net, callbacks = Theirs(student, lr), [DistillationCallback(adapters_off(student), losses)]
    trainer = support.trainer(max_epochs=epochs, callbacks=callbacks)
    trainer.fit(net, data, data)
    return trainer.callback_metrics


@pytest.mark.parametrize("door", ["module", "callback"])
def test_the_base_teaches_what_a_copy_of_it_would(door):
    base, student = bert(**DRY), with_adapters(bert(**DRY))
    batch = sentences()
    call = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    (mine,), output = by_hand.returned(student.train(), [LAYER], lambda net: net(**call))
    (its,), taught = by_hand.returned(base.eval(), [LAYER.removeprefix("base_model.model.")], lambda net: net(**call))
    assert (mine - its).abs().max() > 0.1
    found = fit(door, student, [KDLoss(), HintLoss(LAYER, LAYER, projector=IdentityProjector())])
    torch.testing.assert_close(found["train/hint"].double(), (mine - its).double().square().mean(), rtol=1e-4, atol=0.0)
    kd = by_hand.kl(output.logits, taught.logits, 4.0)
    torch.testing.assert_close(found["train/kd"].double(), kd, rtol=1e-3, atol=0.0)
    agreement = (output.logits.argmax(1) == taught.logits.argmax(1)).double().mean()
    torch.testing.assert_close(found["val/agreement"].double(), agreement)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_the_student_keeps_its_dropout_and_what_trains(door):
    student = with_adapters(bert(**WET), frozen=True)
    trains = {name: p.requires_grad for name, p in student.named_parameters()}
    modes, before = [], support.snapshot(student)
    inner = student.base_model.model.bert.encoder.layer[0].output.dropout
    inner.register_forward_hook(lambda part, args, out: modes.append((part.training, torch.is_grad_enabled())))
    fit(door, student, [KDLoss(weight=10.0)], lr=0.5, epochs=2)
    assert set(modes[-20:]) >= {(False, False)}
    assert (True, True) in modes
    assert (True, False) not in modes
    assert {name: p.requires_grad for name, p in student.named_parameters()} == trains
    after = student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name and trains[name] for name in changed)
    assert not any(part._forward_hooks for part in student.modules() if part is not inner)


def test_the_base_computes_no_loss_of_its_own():
    student = with_adapters(bert(**DRY))
    teacher, batch = adapters_off(student), sentences()
    module = DistillationModule(student, teacher, [KDLoss()])
    _, kwargs = module.teacher_inputs(batch, (), batch)
    assert sorted(kwargs) == ["attention_mask", "input_ids"]


def test_a_plain_network_has_no_adapters():
    with pytest.raises(TypeError, match="expected a student with adapters of PEFT"):
        adapters_off(bert())


@pytest.mark.parametrize("door", ["module", "callback"])
def test_the_student_is_saved_as_any_other(door, tmp_path):
    student = with_adapters(bert(**DRY))
    fit(door, student, [KDLoss()], lr=0.1)
    student.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(**DRY), tmp_path)
    batch = sentences()
    with torch.no_grad():
        expected = student.eval()(batch["input_ids"]).logits
        torch.testing.assert_close(again.eval()(batch["input_ids"]).logits, expected)


def test_a_plain_student_is_saved_too(tmp_path):
    student = bert(**DRY)
    data = support.batches(sentences())
    module = DistillationModule(student, copy.deepcopy(student), [KDLoss()], task_loss=nn.CrossEntropyLoss())
    support.trainer(max_epochs=1).fit(module, data, data)
    student.save_pretrained(tmp_path)
    support.assert_same_weights(type(student).from_pretrained(tmp_path), student)


@pytest.mark.parametrize("what", ["a norm", "an embedding", "a bias of LoRA's layers"])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_base_that_trains_is_refused(door, what):
    student = with_adapters(bert(**DRY))
    of = {"a norm": "LayerNorm.weight", "an embedding": "word_embeddings.weight"}.get(what, "query.base_layer.bias")
    name = next(name for name, _ in student.named_parameters() if name.endswith(of))
    student.get_parameter(name).requires_grad_(True)
    with pytest.raises(ValueError, match=f"weights of the base train, such as '{name}'.*modules_to_save"):
        fit(door, student, [KDLoss()])
