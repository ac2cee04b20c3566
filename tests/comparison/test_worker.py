"""The loop of a comparison: what it runs, what it runs again, and what it writes."""

import csv

import pytest

from tests.comparison.conftest import BASE, plain

ALONE, KD, AT = "student_alone", "response_based", "attention_based"
ALL = [f"{KD}-size", *(f"{arm}-seed{seed}" for seed in (1, 2, 3) for arm in (ALONE, KD))]


def rows(comparison):
    with open(comparison.folder / "results.csv") as file:
        return list(csv.DictReader(file))


def test_every_arm_runs_with_every_seed_and_then_nothing(comparison):
    _, started = comparison()
    assert sorted(started) == sorted(ALL)
    assert [(row["arm"], row["seed"], row["score"], row["status"]) for row in rows(comparison)] == [
        (arm, str(seed), str(0.5 + 0.01 * seed), "ok") for seed in (1, 2, 3) for arm in (ALONE, KD)
    ]
    written = {path.name: path.read_text() for path in comparison.folder.glob("*.*") if ".db" not in path.name}
    table, again = comparison()
    assert again == []
    assert table.winner == ALONE
    now = {path.name: path.read_text() for path in comparison.folder.glob("*.*") if ".db" not in path.name}
    assert now == written
    assert set(now) == {"results.csv", "results.md", "report.html", "winner.yaml"}


def test_more_seeds_and_strategies_run_only_what_is_new(comparison):
    comparison(seeds=(1,))
    _, more_seeds = comparison(seeds=(1, 2))
    assert sorted(more_seeds) == [f"{KD}-seed2", f"{ALONE}-seed2"]
    table, more_arms = comparison(arms=(ALONE, KD, AT), seeds=(1, 2))
    assert sorted(more_arms) == [f"{AT}-seed1", f"{AT}-seed2", f"{AT}-size"]
    assert len(table.rows) == 3


def test_what_was_compared_before_stays_in_the_table(comparison):
    comparison(arms=(ALONE, KD), seeds=(1, 2, 3))
    table, started = comparison(arms=(ALONE, AT), seeds=(1, 2))
    assert sorted(started) == [f"{AT}-seed1", f"{AT}-seed2", f"{AT}-size"]
    assert {row.arm: sorted(row.scores) for row in table.rows} == {ALONE: [1, 2, 3], KD: [1, 2, 3], AT: [1, 2]}


def test_a_changed_configuration_is_refused_with_what_changed(comparison):
    comparison(seeds=(1,))
    changed = {**BASE, "trainer": {"max_epochs": 9}}
    with pytest.raises(ValueError, match=r"trainer\.max_epochs was 8 and is 9\. Scores"):
        comparison(base=changed, seeds=(1,))
    with pytest.raises(ValueError, match=r"weights was .sized. and is .tuned."):
        comparison(weights="tuned", seeds=(1,))


def test_a_failing_arm_stops_nothing_and_is_told_with_its_error(comparison):
    def result(unit):
        failed = {"status": "failed", "metrics": {}, "error": "no layer 'x'; there are 'y'"}
        return failed if unit["arm"] == KD and unit["seed"] == 2 else plain(unit)

    table, started = comparison(result)
    assert sorted(started) == sorted(ALL)
    (row,) = [row for row in table.rows if row.arm == KD]
    assert (row.score, row.reason) == (None, "failed, seed 2: no layer 'x'; there are 'y'")
    assert "no layer 'x'; there are 'y'" in (comparison.folder / "results.md").read_text()
    assert [one["error"] for one in rows(comparison) if one["status"] == "failed"] == ["no layer 'x'; there are 'y'"]
    _, again = comparison(plain)
    assert again == []
    table, again = comparison(plain, retry_failed=True)
    assert again == [f"{KD}-seed2"]
    assert len(table.ranked) == 2


def test_an_arm_that_cannot_run_fails_once_and_has_a_row_for_each_seed(comparison):
    def result(unit):
        return {"status": "failed", "metrics": {}, "error": "why"} if unit["arm"] == KD else plain(unit)

    _, started = comparison(result)
    assert sorted(started) == sorted([f"{KD}-size", *(f"{ALONE}-seed{seed}" for seed in (1, 2, 3))])
    assert [row["seed"] for row in rows(comparison) if row["status"] == "failed"] == ["1", "2", "3"]
    assert comparison.said.count("FAILED: why") == 1


def test_nan_is_a_row_with_its_reason_and_never_ranked(comparison):
    def result(unit):
        nan = {"status": "nan", "metrics": {}, "error": "The loss is not finite at step 3"}
        return nan if unit["arm"] == KD and unit["seed"] == 1 else {**plain(unit), "score": 0.9}

    table, _ = comparison(result)
    assert [row.arm for row in table.ranked] == [ALONE]
    assert table.rows[-1].reason == "NaN, seed 1: The loss is not finite at step 3"
    assert (rows(comparison)[1]["status"], rows(comparison)[1]["score"]) == ("nan", "")


def test_if_every_arm_fails_there_is_no_winner(comparison):
    table, _ = comparison(lambda unit: {"status": "failed", "metrics": {}, "error": "no data"})
    assert (table.winner, table.ranked) == (None, [])
    assert not (comparison.folder / "winner.yaml").exists()
    assert "No arm has a score" in (comparison.folder / "report.html").read_text()


def test_a_process_that_the_system_kills_is_a_failure_and_not_done_again(comparison):
    table, started = comparison(lambda unit: None if unit["arm"] == KD and unit["seed"] else plain(unit))
    assert "killed by signal 9; signal 9 is often the system's for want of memory" in table.rows[-1].reason
    assert started.count(f"{KD}-seed1") == 1


def test_stopping_gives_back_what_was_begun(comparison):
    def stop(unit):
        if unit["arm"] == KD and unit["seed"] == 2:
            raise KeyboardInterrupt
        return plain(unit)

    with pytest.raises(KeyboardInterrupt):
        comparison(stop)
    _, rest = comparison()
    assert sorted(rest) == sorted([f"{KD}-seed2", f"{ALONE}-seed3", f"{KD}-seed3"])


def test_it_says_arms_seeds_and_time_left(comparison):
    comparison()
    assert "[1/7] response_based, size of the loss: weight 2 (about" in comparison.said
    assert "[7/7] response_based, seed 3: accuracy 53.0 % (all done)" in comparison.said


def test_weights_are_tuned_on_held_out_rows_and_pruned(comparison):
    """The factor 10 is better than 1 in the first round, and worse at the end."""
    jobs = {}

    def result(unit):
        if unit["kind"] != "tune":
            return plain(unit)
        first = {0.001: 0.1, 0.01: 0.2, 0.1: 0.3, 1.0: 0.5, 10.0: 0.6}
        return {**plain(unit), "score": first[unit["factor"]] if unit["rung"] == 0 else -unit["factor"]}

    _, started = comparison(result, weights="tuned", seeds=(1,))
    tried = [name for name in started if "-weight" in name]
    first = [f"{KD}-weight{factor}-round0" for factor in ("0.001", "0.01", "0.1", "1", "10")]
    assert sorted(tried) == sorted([*first, f"{KD}-weight1-round1", f"{KD}-weight10-round1"])
    for name in (*tried, f"{KD}-seed1"):
        jobs[name] = (comparison.folder / "arms" / name / "fit.yaml").read_text()
    assert all("held_out: 0.2" in jobs[name] for name in tried)
    assert "held_out: null" in jobs[f"{KD}-seed1"]
    assert "weight: 2.0" in jobs[f"{KD}-seed1"]  # the weight of 2.0 by its size, times 1
    stops = [(comparison.folder / "arms" / name / "job.json").read_text() for name in tried]
    assert ['"stop_after": 0.25' in stop for stop in stops] == ["round0" in name for name in tried]
