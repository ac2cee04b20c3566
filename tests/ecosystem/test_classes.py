"""Classes in another order are aligned by name, other classes are refused, other images are told."""

import json
from functools import partial

import pytest
import timm
import torch
import transformers as hf
from torch import nn
from torch.utils.data import TensorDataset

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import Renormalize
from tests import support
from tests.ecosystem import by_hand, zoo
from tests.ecosystem.test_hf_adapters import Theirs, sentences

DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}


def bert(names, seed, kind="SequenceClassification"):
    torch.manual_seed(seed)
    config = hf.BertConfig(vocab_size=50, id2label=dict(enumerate(names)), **zoo.WIDE | DRY)
    return getattr(hf, f"BertFor{kind}")(config)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_classes_are_aligned_by_name(door):
    student, teacher = bert(["cat", "dog", "emu"], 0), bert(["emu", "Cat", "dog"], 1)
    batch = sentences()
    call = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        mine, its = student.eval()(**call).logits, teacher.eval()(**call).logits
    its = torch.stack([its[:, 1], its[:, 2], its[:, 0]], 1)
    data = support.batches(batch)
    if door == "module":
        still = partial(torch.optim.SGD, lr=0.0)
        net = DistillationModule(student.train(), teacher, [KDLoss()], task_loss=nn.CrossEntropyLoss(), optimizer=still)
        callbacks = []
    else:
        net, callbacks = Theirs(student.train()), [DistillationCallback(teacher, [KDLoss()])]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    trainer.fit(net, data, data)
    found = trainer.callback_metrics
    torch.testing.assert_close(found["train/kd"].double(), by_hand.kl(mine, its, 4.0), rtol=1e-4, atol=0.0)
    right = (its.argmax(1) == batch["labels"]).double().mean()
    torch.testing.assert_close(found["val/teacher_accuracy"].double(), right)
    agreement = (its.argmax(1) == mine.argmax(1)).double().mean()
    torch.testing.assert_close(found["val/agreement"].double(), agreement)
    if door == "module":
        again = support.trainer(max_epochs=1).validate(net, data, verbose=False)[0]
        assert again["val/teacher_accuracy"] == pytest.approx(float(right))


def test_other_classes_are_refused():
    module = DistillationModule(bert(["cat", "dog"], 0), bert(["dog", "fox"], 1), [KDLoss()])
    data = support.batches(sentences())
    told = r"the student alone has \['cat'\], the teacher alone \['fox'\].*student.config.id2label = "
    with pytest.raises(ValueError, match=told):
        support.trainer(max_epochs=1).fit(module, data, data)


@pytest.mark.parametrize(
    ("mine", "its"), [(["cat", "dog"], ["LABEL_0", "LABEL_1"]), (["a", "b"], ["A ", "b"]), (["a", "a"], ["a", "b"])]
)
def test_what_does_not_tell_stays_as_it_is(mine, its):
    module = DistillationModule(bert(mine, 0), bert(its, 1), [KDLoss()])
    module.run.step.attach()
    assert module.run.step.class_order is None


def of_timm(name, names=None, **statistics):
    net = timm.create_model(name, num_classes=zoo.CLASSES)
    net.pretrained_cfg = {**net.pretrained_cfg, "label_names": names, **statistics}
    return net


def test_the_names_of_timm():
    step = DistillationModule(
        of_timm("resnet10t", ("a", "b", "c")), of_timm("resnet10t", ("c", "a", "b")), [KDLoss()]
    ).run.step
    step.attach()
    assert step.class_order.tolist() == [1, 2, 0]


def pictures():
    return TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % zoo.CLASSES)


def test_other_images_are_told(caplog, tmp_path):
    student, teacher = of_timm("resnet10t"), of_timm("resnet10t", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    loader = torch.utils.data.DataLoader(pictures(), batch_size=4)
    module = DistillationModule(student, teacher, [KDLoss()], task_loss=nn.CrossEntropyLoss())
    with caplog.at_level("INFO"):
        support.trainer(max_epochs=1).fit(module, loader, loader)
    assert caplog.text.count("the teacher's by mean [0.5, 0.5, 0.5]") == 1
    assert "Renormalize.between(student, teacher)" in caplog.text

    network = zoo.of_transformers("vit")[0]
    network.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    loaded = type(network).from_pretrained(tmp_path)
    view = Renormalize.between(student, loaded)
    assert (view.to_mean, view.to_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    view = Renormalize.between(hf.ViTImageProcessor(**statistics), ([0.5] * 3, [0.5] * 3))
    assert view.mean == [0.1, 0.2, 0.3]


def test_networks_that_see_the_same_are_told_nothing(caplog):
    loader = torch.utils.data.DataLoader(pictures(), batch_size=4)
    module = DistillationModule(of_timm("resnet10t"), of_timm("resnet10t"), [KDLoss()], task_loss=nn.CrossEntropyLoss())
    with caplog.at_level("INFO"):
        support.trainer(max_epochs=1).fit(module, loader, loader)
    assert "normalised" not in caplog.text
