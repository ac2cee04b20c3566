"""The compatibility matrix is run: every strategy in every way of training it."""

import itertools
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tests import support
from tests.matrix import table
from tests.matrix.cells import Cell, product, sample
from tests.matrix.fit import fit
from tests.matrix.table import render, shown
from tests.matrix.verdict import complaints
from tests.support import processes

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_pair_of_ways_to_train_works():
    assert "wrong" not in processes.program("matrix", "--sample=2", limit=600).stdout


@pytest.mark.slow
def test_every_three_ways_to_train_work_together():
    assert "wrong" not in processes.program("matrix", "--sample=3", limit=1500).stdout


@pytest.mark.slow
def test_the_whole_matrix_is_the_table_of_its_readme():
    assert processes.program("matrix", limit=3000).stdout == shown()


def test_the_readme_claims_no_other_cells_than_are_run():
    assert render({cell: [] for cell in product()}) == shown()


def test_a_table_is_written_in_the_place_of_the_one_before(tmp_path, monkeypatch):
    copy = tmp_path / "README.md"
    copy.write_text(table.README.read_text())
    monkeypatch.setattr(table, "README", copy)
    before, after = (copy.read_text().split(part)[i] for part, i in ((table.BEGIN, 0), (table.END, 1)))
    table.write("| new |\n")
    assert shown() == "| new |\n"
    assert copy.read_text() == f"{before}{table.BEGIN}| new |\n{table.END}{after}"


@pytest.mark.parametrize(("together", "share"), [(2, 10), pytest.param(3, 5, marks=pytest.mark.slow)])
def test_the_sample_has_all_values_that_are_met_together(together, share):
    cells = list(product())
    chosen = sample(cells, together)
    assert len(chosen) < len(cells) / share
    for names in itertools.combinations(("loss", "mode", "precision", "compiled", "accumulate", "clip"), together):
        met = [{tuple(getattr(cell, name) for name in names) for cell in some} for some in (cells, chosen)]
        assert met[0] == met[1]


def test_float16_without_a_gpu_is_told_and_becomes_bfloat16():
    with pytest.warns(UserWarning, match=r"fp16 is not supported on CPU.*bf16-mixed"):
        assert support.trainer(precision="16-mixed").precision == "bf16-mixed"


@pytest.mark.parametrize("option", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 3}])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_what_manual_optimization_ignores_is_refused_at_set_up(door, option):
    made, callbacks = support.through(door)
    made.automatic_optimization = False
    before = support.snapshot(made)
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        support.fit(made, callbacks=callbacks, **option)
    support.assert_unchanged(made, before)


CELL = Cell("HintLoss", precision="bf16-mixed", accumulate=3)


@pytest.fixture(scope="module")
def runs():
    facts = {cell: [fit(cell)] for cell in (CELL, *CELL.references.values())}
    assert complaints(CELL, facts) == []
    return facts


def nudged(state, by=1e-3):
    return {name: value + by for name, value in state.items()}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: {"error": "RuntimeError: no"}, "process 0: RuntimeError: no"),
        (lambda f: {**f, "losses": [float("nan")]}, "losses"),
        (lambda f: {**f, "losses": [2 * loss for loss in f["losses"]]}, "in float32"),
        (lambda f: {**f, "gradient": -f["gradient"]}, "cosine"),
        (lambda f: {**f, "changed": dict.fromkeys(f["changed"], False)}, "the student is as it was"),
        (lambda f: {**f, "teacher intact": False}, "the teacher changed"),
        (lambda f: {**f, "formats": {**f["formats"], "student": ["bfloat16"]}}, "the student's parameters"),
        (lambda f: {**f, "formats": {**f["formats"], "memory": ["bfloat16"]}}, "what the loss remembers"),
        (lambda f: {**f, "after": f["before"]}, "clipped to"),
        (lambda f: {**f, "before": [{"norm": 0.0, "value": 0.0}] * 2}, "did not bind"),
        (lambda f: {**f, "after": f["after"][:1]}, "did not bind in the last of 2 steps"),
    ],
)
def test_a_wrong_fit_is_complained_about(change, complaint, runs):
    found = complaints(CELL, {**runs, CELL: [change(runs[CELL][0])]})
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize("shared", ["one process", "eager", "one large batch"])
def test_a_fit_that_is_not_that_of_its_reference_is_complained_about(shared):
    cell = Cell("HintLoss", mode="DDP", compiled="aot_eager", accumulate=3)
    facts = fit(Cell("HintLoss", accumulate=3))
    same = {one: [facts, facts] for one in (cell, *cell.references.values())}
    assert complaints(cell, same) == []
    other = {**same, cell.references[shared]: [{**facts, "state": nudged(facts["state"])}]}
    assert any(f"is not that of {shared}" in one for one in complaints(cell, other))


@pytest.mark.parametrize("part", ["state", "own"])
def test_processes_that_differ_by_a_bit_are_complained_about(part):
    cell = Cell("HintLoss", mode="DDP")
    facts = fit(Cell("HintLoss"))
    same = {one: [facts, facts] for one in (cell, *cell.references.values())}
    assert complaints(cell, same) == []
    other = {name: torch.nextafter(value, value + 1) for name, value in facts[part].items()}
    assert any(
        "differs between processes" in one for one in complaints(cell, {**same, cell: [facts, {**facts, part: other}]})
    )
