"""Does distillation pay? Students of two layers with and without the teacher, over seeds: the README's table.

Run from the repository's root: python -m examples.sentences.evidence --seeds 3
"""

from statistics import mean, stdev
from typing import Literal

import torch
from jsonargparse import auto_cli
from scipy.stats import spearmanr, t
from torch import Tensor, nn

from examples.sentences.encoder import student, teacher
from examples.sentences.wordnet import WordNetDataModule
from lightning_kd.commands.fit import run

ALONE = ["--model.teacher=null", "--model.losses=null"]
PAIRS = ["--model.task_loss=examples.sentences.encoder.PairLoss"]
METHODS = {
    "pairs, no teacher": [*ALONE, *PAIRS],
    "distilled": [],
    "distilled, and pairs": PAIRS,
}
COLUMNS = ("the definition is first, %", "among the first ten, %", "Spearman with the teacher")


class Task:
    """Find the definition that a sentence illustrates, among the definitions of all sentences of a part.

    Args:
        data: The data, set up.
        part: ``test``, or ``validation`` for choices.
    """

    def __init__(self, data: WordNetDataModule, part: Literal["validation", "test"] = "test") -> None:
        self.data = data
        meanings = data.test_set if part == "test" else data.validation_set
        self.texts = [one.sentence for one in meanings], [one.definition for one in meanings]
        self.expected = self.cosines(teacher())

    def cosines(self, encoder: nn.Module) -> Tensor:
        """Return the cosine of every sentence (row) with every definition (column)."""
        sentences, definitions = (self.data.embed(encoder, texts) for texts in self.texts)
        return sentences @ definitions.T

    def scores(self, encoder: nn.Module) -> list[float]:
        """Return the numbers of one row of the table."""
        found = self.cosines(encoder)
        before = (found > found.diagonal().unsqueeze(1)).sum(1)
        ranks = spearmanr(found.flatten().numpy(), self.expected.flatten().numpy()).statistic
        return [100 * (before < 1).float().mean().item(), 100 * (before < 10).float().mean().item(), float(ranks)]


def main(
    seeds: int = 3,
    steps: int = 200,
    pairs: int = 64,
    dictionary: str | None = None,
    part: Literal["validation", "test"] = "test",
    methods: list[str] | None = None,
    options: list[str] | None = None,
) -> None:
    """Print the table.

    Args:
        seeds: Number of seeds, 1 to that number; at least 2.
        steps: Steps of training of each student.
        pairs: Pairs in a batch.
        dictionary: The folder of WordNet; by default where packages put it.
        part: Which texts the numbers are of.
        methods: Which rows to make; by default all.
        options: More options of ``lightning-kd fit``, for all rows.
    """
    data = WordNetDataModule(pairs, dictionary=dictionary)
    data.setup("test")
    task = Task(data, part)
    print(f"| | {' | '.join(COLUMNS)} |\n|---|---|---|---|")
    count = len(task.texts[0])
    for name, encoder in {"teacher, 6 layers": teacher(), "2 layers, not trained": student([0, 5])}.items():
        first, ten, ranks = task.scores(encoder)
        shares = [f"{share:.1f} ± {1.96 * (share * (100 - share) / count) ** 0.5:.1f}" for share in (first, ten)]
        print(f"| {name} | {' | '.join(shares)} | {ranks:.3f} |", flush=True)
    factor = float(t.ppf(0.975, seeds - 1)) / seeds**0.5 if seeds > 1 else 0.0
    for name in methods or METHODS:
        given = ["--config=examples/sentences/distil.yaml", f"--data.pairs={pairs}", f"--trainer.max_steps={steps}"]
        quiet = [f"--trainer.enable_{one}=false" for one in ("progress_bar", "checkpointing", "model_summary")]
        quiet += ["--trainer.logger=false", "--summary.enabled=false", "--trainer.limit_val_batches=0"]
        where = [f"--data.dictionary={dictionary}"] if dictionary else []
        rows = []
        for seed in range(1, seeds + 1):
            torch.manual_seed(seed)
            words = ["fit", *given, *quiet, *where, f"--seed_everything={seed}", *METHODS[name], *(options or [])]
            rows.append(task.scores(run(words).model.student))
        cells = []
        for i, column in enumerate(zip(*rows, strict=True)):
            digits = 3 if i == 2 else 1
            spread = factor * stdev(column) if seeds > 1 else 0.0
            cells.append(f"{mean(column):.{digits}f} ± {spread:.{digits}f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
