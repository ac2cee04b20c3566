"""Stored answers of language models: the fit is that with the teacher itself, whatever the padding."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

from lightning_kd import DistillationModule, cache
from lightning_kd.losses import AttentionMatrixLoss, HiddenStateLoss, TokenKDLoss
from lightning_kd.teachers import CachedTeacher
from tests import support

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 60}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "vocab_size": 60, "dropout_rate": 0.0}


def llama(layers):
    config = LlamaConfig(**LLAMA, num_hidden_layers=layers, num_key_value_heads=2)
    return support.seeded(lambda: AutoModelForCausalLM.from_config(config), layers)


def t5(layers):
    config = T5Config(**T5, num_layers=layers, decoder_start_token_id=0)
    return support.seeded(lambda: AutoModelForSeq2SeqLM.from_config(config), layers)


def texts(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 10, (count,), generator=generator).tolist()
    return [torch.randint(3, 60, (length,), generator=generator) for length in lengths]


def padded(rows, side="right"):
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def pairs(rows):
    sources, targets = zip(*rows, strict=True)
    return {**padded(list(sources)), "labels": padded(list(targets))["labels"]}


def trained(student, guide, losses, data, collate):
    module = DistillationModule(student, guide, losses, optimizer=partial(torch.optim.SGD, lr=0.05))
    loader = DataLoader(data, batch_size=4, collate_fn=collate, shuffle=True)
    support.fit(module, train=loader, max_epochs=1, limit_val_batches=0)
    return torch.cat([p.detach().flatten() for p in module.student.parameters()])


@pytest.mark.parametrize("top_k", [None, 60])
@pytest.mark.parametrize(("written", "read"), [("right", "left"), ("left", "right")])
def test_a_causal_model_reads_answers_that_were_padded_on_the_other_side(tmp_path, written, read, top_k):
    losses = [TokenKDLoss(), HiddenStateLoss("model.layers.1", "model.layers.2")]
    cache.write(
        llama(3), texts(), tmp_path, losses=losses, dtype="float32", top_k=top_k, batch_size=4,
        collate_fn=partial(padded, side=written),
    )  # fmt: skip
    live, stored = (
        trained(
            llama(2), guide, [TokenKDLoss(), HiddenStateLoss("model.layers.1", "model.layers.2")],
            texts(), partial(padded, side=read),
        )
        for guide in (llama(3), CachedTeacher(tmp_path))
    )  # fmt: skip
    assert torch.allclose(live, stored, rtol=0, atol=2e-6)


@pytest.mark.parametrize("with_student", [False, True])
def test_an_encoder_decoder_tells_two_targets_of_one_source_apart(tmp_path, with_student):
    sources = texts(6)
    data = list(zip([*sources, *sources], texts(12, seed=1), strict=True))
    student = t5(1) if with_student else None
    options = {"losses": [TokenKDLoss()], "dtype": "float32", "batch_size": 4, "collate_fn": pairs}
    cache.write(t5(2), data, tmp_path, student=student, **options)
    live, stored = (trained(t5(1), guide, [TokenKDLoss()], data, pairs) for guide in (t5(2), CachedTeacher(tmp_path)))
    assert torch.allclose(live, stored, rtol=0, atol=2e-6)


def test_attention_is_not_stored(tmp_path):
    losses = [AttentionMatrixLoss("model.layers.1", "model.layers.2")]
    with pytest.raises(ValueError, match=r"scores of model\.layers\.2, but attention is not stored"):
        cache.write(llama(3), texts(), tmp_path, losses=losses, collate_fn=padded)
