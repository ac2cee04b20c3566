"""Does distillation pay? Students of two layers with and without the teacher, over seeds: the README's table.

Run from the repository's root: python -m examples.sentences.evidence --seeds 3
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from jsonargparse import auto_cli
from scipy.stats import spearmanr, t
from torch import Tensor, nn

from examples.sentences.encoder import student, teacher
from examples.sentences.wordnet import WordNetDataModule
from lightning_kd.commands.fit import run

ALONE = ["--model.teacher=null", "--model.losses=null"]
PAIRS = ["--model.task_loss=examples.sentences.encoder.PairLoss"]
SLOWER = ["--model.optimizer.init_args.lr=0.0003"]
METHODS = {
    "no pairs, no teacher": [*ALONE, *PAIRS, *SLOWER, "--data.of=itself"],
    "no pairs, teacher": [],
    "pairs, no teacher": [*ALONE, *PAIRS, *SLOWER],
    # the numbers of the pairs could be class ids, so that it must be said that the output is the embedding
    "pairs, teacher": [
        *PAIRS,
        *SLOWER,
        *(f"--model.losses.embedding.{side}=<output>" for side in ("student", "teacher")),
    ],
}
COLUMNS = ("sentence: first, %", "in ten, %", "words: first, %", "in ten, %", "rank correlation", "SimLex-999")


class Task:
    """Find the definition for a sentence that illustrates it, or for its words, among the definitions of a part.

    Args:
        data: The data, set up.
        part: ``test``, or ``validation`` for choices.
    """

    def __init__(self, data: WordNetDataModule, part: Literal["validation", "test"] = "test") -> None:
        self.data = data
        meanings = data.test_set if part == "test" else data.validation_set
        self.definitions = [one.definition for one in meanings]
        self.queries = [one.sentence for one in meanings], [one.words for one in meanings]
        self.judged = judged_pairs()
        self.expected = self.cosines(teacher())[0]

    def cosines(self, encoder: nn.Module) -> list[Tensor]:
        """Return the cosine of every sentence (row) with every definition (column), and of the words."""
        definitions = self.data.embed(encoder, self.definitions)
        return [self.data.embed(encoder, texts) @ definitions.T for texts in self.queries]

    def scores(self, encoder: nn.Module) -> list[float]:
        """Return the numbers of one row of the table."""
        row = []
        found = self.cosines(encoder)
        for cosines in found:
            before = (cosines > cosines.diagonal().unsqueeze(1)).sum(1)
            row += [100 * (before < place).double().mean().item() for place in (1, 10)]
        row.append(float(spearmanr(found[0].flatten(), self.expected.flatten()).statistic))
        if self.judged:
            first, second, judgements = zip(*self.judged, strict=True)
            cosines = (self.data.embed(encoder, [*first]) * self.data.embed(encoder, [*second])).sum(1)
            row.append(float(spearmanr(cosines, judgements).statistic))
        return row


def judged_pairs() -> list[tuple[str, str, float]]:
    """Return pairs of words and how alike people find them: SimLex-999, which gensim ships; none without gensim."""
    found = find_spec("gensim")
    if found is None or found.origin is None:
        return []
    lines = (Path(found.origin).parent / "test" / "test_data" / "simlex999.txt").read_text().splitlines()
    words = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(one, other, float(alike)) for one, other, alike in words]


def written(values: list[float], errors: list[float]) -> str:
    """Return the cells of a row: shares with one digit, correlations with three."""
    digits = [1] * 4 + [3] * 2
    cells = [f"{value:.{d}f} ± {error:.{d}f}" for value, error, d in zip(values, errors, digits, strict=False)]
    return " | ".join(cells + ["-"] * (len(COLUMNS) - len(cells)))


def spread_of_texts(row: list[float], texts: int, pairs: int) -> list[float]:
    """Return the 95 % intervals of the numbers of one network: of the texts, or pairs of words, that were drawn."""
    shares = [1.96 * (share * (100 - share) / texts) ** 0.5 for share in row[:4]]
    return [*shares, 0.0, *(1.96 * (1 - rank**2) / pairs**0.5 for rank in row[5:])]


def spread_of_seeds(column: Sequence[float]) -> float:
    """Return the 95 % interval of a mean over seeds, 0 for a single one."""
    seeds = len(column)
    return float(t.ppf(0.975, seeds - 1)) * stdev(column) / seeds**0.5 if seeds > 1 else 0.0


def main(
    seeds: int = 3,
    steps: int = 150,
    dictionary: str | None = None,
    part: Literal["validation", "test"] = "test",
    methods: list[str] | None = None,
    options: list[str] | None = None,
) -> None:
    """Print the table.

    Args:
        seeds: Number of seeds, 1 to that number; a single one has no interval.
        steps: Steps of training of each student.
        dictionary: The folder of WordNet; by default where packages put it.
        part: Which texts the numbers are of.
        methods: Which rows to make; by default all.
        options: More options of ``lightning-kd fit``, for all rows.
    """
    data = WordNetDataModule(dictionary=dictionary)
    data.setup("test")
    task = Task(data, part)
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, encoder in {"teacher, 6 layers": teacher(), "student, not trained": student([0, 5])}.items():
        row = task.scores(encoder)
        print(f"| {name} | {written(row, spread_of_texts(row, len(task.definitions), len(task.judged)))} |", flush=True)
    quiet = [f"--trainer.enable_{one}=false" for one in ("progress_bar", "checkpointing", "model_summary")]
    quiet += ["--trainer.logger=false", "--summary.enabled=false", "--trainer.limit_val_batches=0"]
    quiet += ["--trainer.default_root_dir=examples/sentences/runs"]
    where = [f"--data.dictionary={dictionary}"] if dictionary else []
    for name in methods or METHODS:
        recipe = ["--config=examples/sentences/distil.yaml", f"--trainer.limit_train_batches={steps}"]
        words = ["fit", *recipe, *where, *quiet, *METHODS[name], *(options or [])]
        fits = [run([*words, f"--seed_everything={seed}"]) for seed in range(1, seeds + 1)]
        columns = [*zip(*(task.scores(fit.model.student) for fit in fits), strict=True)]
        print(f"| {name} | {written([*map(mean, columns)], [*map(spread_of_seeds, columns)])} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
