"""ATTENTION_BASED chooses what fits the networks: attention matrices of transformers, else maps as ever."""

import copy
import logging
import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    LlamaConfig,
    SwinConfig,
    ViTConfig,
)

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd import DistillationStrategyType as Strategy
from lightning_kd.commands.parsing.losses import by_class
from lightning_kd.losses import ATLoss, AttentionMatrixLoss, HybridLoss
from tests import support

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BATCH = {
    "input_ids": torch.arange(3, 27).reshape(4, 6),
    "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 3 + [0] * 3]),
}
PATCHES = SMALL | {"image_size": 16, "num_channels": 3}
TOLD = "compares the attention matrices"


def bert(layers, seed=0, backend="sdpa", **sizes):
    torch.manual_seed(seed)
    config = BertConfig(**SMALL | STILL | sizes, vocab_size=40, num_hidden_layers=layers)
    return AutoModel.from_config(config, attn_implementation=backend)


def llama(layers):
    torch.manual_seed(layers)
    config = LlamaConfig(**SMALL, vocab_size=40, num_hidden_layers=layers, num_key_value_heads=2)
    return AutoModelForCausalLM.from_config(config)


def vit(layers, patch=4):
    torch.manual_seed(layers)
    return AutoModelForImageClassification.from_config(ViTConfig(**PATCHES, patch_size=patch, num_hidden_layers=layers))


def swin(width):
    torch.manual_seed(width)
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=width, depths=[2, 2], num_heads=[2, 2], window_size=4)
    return AutoModelForImageClassification.from_config(config)


IMAGES = {"pixel_values": torch.linspace(-1, 1, 3 * 3 * 256).reshape(3, 3, 16, 16)}


def module_of(student, teacher, loss):
    return DistillationModule(student, teacher, [loss], optimizer=partial(torch.optim.SGD, lr=0.0))


def fitted(module, batch=BATCH, **options):
    trainer = support.trainer(**{"max_epochs": 1, "limit_val_batches": 0} | options)
    loader = DataLoader([batch], batch_size=None)
    trainer.fit(module, loader, loader)
    return trainer


def value_of(student, teacher, loss, batch=BATCH):
    module = module_of(student, teacher, loss)
    fitted(module, batch)
    means = module.run.log.epoch_means
    return means["at" if isinstance(loss, ATLoss) else "attention_matrix"], module


@pytest.mark.parametrize(
    ("make", "batch"), [(bert, BATCH), (llama, BATCH), (vit, IMAGES)], ids=["bert", "llama", "vit"]
)
def test_transformers_are_compared_by_their_attention_matrices(make, batch, caplog):
    caplog.set_level(logging.INFO)
    chosen, _ = value_of(make(2), make(4), Strategy.ATTENTION_BASED.create(), batch)
    assert [TOLD in record.message for record in caplog.records].count(True) == 1
    named, _ = value_of(make(2), make(4), AttentionMatrixLoss("uniform"), batch)
    assert chosen == named > 0


def test_unequal_heads_are_compared_by_their_mean(caplog):
    caplog.set_level(logging.INFO)
    small = partial(bert, 2, num_attention_heads=2)
    chosen, _ = value_of(small(), bert(4), Strategy.ATTENTION_BASED.create())
    named, _ = value_of(small(), bert(4), AttentionMatrixLoss("uniform", heads="mean"))
    assert chosen == named > 0
    assert "heads='mean'" in caplog.text


def test_the_weight_is_kept_and_is_that_of_whichever_is_chosen():
    loss = Strategy.ATTENTION_BASED.create(weight=3.0)
    module = module_of(bert(2), bert(4), loss)
    trainer = fitted(module)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(3.0 * module.run.log.epoch_means["at"])


def of_timm(depth, kind=timm.models.VisionTransformer, **sizes):
    torch.manual_seed(depth)
    return kind(**{"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": depth, "num_heads": 4} | sizes)


def of_torchvision(depth):
    torch.manual_seed(depth)
    sizes = {"num_heads": 4, "hidden_dim": 16, "mlp_dim": 8}
    return torchvision.models.VisionTransformer(image_size=16, patch_size=4, num_layers=depth, **sizes)


distilled = partial(of_timm, kind=timm.models.deit.VisionTransformerDistilled)
PICTURES = (IMAGES["pixel_values"], torch.zeros(3, dtype=torch.long))
BEIT = partial(of_timm, kind=timm.models.Beit, use_rel_pos_bias=True, init_values=0.1)
ROPE = partial(of_timm, kind=timm.models.Eva, use_rot_pos_emb=True)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (of_timm, of_timm),
        (distilled, distilled),
        (BEIT, of_timm),
        (ROPE, ROPE),
        (of_torchvision, of_torchvision),
        (of_timm, of_torchvision),
    ],
    ids=["vit", "deit", "beit", "rope", "torchvision", "both"],
)
def test_vision_transformers_of_others_are_compared_so_too(make, other, caplog):
    caplog.set_level(logging.INFO)
    chosen, _ = value_of(make(2), other(4), Strategy.ATTENTION_BASED.create(), PICTURES)
    assert [TOLD in record.message for record in caplog.records].count(True) == 1
    named, _ = value_of(make(2), other(4), AttentionMatrixLoss("uniform"), PICTURES)
    assert chosen == named > 0


def test_unequal_heads_of_others_are_compared_by_their_mean():
    chosen, _ = value_of(of_timm(2, num_heads=2), of_timm(4), Strategy.ATTENTION_BASED.create(), PICTURES)
    named, _ = value_of(of_timm(2, num_heads=2), of_timm(4), AttentionMatrixLoss("uniform", heads="mean"), PICTURES)
    assert chosen == named > 0


def by_hand(depth):
    network = of_timm(depth)
    for block in network.blocks:
        block.attn.fused_attn = False
    return network


def windows(depth):
    torch.manual_seed(depth)
    sizes = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, depth)}
    return timm.models.SwinTransformer(**sizes, num_heads=(2, 2), drop_path_rate=0.0)


OTHERS = {
    "another token": lambda: (distilled(2), of_timm(4), "number of tokens before the patches is 2, the teacher's 1"),
    "patches": lambda: (of_timm(2), of_timm(4, patch_size=8), r"grid of patches is \(4, 4\), the teacher's \(2, 2\)"),
    "by hand": lambda: (of_timm(2), by_hand(4), "fused_attn is False"),
    "windows": lambda: (windows(2), windows(2), "has 2 attentions"),
    "of transformers": lambda: (of_timm(2), vit(4), "Only one of both is of transformers"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tokens_are_compared_by_maps_and_told(name, caplog):
    caplog.set_level(logging.INFO)
    student, teacher, words = OTHERS[name]()
    plain, _ = value_of(copy.deepcopy(student), copy.deepcopy(teacher), ATLoss(), PICTURES)
    caplog.clear()
    chosen, _ = value_of(student, teacher, Strategy.ATTENTION_BASED.create(), PICTURES)
    assert chosen == plain
    assert TOLD not in caplog.text
    assert re.search(f"compares the maps of both networks, by ATLoss.*{words}", caplog.text)


PAIRS = {
    "patches": lambda: (vit(2, patch=4), vit(4, patch=8), IMAGES),
    "windows": lambda: (swin(8), swin(16), IMAGES),
    "more blocks": lambda: (bert(4), bert(2), BATCH),
}


@pytest.mark.parametrize("name", PAIRS)
def test_everything_else_is_compared_by_maps_as_ever(name, caplog):
    caplog.set_level(logging.INFO)
    student, teacher, batch = PAIRS[name]()
    plain, _ = value_of(copy.deepcopy(student), copy.deepcopy(teacher), ATLoss(), batch)
    caplog.clear()
    chosen, _ = value_of(student, teacher, Strategy.ATTENTION_BASED.create(), batch)
    assert chosen == plain
    assert TOLD not in caplog.text
    assert caplog.text.count("compares the maps of both networks, by ATLoss") == 1


def test_convolutional_networks_are_compared_by_maps_and_nothing_more_is_told(caplog):
    caplog.set_level(logging.INFO)
    values = []
    for loss in (ATLoss(), Strategy.ATTENTION_BASED.create()):
        module = support.module(support.student(), losses=[loss])
        values.append(support.fit(module, max_epochs=1).callback_metrics["train/loss"])
    assert values[0] == values[1]
    assert "ATTENTION_BASED" not in caplog.text


@pytest.mark.parametrize(
    "options", [{"p": 1.0}, {"p": 2.0}, {"student": "encoder", "teacher": "encoder"}, {"layout": "NLC"}]
)
def test_an_option_of_maps_means_maps(options):
    loss = Strategy.ATTENTION_BASED.create(**options)
    module_of(bert(2), bert(4), loss)
    assert loss.instead is None


class User(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(**batch).last_hidden_state.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_the_callback_chooses_too():
    expected, _ = value_of(bert(2), bert(4), AttentionMatrixLoss("uniform"))
    callback = DistillationCallback(bert(4), [Strategy.ATTENTION_BASED.create()], student="net")
    trainer = support.trainer(max_epochs=1, limit_val_batches=0, callbacks=[callback])
    trainer.fit(User(bert(2)).train(), DataLoader([BATCH], batch_size=None))
    assert trainer.callback_metrics["train/at"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "given", ["ATTENTION_BASED", ["attention_based"], {"ATTENTION_BASED": None}, [{"class_path": "ATTENTION_BASED"}]]
)
def test_the_name_in_yaml_chooses_and_that_of_the_class_does_not(given):
    made = {"class_path": "lightning_kd.losses.ATLoss", "init_args": {"transformers": True}}
    assert by_class(given) == [made]
    assert by_class(by_class(given)) == [made]
    assert by_class([{"ATTENTION_BASED": {"p": 1}}]) == [made | {"init_args": {"p": 1}}]
    assert by_class([{"ATTENTION_BASED": {"weight": 2}}]) == [made | {"init_args": {"transformers": True, "weight": 2}}]
    assert by_class("ATLoss") == ["lightning_kd.losses.ATLoss"]


def test_copies_hybrids_and_other_networks_choose_for_themselves():
    loss = Strategy.ATTENTION_BASED.create()
    expected, module = value_of(bert(2), bert(4), loss)
    copied = copy.deepcopy(module)
    fitted(copied)
    assert copied.run.log.epoch_means["at"] == expected
    images, _ = value_of(swin(8), swin(16), loss, IMAGES)
    assert loss.instead is None
    assert images == value_of(swin(8), swin(16), ATLoss(), IMAGES)[0]
    assert value_of(bert(2), bert(4), loss)[0] == expected
    hybrid = module_of(bert(2), bert(4), HybridLoss([Strategy.ATTENTION_BASED.create()]))
    fitted(hybrid)
    assert hybrid.run.log.epoch_means["hybrid"] == expected


def test_a_checkpoint_goes_on_with_the_same_choice_or_is_refused(tmp_path):
    module = module_of(bert(2), bert(4), Strategy.ATTENTION_BASED.create())
    trainer = fitted(module)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    loader = DataLoader([BATCH], batch_size=None)
    again = module_of(bert(2), bert(4), Strategy.ATTENTION_BASED.create())
    support.trainer(max_epochs=2, limit_val_batches=0).fit(again, loader, loader, ckpt_path=path)
    assert again.run.log.epoch_means["at"] == module.run.log.epoch_means["at"]
    loaded = DistillationModule.load_from_checkpoint(path, student=bert(2), teacher=bert(4), weights_only=False)
    (loss,) = loaded.run.objective.named.values()
    assert isinstance(loss.instead, AttentionMatrixLoss)
    with pytest.raises(ValueError, match=r"compared attention matrices \(AttentionMatrixLoss\) when the checkpoint"):
        DistillationModule.load_from_checkpoint(
            path, student=bert(2, backend="flex_attention"), teacher=bert(4), weights_only=False
        )


def test_a_checkpoint_of_maps_is_refused_for_matrices(tmp_path):
    """As one has that was made before ATTENTION_BASED has chosen."""
    trainer = fitted(module_of(bert(2), bert(4), ATLoss()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = module_of(bert(2), bert(4), Strategy.ATTENTION_BASED.create())
    loader = DataLoader([BATCH], batch_size=None)
    with pytest.raises(ValueError, match=r"compared attention maps \(ATLoss\) when the checkpoint"):
        support.trainer(max_epochs=2).fit(again, loader, loader, ckpt_path=tmp_path / "last.ckpt")
