"""What the tables say, of outcomes that are given."""

import pytest

from lightning_kd.comparison.plan import Plan
from lightning_kd.comparison.report_page import html_of
from lightning_kd.comparison.study import Outcome, Unit
from lightning_kd.comparison.tables import table_of

ALONE, KD, AT = "student_alone", "response_based", "attention_based"


def outcomes(scores, *, scored="accuracy", higher=True, **metrics):
    return {
        Unit("score", arm, seed): Outcome("ok", value, {"steps": 80.0, **metrics}, None, scored, higher)
        for arm, values in scores.items()
        for seed, value in enumerate(values, 1)
    }


def table(scores, **options):
    plan = Plan(list(scores), range(1, 1 + max(map(len, scores.values()))), "configured")
    return table_of(plan, outcomes(scores, **options))


def test_the_ranking_with_intervals_and_verdicts():
    made = table({ALONE: [0.90, 0.91, 0.90], KD: [0.940, 0.9501, 0.9402], AT: [0.91, 0.90, 0.92]}, agreement=0.97)
    assert [row.arm for row in made.rows] == [KD, AT, ALONE]
    lines = made.markdown().splitlines()
    assert lines[2].startswith("| arm | score | difference | verdict | agreement |")
    cells = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert cells[0] == KD
    assert cells[1].startswith("94.34 % [")
    assert cells[2].startswith("+4.01 % [+")
    assert cells[3:5] == ["BEATS", "97.0 %"]
    assert "corrected for 2 comparisons" in made.markdown()
    assert f"Ship {KD}" in str(made)


def test_nothing_is_claimed_where_nothing_is_shown():
    made = table({ALONE: [0.90, 0.93, 0.90], KD: [0.93, 0.92, 0.935]})
    assert [row.difference.verdict for row in made.rows if row.difference] == ["CANNOT TELL"]
    assert f"No arm is shown to beat {ALONE}. About " in str(made)
    assert "seeds might show it for response_based: --seeds " in str(made)
    assert "Ship" not in str(made)


def test_a_lower_score_may_be_better():
    made = table({ALONE: [2.0, 2.1, 2.0], KD: [1.0, 1.11, 1.0]}, scored="mse", higher=False)
    assert [row.arm for row in made.rows] == [KD, ALONE]
    assert made.rows[0].difference.verdict == "BEATS"
    assert "mse (lower is better)" in str(made)


def test_other_numbers_of_steps_are_told():
    found = outcomes({ALONE: [0.9, 0.9], KD: [0.9, 0.8]})
    found[Unit("score", KD, 2)] = Outcome("ok", 0.8, {"steps": 20.0}, None, "accuracy")
    assert "not for the same: compare with care" in str(table_of(Plan([ALONE, KD], (1, 2), "configured"), found))


def test_the_page_escapes_what_an_error_says_and_loads_nothing():
    pytest.importorskip("jinja2")
    found = outcomes({ALONE: [0.9, 0.91]})
    found[Unit("score", KD, 1)] = Outcome("failed", error="no layer '<script>'")
    page = html_of(table_of(Plan([ALONE, KD], (1, 2), "configured"), found))
    assert "<script" not in page
    assert "no layer &#39;&lt;script&gt;&#39;" in page
    assert "Not ranked" in page
