"""Columns of a tokenizer, a collator or an image processor reach the networks of Hugging Face that take them."""

import pytest
import torch
import transformers as hf
from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.columns import of_teacher, takes
from lightning_kd.losses import KDLoss
from tests import support
from tests.ecosystem import by_hand, zoo

DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Theirs(LightningModule):
    """A step as the guides of Hugging Face write it."""

    def __init__(self, net, names):
        super().__init__()
        self.net, self.names = net, names

    def training_step(self, batch, batch_idx):
        return self.net(**{name: batch[name] for name in self.names}).loss

    def validation_step(self, batch, batch_idx): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def pairs():
    """A batch of two sentences a row, as a tokenizer returns it."""
    return hf.BatchEncoding(
        {
            "input_ids": torch.randint(1, 40, (4, 9)),
            "attention_mask": torch.ones(4, 9, dtype=torch.long),
            "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]] * 4),
            "labels": torch.arange(4) % zoo.CLASSES,
        }
    )


@pytest.mark.parametrize("door", ["module", "callback"])
def test_token_types_reach_the_teacher_alone(door):
    torch.manual_seed(0)
    student = zoo.of_transformers("distilbert", dropout=0.0, attention_dropout=0.0)[0]
    teacher = zoo.of_transformers("bert", initializer_range=0.5)[0].eval()
    batch = pairs()
    data = support.batches(batch)
    both = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        logits = student(**both).logits
        right = by_hand.kl(logits, teacher(**both, token_type_ids=batch["token_type_ids"]).logits, 4.0)
        wrong = by_hand.kl(logits, teacher(**both).logits, 4.0)
    if door == "module":
        net, callbacks = DistillationModule(student, teacher, [KDLoss()], task_loss=nn.CrossEntropyLoss()), []
    else:
        net = Theirs(student, ["input_ids", "attention_mask", "labels"])
        callbacks = [DistillationCallback(teacher, [KDLoss()])]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(net, data, data)
    assert abs(right - wrong) > 0.01
    torch.testing.assert_close(trainer.callback_metrics["train/kd"].double(), right, rtol=1e-3, atol=0.0)


def test_the_teacher_computes_no_loss_of_its_own():
    student, teacher = (zoo.of_transformers("bert")[0] for _ in range(2))
    batch = pairs()
    args, kwargs = of_teacher(batch, (), dict(batch), student, teacher)
    assert (args, sorted(kwargs)) == ((), ["attention_mask", "input_ids", "token_type_ids"])
    asked = hf.BertForQuestionAnswering(hf.BertConfig(vocab_size=50, **zoo.WIDE))
    batch = {"input_ids": batch["input_ids"], "start_positions": torch.ones(4), "end_positions": torch.ones(4)}
    assert sorted(of_teacher(batch, (), batch, asked, asked)[1]) == ["input_ids"]


def encoder_decoders():
    small = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    t5 = hf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    whisper = hf.WhisperConfig(**small | heads | ends, num_mel_bins=4, max_source_positions=10, max_target_positions=10)
    ids, sound = {"input_ids": torch.randint(3, 50, (2, 7))}, {"input_features": torch.randn(2, 4, 20)}
    return {
        "t5": (lambda: hf.T5ForConditionalGeneration(t5), ids),
        "bart": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**small | heads | ends)), ids),
        "whisper": (lambda: hf.WhisperForConditionalGeneration(whisper), sound),
    }


@pytest.mark.parametrize("name", encoder_decoders())
def test_a_decoder_gets_its_inputs_of_the_labels(name):
    make, batch = encoder_decoders()[name]
    student, teacher = make(), make().eval()
    labels = torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]])
    batch = {**batch, "labels": labels}
    module = DistillationModule(student, teacher, [KDLoss()])
    read = module.unpack_batch(batch)
    assert read.target is labels
    _, kwargs = module.teacher_inputs(batch, read.args, read.kwargs)
    with torch.no_grad():
        output, whole = teacher(**kwargs), teacher(**batch)
    assert torch.equal(output.logits, whole.logits)
    assert (output.loss is None) == (name != "whisper")  # which has no method that makes decoder inputs of labels


def test_what_models_of_transformers_take():
    for name in ("bert", "distilbert", "gpt2", "llama", "vit"):
        found = takes(zoo.of_transformers(name)[0])
        assert "note" not in found
        assert "labels" in found.named or name == "clip"
    assert "token_type_ids" in takes(zoo.of_transformers("bert")[0])
    assert "token_type_ids" not in takes(zoo.of_transformers("distilbert")[0])
    assert "token_type_ids" not in takes(zoo.of_transformers("llama")[0])
    assert "num_items_in_batch" in takes(zoo.of_transformers("llama")[0])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_take_what_the_network_inside_takes():
    from peft import LoraConfig, get_peft_model

    base = zoo.of_transformers("bert")[0]
    found = takes(get_peft_model(base, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")))
    assert "token_type_ids" in found
    assert "note" not in found
