"""Models by folder or configuration, in code and in YAML."""

import sys

import pytest
import torch
import transformers as hf
from lightning.pytorch.cli import LightningArgumentParser

from lightning_kd import DistillationModule
from lightning_kd.hf import from_config, from_pretrained
from lightning_kd.hf import pretrained as the_file
from tests import support
from tests.ecosystem import zoo

HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZES = {"model_type": "bert", "vocab_size": 50, **zoo.WIDE}


@pytest.mark.parametrize(
    ("task", "sizes", "name"),
    [
        ("masked_lm", SIZES, "BertForMaskedLM"),
        ("classification", SIZES, "BertForSequenceClassification"),
        ("token_classification", SIZES, "BertForTokenClassification"),
        ("features", SIZES, "BertModel"),
        ("causal_lm", {"model_type": "llama", "vocab_size": 50, **zoo.WIDE}, "LlamaForCausalLM"),
        ("classification", {"model_type": "vit", **zoo.WIDE, **zoo.PATCHES}, "ViTForImageClassification"),
        ("classification", {"model_type": "deit", **zoo.WIDE, **zoo.PATCHES}, "DeiTForImageClassification"),
        (
            "seq2seq",
            {"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, **HEADS},
            "WhisperForConditionalGeneration",
        ),
        (
            "seq2seq",
            {"model_type": "t5", "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1},
            "T5ForConditionalGeneration",
        ),
    ],
)
def test_a_folder_and_back(task, sizes, name, tmp_path):
    torch.manual_seed(0)
    made = from_config(sizes, task)
    assert type(made).__name__ == name
    made.save_pretrained(tmp_path)
    support.assert_same_weights(from_pretrained(tmp_path, task), made)
    assert type(from_config(tmp_path, task)) is type(made)
    assert next(from_pretrained(tmp_path, task, dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_a_head_that_is_not_there_is_not_drawn_in_silence(tmp_path):
    hf.BertForMaskedLM(hf.BertConfig(vocab_size=50, **zoo.WIDE)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no weights for .*classifier.weight.* new_weights=True"):
        from_pretrained(tmp_path, "classification")
    made = from_pretrained(tmp_path, "classification", new_weights=True, num_labels=5)
    assert made.classifier.out_features == 5


def test_a_configuration_without_architecture_is_refused():
    with pytest.raises(ValueError, match="names no model_type"):
        from_config({"hidden_size": 3})


def test_in_yaml(tmp_path):
    torch.manual_seed(0)
    teacher = from_config(SIZES, "classification")
    teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "fit.yaml").write_text(f"""
model:
  student:
    class_path: lightning_kd.hf.from_config
    init_args:
      config: {{model_type: distilbert, vocab_size: 50, dim: 16, n_layers: 1, n_heads: 2, hidden_dim: 16}}
      task: classification
  teacher:
    class_path: lightning_kd.hf.from_pretrained
    init_args: {{folder: {tmp_path}/teacher, task: classification}}
  losses: [{{class_path: KDLoss}}]
""")
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(DistillationModule, "model")
    module = parser.instantiate_classes(parser.parse_path(str(tmp_path / "fit.yaml"))).model
    assert type(module.student).__name__ == "DistilBertForSequenceClassification"
    support.assert_same_weights(module.teacher, teacher)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning_kd\[hf\]'"):
        the_file.import_transformers()
