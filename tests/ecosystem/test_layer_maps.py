"""Maps in the place of layers: which blocks they pair, on real transformers, and the same number as with names."""

import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    ModernBertConfig,
    SwinConfig,
    T5Config,
    ViTConfig,
)

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.configurable import describe, restore
from lightning_kd.engine.layer_maps import blocks_of, map_layers, pairs_of_blocks
from lightning_kd.losses import AttentionMatrixLoss, DistillationLoss, HiddenStateLoss, QKVRelationLoss
from tests import support

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
IDS = torch.arange(3, 27).reshape(4, 6)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 3 + [0] * 3])


def bert(layers, seed=0):
    torch.manual_seed(seed)
    return AutoModel.from_config(BertConfig(**SMALL, vocab_size=40, num_hidden_layers=layers))


def llama(layers, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(**SMALL, vocab_size=40, num_hidden_layers=layers, num_key_value_heads=2)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("how", "student", "teacher", "pairs"),
    [
        ("uniform", 3, 12, [(0, 3), (1, 7), (2, 11)]),  # TinyBERT's map of BERT-base
        ("uniform", 4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("skip", 3, 12, [(0, 0), (1, 4), (2, 8)]),
        ("last", 6, 24, [(5, 23)]),
    ],
)
def test_pairs_are_those_of_the_papers(how, student, teacher, pairs):
    assert pairs_of_blocks(how, student, teacher) == pairs


NETWORKS = {
    "encoder.layer": lambda: bert(3),
    "model.layers": lambda: llama(3),
    "transformer.layer": lambda: AutoModel.from_config(
        DistilBertConfig(dim=16, hidden_dim=24, n_heads=4, n_layers=3, vocab_size=40)
    ),
    "h": lambda: AutoModel.from_config(GPT2Config(n_embd=16, n_head=4, n_layer=3, vocab_size=40)),
    "layers": lambda: AutoModel.from_config(
        ModernBertConfig(**SMALL, num_hidden_layers=3, vocab_size=40, pad_token_id=0)
    ),
    "layers of experts": lambda: AutoModel.from_config(
        MixtralConfig(**SMALL, num_key_value_heads=2, num_hidden_layers=3, num_local_experts=2, vocab_size=40)
    ),
    "layers of images": lambda: AutoModel.from_config(ViTConfig(**SMALL, num_hidden_layers=3, image_size=32)),
    "blocks": lambda: timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=3),
    "layers of torch": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 3),
}


@pytest.mark.parametrize("where", NETWORKS)
def test_the_blocks_are_the_list_that_has_attention(where):
    network = NETWORKS[where]()
    found = blocks_of(network, "HiddenStateLoss", "uniform", "student")
    assert len(found) == 3
    assert len({type(network.get_submodule(name)) for name in found}) == 1
    assert found[0].rpartition(".")[0].endswith(where.split()[0]), found


def test_a_network_with_several_lists_is_refused():
    small = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 2, "vocab_size": 40}
    t5 = AutoModel.from_config(T5Config(**small))
    with pytest.raises(ValueError, match=r"several lists of blocks \(encoder.block, decoder.block\). Name the layers"):
        DistillationModule(t5, t5.__class__(T5Config(**small)), [HiddenStateLoss("uniform")])
    with pytest.raises(ValueError, match="has no list of blocks of one class"):
        DistillationModule(nn.Linear(2, 2), nn.Linear(2, 2), [HiddenStateLoss("uniform")])
    with pytest.raises(ValueError, match="the student has 3 blocks, the teacher 2"):
        DistillationModule(bert(3), bert(2), [HiddenStateLoss("uniform")])


def test_stages_of_images_are_paired_as_they_are():
    swin = AutoModel.from_config(SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=32, window_size=4))
    assert blocks_of(swin, "HiddenStateLoss", "uniform", "student") == ["encoder.layers.0", "encoder.layers.1"]


class Own(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        return self.network(**batch).last_hidden_state.square().mean() * 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.0)


BY_NAME = {
    "attention": (
        lambda: AttentionMatrixLoss("uniform"),
        lambda: AttentionMatrixLoss(["encoder.layer.0", "encoder.layer.1"], ["encoder.layer.1", "encoder.layer.3"]),
    ),
    "hidden": (
        lambda: HiddenStateLoss("skip"),
        lambda: HiddenStateLoss(["encoder.layer.0", "encoder.layer.1"], ["encoder.layer.0", "encoder.layer.2"]),
    ),
    "relations": (
        lambda: QKVRelationLoss("last", relation_heads=2, relations={"QQ": 1.0}),
        lambda: QKVRelationLoss("encoder.layer.1", "encoder.layer.3", relation_heads=2, relations={"QQ": 1.0}),
    ),
}


@pytest.mark.filterwarnings("ignore:val/agreement is left out:UserWarning")  # which needs logits
@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("kind", BY_NAME)
def test_a_map_gives_the_number_of_its_names(kind, door, caplog):
    values = []
    for make in BY_NAME[kind]:
        student, teacher, loss = bert(2), bert(4, 1), make()
        rows = [{"input_ids": i, "attention_mask": m} for i, m in zip(IDS, MASK, strict=True)]
        optimizer = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
        callback = DistillationCallback(teacher, losses=[loss], student="network")
        made = DistillationModule(student, teacher, [loss], **optimizer) if door == "module" else Own(student)
        trainer = support.trainer(max_epochs=1, callbacks=[] if door == "module" else [callback])
        with caplog.at_level("INFO"):
            trainer.fit(made, *[DataLoader(rows, batch_size=4)] * (2 if door == "module" else 1))
        values.append(trainer.callback_metrics["train/loss"])
    assert values[0] == values[1] != 0
    assert caplog.text.count("reads the blocks of student and teacher: 'encoder.layer.") == 1


def test_the_option_stays_a_map_and_suits_the_next_student():
    loss = HiddenStateLoss("uniform")
    module = DistillationModule(bert(2), bert(4, 1), [loss])
    assert loss.teacher_layers == ("encoder.layer.1", "encoder.layer.3")
    assert describe(loss) == describe(restore(describe(loss), DistillationLoss))
    module.student = bert(1)
    assert loss.student_layers == ("encoder.layer.0",)
    assert loss.teacher_layers == ("encoder.layer.3",)


def test_a_layer_of_that_name_is_a_layer():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)

    loss = HiddenStateLoss("last", "last")
    DistillationModule(Net(), Net(), [loss])
    assert loss.student_layers == ("last",)


class Beside(nn.Module):
    """A transformer with a list of other layers beside its blocks."""

    def __init__(self):
        super().__init__()
        self.text = bert(3)
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(16, 4), nn.ReLU()) for _ in range(2)])


def test_of_several_lists_that_with_attention_has_the_blocks():
    assert blocks_of(Beside(), "HiddenStateLoss", "uniform", "student") == [f"text.encoder.layer.{i}" for i in range(3)]


def test_names_that_are_given_later_take_the_place_of_a_map():
    loss = AttentionMatrixLoss("uniform")
    loss.take_layers(["a.0", "a.1"], ["b.1", "b.3"])
    assert loss.blocks == {"student": ("a.0", "a.1"), "teacher": ("b.1", "b.3")}
    loss.name_layers("c.0", "d.0")
    assert loss.blocks == {"student": ("c.0",), "teacher": ("d.0",)}


@pytest.mark.parametrize("how", ["last", "uniform", "skip"])
def test_stored_answers_of_a_deeper_teacher_are_refused_a_map(how):
    student = nn.ModuleDict({"h": nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2))})
    with pytest.raises(ValueError, match=r"'h\.3' is stored, and the student ends with 'h\.1'\. Name the layers"):
        map_layers([HiddenStateLoss(how)], student, None, stored=["h.1", "h.3"])
