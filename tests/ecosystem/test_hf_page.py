"""The page on transformers: its two examples run as written, in ten lines each."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from tests.test_readme import SHORT, block

PAGE = (Path(__file__).parents[2] / "lightning_kd" / "hf" / "README.md").read_text()
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4}
MODELS = {
    "llama": lambda: AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=60, num_key_value_heads=2)),
    "bert": lambda: AutoModelForSequenceClassification.from_config(BertConfig(**SMALL, vocab_size=60)),
}


def rows(name):
    ids = torch.randint(3, 60, (8, 9))
    mask = torch.ones_like(ids)
    mask[::2, -3:] = 0
    labels = ids.masked_fill(mask == 0, -100) if name == "llama" else torch.arange(8) % 2
    return [
        {"input_ids": i, "attention_mask": m, "labels": label} for i, m, label in zip(ids, mask, labels, strict=True)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_ten_lines_run_and_leave_a_student(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    code = block(name, PAGE)
    assert len([line for line in code.splitlines() if line]) <= 10
    short = code.replace("max_epochs=1", SHORT)
    assert short != code
    given = {"folder": tmp_path / "teacher", "loader": DataLoader(rows(name), batch_size=4)}
    exec(short, given)
    student = type(given["student"]).from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    assert given["module"].run.results
