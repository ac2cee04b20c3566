"""The table of the README beside this file has every strategy and every pair, and its judge sees what is wrong."""

import pytest
import torch

from lightning_kd.losses import SPLoss
from lightning_kd.losses.strategies import DistillationStrategyType as Strategy
from tests.ecosystem import family_table
from tests.ecosystem.__main__ import BEGIN, END, README, ROWS, judge, loss_name
from tests.ecosystem.families import FAMILIES

SERIES = "Conv1d, a series (B, C, L)"


def test_the_table_has_all_pairs_and_strategies():
    table = README.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[: len(ROWS) + 2]]
    assert cells[0][1:] == [loss_name(strategy) for strategy in Strategy]
    assert [row[0] for row in cells[2:]] == list(ROWS)
    assert "WRONG" not in "".join(table)


@pytest.mark.parametrize("strategy", [Strategy.RESPONSE_BASED, Strategy.SIMILARITY_PRESERVING])
def test_a_cell_is_judged(strategy):
    assert judge(strategy, SERIES) == "✓"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda student, teacher: (student[0] - student[1]).square().sum() * (1 + student[0].sum()), "another order"),
        (lambda student, teacher: student.sum() * torch.inf, "not finite"),
        (lambda student, teacher: student.sum() * 0, "no gradient"),
    ],
)
def test_a_wrong_loss_gets_no_mark(wrong, words, monkeypatch):
    monkeypatch.setattr(SPLoss, "compare", lambda self, student, teacher: wrong(student, teacher))
    verdict = judge(Strategy.SIMILARITY_PRESERVING, SERIES)
    assert verdict.startswith("WRONG")
    assert words in verdict


def test_the_table_of_families_has_each():
    table = README.read_text().split(family_table.BEGIN)[1].split(family_table.END)[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[: len(FAMILIES) + 2]]
    assert rows[0][1:] == list(family_table.COLUMNS)
    assert [row[0] for row in rows[2:]] == list(FAMILIES)
    assert "WRONG" not in "".join(table)


@pytest.mark.parametrize("column", family_table.COLUMNS)
def test_a_cell_of_a_family_is_that_of_the_table(column):
    table = README.read_text().split(family_table.BEGIN)[1]
    (row,) = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| llama |")]
    assert family_table.judge("llama", column) == row[1 + family_table.COLUMNS.index(column)].strip()
