"""The families of the issue: a tiny teacher and student of each from configurations, and a batch with padding."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.hf import from_config

VOCABULARY = 40
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DRY = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
RANGE = {"initializer_range": 0.3}
WIDE, NARROW = 32, 16


def sizes(width: int, **options: Any) -> dict[str, Any]:
    given = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
        "num_labels": 3,
        **given,
        **MARKS,
        **RANGE,
        **options,
    }


def grouped(width: int, **options: Any) -> dict[str, Any]:
    return sizes(width, num_key_value_heads=1, head_dim=width // 2, **options)


def gpt2(width: int) -> dict[str, Any]:
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {"vocab_size": VOCABULARY, "n_embd": width, "n_layer": 2, "n_head": 2, **still, **MARKS, **RANGE}


def distilbert(width: int) -> dict[str, Any]:
    given = {"dim": width, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "seq_classif_dropout": 0.0, **DRY}
    return {"vocab_size": VOCABULARY, "pad_token_id": 0, "num_labels": 3, **given, **RANGE}


def modernbert(width: int) -> dict[str, Any]:
    return sizes(width, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=4)


def t5(width: int) -> dict[str, Any]:
    given = {"d_model": width, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    return {"vocab_size": VOCABULARY, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2, **given}


def both_sides(width: int, **options: Any) -> dict[str, Any]:
    given = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")}
    given |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2, "init_std": 0.3}
    return {"vocab_size": VOCABULARY, "d_model": width, **given, **DRY, **MARKS, **options}


def whisper(width: int) -> dict[str, Any]:
    none = {"suppress_tokens": None, "begin_suppress_tokens": None}
    return both_sides(width, num_mel_bins=8, max_source_positions=10, max_target_positions=20, **none)


def patches(width: int) -> dict[str, Any]:
    given = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return {"image_size": 16, "patch_size": 8, "num_labels": 3, **given, **STILL, **RANGE}


def swin(width: int) -> dict[str, Any]:
    given = {"embed_dim": width // 2, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "drop_path_rate": 0.0}
    return {"image_size": 16, "patch_size": 4, "num_labels": 3, **given, **STILL, **RANGE}


@dataclass
class Family:
    """One architecture: its configuration by width, what it is for, and the blocks that losses read."""

    model_type: str
    entries: Any
    task: str
    blocks: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        return self.task == "causal_lm"

    @property
    def of_classes(self) -> bool:
        return "classification" in self.task

    def config(self, width: int) -> dict[str, Any]:
        return {"model_type": self.model_type, **self.entries(width, **self.options)}

    def make(self, width: int) -> nn.Module:
        """A network with weights of a size that a wrong layer or row shows."""
        with torch.random.fork_rng():
            torch.manual_seed(width)
            network = from_config(self.config(width), self.task)
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
                else:
                    nn.init.uniform_(parameter, 0.5, 1.5)
        return network


BERT, STACK = "{}.encoder.layer.{{}}", "model.layers.{}"
FAMILIES = {
    "bert": Family("bert", sizes, "masked_lm", "bert.encoder.layer.{}", STILL),
    "distilbert": Family("distilbert", distilbert, "masked_lm", "distilbert.transformer.layer.{}"),
    "roberta": Family("roberta", sizes, "masked_lm", "roberta.encoder.layer.{}", STILL),
    "modernbert": Family("modernbert", modernbert, "masked_lm", STACK),
    "bert, classes": Family("bert", sizes, "classification", "bert.encoder.layer.{}", STILL),
    "distilbert, classes": Family("distilbert", distilbert, "classification", "distilbert.transformer.layer.{}"),
    "roberta, classes": Family("roberta", sizes, "classification", "roberta.encoder.layer.{}", STILL),
    "modernbert, classes": Family("modernbert", modernbert, "classification", STACK),
    "gpt2": Family("gpt2", gpt2, "causal_lm", "transformer.h.{}"),
    "opt": Family(
        "opt", lambda w: sizes(w, word_embed_proj_dim=w, ffn_dim=24, **DRY), "causal_lm", "model.decoder.layers.{}"
    ),
    "llama": Family("llama", grouped, "causal_lm", STACK),
    "qwen2": Family("qwen2", grouped, "causal_lm", STACK, {"tie_word_embeddings": True}),
    "qwen3": Family("qwen3", grouped, "causal_lm", STACK),
    "gemma": Family("gemma", grouped, "causal_lm", STACK),
    "gemma2": Family("gemma2", grouped, "causal_lm", STACK, {"sliding_window": 3, "final_logit_softcapping": 5.0}),
    "gemma3": Family("gemma3_text", grouped, "causal_lm", STACK, {"sliding_window": 3}),
    "phi": Family("phi", sizes, "causal_lm", STACK, {"resid_pdrop": 0.0}),
    "phi3": Family("phi3", grouped, "causal_lm", STACK),
    "mixtral": Family("mixtral", grouped, "causal_lm", STACK, {"num_local_experts": 3}),
    "t5": Family("t5", t5, "seq2seq", "encoder.block.{}"),
    "bart": Family("bart", both_sides, "seq2seq", "model.encoder.layers.{}"),
    "whisper": Family("whisper", whisper, "seq2seq", "model.encoder.layers.{}"),
    "vit": Family("vit", patches, "image_classification", "vit.layers.{}"),
    "deit": Family("deit", patches, "image_classification", "deit.layers.{}"),
    "swin": Family("swin", swin, "image_classification", "swin.encoder.layers.{}"),
}


def batch_of(name: str) -> dict[str, Tensor]:
    """Four rows as a collator gives them, of which two are padded on the right."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0, 2, 1, 1])
    if family.task == "image_classification":
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator), "labels": classes}
    ids = torch.randint(3, VOCABULARY, (4, 7), generator=generator)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 4:] = mask[2, 6:] = 0
    ids = ids.masked_fill(mask == 0, 0)
    if family.of_classes:
        return {"input_ids": ids, "attention_mask": mask, "labels": classes}
    if family.task == "seq2seq":
        labels = torch.randint(3, VOCABULARY, (4, 5), generator=generator)
        labels[0, 3:] = labels[2, 4:] = -100
        if name == "whisper":
            return {"input_features": torch.randn(4, 8, 20, generator=generator), "labels": labels}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    labels = ids.masked_fill(mask == 0, -100)
    if family.task == "masked_lm":
        labels[:, ::2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
