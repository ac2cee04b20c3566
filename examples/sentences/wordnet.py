"""WordNet's definitions and example sentences, as pairs of a sentence and the definition that it illustrates."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from examples.sentences.encoder import folder

FOLDERS = ("/usr/share/wordnet", "/opt/homebrew/opt/wordnet/dict", "/usr/local/opt/wordnet/dict")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")


@dataclass(frozen=True)
class Meaning:
    """A definition, a sentence that illustrates it, and the words that have this meaning."""

    sentence: str
    definition: str
    words: str


def read(dictionary: str | None = None) -> list[Meaning]:
    """Read each meaning that has an example sentence, in the order of the files.

    Args:
        dictionary: The folder with WordNet 3.0's ``data.noun`` and the others; by default where packages put it.

    Raises:
        FileNotFoundError: If there is none.
    """
    tried = [Path(one) for one in ([dictionary] if dictionary else FOLDERS)]
    found = next((path for path in tried if (path / FILES[0]).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no WordNet in {' or '.join(map(str, tried))}: apt-get install wordnet-base, or pass the folder of its "
            "data.noun as --data.dictionary."
        )
    meanings = []
    for name in FILES:
        for line in (found / name).read_text(encoding="latin-1").splitlines():
            fields, _, gloss = line.partition(" | ")
            definition, _, rest = gloss.partition('; "')
            sentence = rest.partition('"')[0].strip()
            if definition and len(sentence.split()) > 2:
                _, _, _, count, *others = fields.split()
                words = ", ".join(word.partition("(")[0].replace("_", " ") for word in others[: 2 * int(count, 16) : 2])
                meanings.append(Meaning(sentence, re.sub(r"\s+", " ", definition).strip(' ";'), words))
    return meanings


def split(meanings: list[Meaning], held_out: int) -> tuple[list[Meaning], list[Meaning], list[Meaning]]:
    """Split into training, validation and test by the text of the definition, always in the same way.

    A definition or a sentence that stands in several places is in one part only.
    """
    seen: set[str] = set()
    unique = []
    for one in meanings:
        if not {one.sentence, one.definition} & seen:
            unique.append(one)
        seen |= {one.sentence, one.definition}
    unique.sort(key=lambda one: hashlib.sha256(one.definition.encode()).digest())
    return unique[2 * held_out :], unique[held_out : 2 * held_out], unique[:held_out]


class PairsOfLikeLength(Sampler[list[int]]):
    """Batches of pairs that are about as long as one another, in an order that the seed chooses: less padding.

    Args:
        lengths: Tokens of the longer text of each pair.
        size: Pairs in a batch; the last batch is left out where it would be smaller.
    """

    def __init__(self, lengths: list[int], size: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.size = size

    def __len__(self) -> int:
        return len(self.lengths) // self.size

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = torch.randperm(len(self.lengths))
        by_length = shuffled[self.lengths[shuffled].argsort(stable=True)]
        for number in torch.randperm(len(self)).tolist():
            yield by_length[number * self.size : (number + 1) * self.size].tolist()


class WordNetDataModule(LightningDataModule):
    """Serve texts as token ids: a batch is pairs of a sentence and its definition, one after the other.

    ``labels`` is the number of the pair. Distillation does not read it.

    Args:
        pairs: Pairs in a batch.
        of: Whether a pair is a sentence and its definition, or a text and itself, with another dropout: then nothing
            is told of which texts belong together.
        held_out: Pairs in the validation part, and as many in the test part.
        longest: Tokens of a text; what is longer is cut.
        dictionary: The folder of WordNet; by default where packages put it.
    """

    def __init__(
        self,
        pairs: int = 32,
        of: Literal["meaning", "itself"] = "meaning",
        held_out: int = 1000,
        longest: int = 40,
        dictionary: str | None = None,
    ) -> None:
        super().__init__()
        self.pairs = pairs
        self.of = of
        self.held_out = held_out
        self.longest = longest
        self.dictionary = dictionary
        self.tokenizer: Any = None

    def setup(self, stage: str) -> None:
        """Read and split the text."""
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)
            self.train_set, self.validation_set, self.test_set = split(read(self.dictionary), self.held_out)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training pairs in an order that the seed chooses."""
        texts = [[one.sentence, one.definition] for one in self.train_set]
        ids = self.tokenizer([text for both in texts for text in both], max_length=self.longest, truncation=True)
        sizes = [len(one) for one in ids["input_ids"]]
        sampler = PairsOfLikeLength([max(sizes[i : i + 2]) for i in range(0, len(sizes), 2)], self.pairs)
        return DataLoader(self.train_set, batch_sampler=sampler, collate_fn=self.batch_of_pairs)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation pairs in their order."""
        return DataLoader(self.validation_set, self.pairs, collate_fn=self.batch_of_pairs)

    def batch_of_pairs(self, pairs: list[Meaning]) -> dict[str, Tensor]:
        """Make a batch: sentence, definition, sentence, definition..."""
        texts = [(one.sentence, one.definition) for one in pairs]
        if self.of == "itself":
            texts = [(one, one) for number, both in enumerate(texts) for one in (both[number % 2],)]
        batch = self.tokens([text for both in texts for text in both])
        return {**batch, "labels": torch.arange(len(pairs)).repeat_interleave(2)}

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Return the token ids of texts, and which are no padding."""
        made = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    @torch.no_grad()
    def embed(self, encoder: nn.Module, texts: list[str], size: int = 250) -> Tensor:
        """Embed texts in batches of like length, and return their embeddings (N, 384) in the order of the texts."""
        encoder.eval()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        batches = [[texts[i] for i in order[start : start + size]] for start in range(0, len(texts), size)]
        rows = torch.cat([encoder(**self.tokens(batch)) for batch in batches])
        return torch.empty_like(rows).index_copy_(0, torch.tensor(order), rows)
