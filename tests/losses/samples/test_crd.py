"""Contrastive representation distillation: the authors' numbers, the banks' life, and what a batch may hold."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_kd.functional import crd_loss
from lightning_kd.losses import CRDLoss
from lightning_kd.losses.samples import crd_blocks
from lightning_kd.losses.samples.rows import RowWatch
from tests.losses.case import random
from tests.losses.golden import FLOAT32_TOLERANCE, FOLDER, GRADIENT_TOLERANCE, LOSS_TOLERANCE
from tests.support import processes

CASES = json.loads((FOLDER / "manifest.json").read_text())["losses"]["crd"]["cases"]
BANKS = ("student_bank", "teacher_bank")


def built(rows=12, classes=3, student=4, teacher=6, seed=0, **options):
    torch.manual_seed(seed)
    loss = CRDLoss("a", "b", **{"dim": 5, "negatives": 7, **options})
    loss.set_dataset(rows, None if classes is None else torch.arange(rows) % classes)
    loss.build({"a": (2, student)}, {"b": (2, teacher)})
    return loss


def same(ours, theirs, tolerance):
    error = (ours.detach().double() - theirs.double()).abs().max().item()
    assert error <= tolerance * theirs.abs().max().item(), error


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["product", "rows"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_two_steps_equal_the_authors_code(case, dtype, way, monkeypatch):
    if case["dtype"] == "float32" and dtype == torch.float64:
        dtype = torch.float32  # their numbers have no more digits
    monkeypatch.setattr(crd_blocks, "PRODUCT_RATIO", 16 if way == "product" else 0)
    with np.load(FOLDER / "crd.npz") as stored:
        arrays = {k.split("/")[1]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith(case["id"])}
    hyper = case["hyper"]
    exact = dtype == torch.float64
    loss_tolerance = LOSS_TOLERANCE if exact else FLOAT32_TOLERANCE
    tolerance = GRADIENT_TOLERANCE if exact else FLOAT32_TOLERANCE
    loss = built(
        hyper["n"],
        None,
        hyper["s"],
        hyper["t"],
        dim=hyper["d"],
        negatives_from="any",
        temperature=hyper["nce_t_as_stored"],
        momentum=hyper["nce_m"],
    ).to(dtype)
    with torch.no_grad():
        for ours, theirs in (("student", "s"), ("teacher", "t")):
            for name in ("weight", "bias"):
                loss.get_parameter(f"{ours}_embedding.{name}").copy_(arrays[f"param.embed_{theirs}.linear.{name}"])
        loss.student_bank.copy_(arrays["param.contrast.memory_v1"])
        loss.teacher_bank.copy_(arrays["param.contrast.memory_v2"])
    for step in ("step1", "step2"):
        loss.zero_grad()
        student = arrays[f"{step}.s0"].to(dtype).requires_grad_()
        index = arrays[f"{step}.idx"]
        value = loss(
            student, arrays[f"{step}.t0"].to(dtype), index=index, contrast_index=arrays[f"{step}.contrast_idx"]
        )
        value.backward()
        same(value, arrays[f"{step}.loss"], loss_tolerance)
        same(student.grad, arrays[f"{step}.grad_s0"], tolerance)
        for side, embedding in (("s", loss.student_embedding), ("t", loss.teacher_embedding)):
            for name, parameter in embedding.named_parameters():
                same(parameter.grad, arrays[f"{step}.grad_param.embed_{side}.linear.{name}"], tolerance)
        for i, bank in enumerate((loss.student_bank, loss.teacher_bank)):
            same(bank[index], arrays[f"{step}.memory_v{i + 1}_rows"], tolerance)
            assert bank.double().sum().item() == pytest.approx(arrays[f"{step}.memory_v{i + 1}_sum"].item(), abs=1e-4)
            same(loss.log_normalizers[i].exp(), arrays[f"{step}.Z_v{i + 1}"], tolerance)


@pytest.mark.parametrize("way", ["product", "rows"])
def test_it_equals_a_loop_over_all_comparisons(way, monkeypatch):
    monkeypatch.setattr(crd_blocks, "PRODUCT_RATIO", 16 if way == "product" else 0)
    student, teacher = (F.normalize(random(3, 5, seed=seed), dim=1).requires_grad_() for seed in (1, 2))
    banks = random(11, 5, seed=3), random(11, 5, seed=4)
    rows = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(5))
    means = [
        torch.stack([(bank[i] @ v / 0.3).exp() for v, row in zip(x, rows, strict=True) for i in row]).mean()
        for x, bank in ((student, banks[1]), (teacher, banks[0]))
    ]
    expected = 0.0
    for x, bank, mean in ((student, banks[1], means[0]), (teacher, banks[0], means[1])):
        for v, row in zip(x, rows, strict=True):
            p = [(bank[i] @ v / 0.3).exp() / (mean.detach() * 11) for i in row]
            expected = expected - (p[0] / (p[0] + 7 / 11 + 1e-7)).log() / 3
            expected = expected - sum((7 / 11 / (q + 7 / 11 + 1e-7)).log() for q in p[1:]) / 3
    value = crd_loss(student, teacher, *banks, rows, temperature=0.3)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0.0)
    for ours, theirs in zip(
        torch.autograd.grad(value, (student, teacher)), torch.autograd.grad(expected, (student, teacher)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", [1e-4, 1e-3])
def test_it_is_finite_where_the_exponentials_are_not(temperature):
    student, teacher = (F.normalize(random(3, 5, seed=seed), dim=1).float().requires_grad_() for seed in (1, 2))
    banks = F.normalize(random(11, 5, seed=3), dim=1).float(), F.normalize(random(11, 5, seed=4), dim=1).float()
    value = crd_loss(student, teacher, *banks, torch.arange(9).view(3, 3), temperature=temperature)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


@pytest.mark.parametrize("way", ["product", "rows"])
def test_float32_is_exact_for_a_tight_cluster(way, monkeypatch):
    monkeypatch.setattr(crd_blocks, "PRODUCT_RATIO", 16 if way == "product" else 0)
    features = [(5 + 1e-3 * random(6, 5, seed=seed)).float() for seed in (1, 2)]
    banks = [F.normalize(5 + 1e-3 * random(20, 5, seed=seed), dim=1).float() for seed in (3, 4)]
    rows = torch.randint(20, (6, 9), generator=torch.Generator().manual_seed(5))
    found = []
    for dtype in (torch.float64, torch.float32):
        student, teacher = (F.normalize(x.to(dtype), dim=1).requires_grad_() for x in features)
        wide = (b.to(dtype) for b in banks)
        value = crd_loss(student, teacher, *wide, rows, log_normalizers=torch.tensor([9.0, 9.0]))
        value.backward()
        found.append((value.detach().double(), student.grad.double(), teacher.grad.double()))
    for exact, single in zip(*found, strict=True):
        assert (single - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_an_empty_batch_costs_nothing():
    empty, bank = torch.zeros(0, 5, requires_grad=True), random(11, 5, seed=3)
    assert crd_loss(empty, empty, bank, bank, torch.zeros(0, 4, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"teacher": (3, 4)}, "(3, 4)"),
        ({"student_bank": (11, 4)}, "(11, 4)"),
        ({"contrast_index": (2, 4)}, "(2, 4)"),
        ({"contrast_index": (3, 1)}, "(3, 1)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, shape):
    sizes = {
        "student": (3, 5),
        "teacher": (3, 5),
        "student_bank": (11, 5),
        "teacher_bank": (11, 5),
        "contrast_index": (3, 4),
    } | change
    with pytest.raises(ValueError, match="crd_loss") as caught:
        crd_loss(**{n: torch.zeros(s, dtype=torch.long if n == "contrast_index" else None) for n, s in sizes.items()})
    assert shape in str(caught.value)


# --- negatives -------------------------------------------------------------------------------------------------------


def test_negatives_are_all_rows_of_other_classes_equally_often():
    loss = built(rows=10, classes=3, negatives=30_000)
    drawn = loss.draw(torch.tensor([4, 9, 2]))
    assert drawn[:, 0].tolist() == [4, 9, 2]
    for row, own in zip(drawn[:, 1:], (1, 0, 2), strict=True):
        counts = row.bincount(minlength=10)
        others = torch.arange(10) % 3 != own
        assert not counts[~others].any()
        assert (counts[others] / (30_000 / others.sum()) - 1).abs().max() < 0.1


def test_any_row_can_be_a_negative():
    drawn = built(rows=4, classes=None, negatives=400, negatives_from="any").draw(torch.tensor([1, 3]))
    assert drawn[:, 0].tolist() == [1, 3]
    assert [set(row.tolist()) for row in drawn[:, 1:]] == [{0, 2, 3}, {0, 1, 2}]


@pytest.mark.parametrize(
    ("rows", "classes", "negatives"),
    [
        (100, 5, 7),
        (100, 5, 40),
        (100, 5, 79),
        (100, 5, 80),
        (1000, 2, 60),
        (300, 7, 100),
        (40, None, 39),
        (900, None, 50),
    ],
)
def test_no_row_is_drawn_twice_while_there_are_enough(rows, classes, negatives):
    own = {"negatives_from": "any"} if classes is None else {}
    loss = built(rows=rows, classes=classes, negatives=negatives, **own)
    index = torch.arange(0, rows, 3)
    drawn = loss.draw(index)
    assert torch.equal(drawn[:, 0], index)
    for row, i in zip(drawn[:, 1:], index, strict=True):
        assert len(row.unique()) == negatives
        assert i not in row
        assert classes is None or (row % classes != i % classes).all()


@pytest.mark.parametrize(("rows", "negatives"), [(9, 3), (200, 20)])
def test_every_pair_of_rows_is_drawn_together_equally_often(rows, negatives):
    loss = built(rows=rows, classes=None, negatives=negatives, negatives_from="any")
    drawn = loss.draw(torch.zeros(40_000, dtype=torch.long))[:, 1:]
    taken = torch.zeros(40_000, rows).scatter_(1, drawn, 1.0)
    # of n = rows - 1 a row is drawn with the chance K / n, and two with K (K - 1) / (n (n - 1))
    n, k = rows - 1, negatives
    assert (taken.mean(0)[1:] / (k / n) - 1).abs().max() < 0.12
    together = (taken.T @ taken / 40_000)[1:, 1:].fill_diagonal_(0.0)
    expected = k * (k - 1) / (n * (n - 1))
    assert together.sum() / (n * (n - 1)) == pytest.approx(expected, rel=1e-3)
    assert (together[~torch.eye(n, dtype=torch.bool)] / expected - 1).abs().max() < 0.5


def test_a_class_that_leaves_too_few_others_draws_some_twice():
    """Rows 0 to 89 are of one class, so they have 10 others; rows 90 to 99 have 90."""
    loss = CRDLoss("a", "b", dim=5, negatives=30)
    loss.set_dataset(100, (torch.arange(100) >= 90).long())
    loss.build({"a": (2, 4)}, {"b": (2, 6)})
    many, few = loss.draw(torch.tensor([95, 5]))[:, 1:]
    assert len(many.unique()) == 30
    assert many.max() < 90
    assert len(few.unique()) <= 10
    assert few.min() >= 90


def test_a_single_row_has_no_others():
    with pytest.raises(ValueError, match="a single row"):
        built(rows=1, classes=None, negatives_from="any").draw(torch.tensor([0]))


def test_a_state_of_before_goes_on_with_replacement():
    loss = built(rows=20, classes=None, negatives=19, negatives_from="any")
    assert all(len(row.unique()) == 19 for row in loss.draw(torch.arange(20))[:, 1:])
    again = built(rows=20, classes=None, negatives=19, negatives_from="any")
    again.load_state_dict(loss.state_dict())
    assert all(len(row.unique()) == 19 for row in again.draw(torch.arange(20))[:, 1:])
    old = {name: value for name, value in loss.state_dict().items() if name != "draw_rule"}
    again.load_state_dict(old)
    assert again.state_dict().keys() == old.keys()
    torch.manual_seed(0)
    drawn = again.draw(torch.arange(20))[:, 1:]
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randint(20, (20, 19)))


def test_a_row_without_class_is_left_out_for_itself_alone():
    loss = CRDLoss("a", "b", negatives=400)
    loss.set_dataset(5, torch.tensor([-100, 0, -100, 0, 1]))
    loss.build({"a": (2, 3)}, {"b": (2, 3)})
    drawn = loss.draw(torch.tensor([0, 1]))[:, 1:]
    assert set(drawn[0].tolist()) == {1, 2, 3, 4}
    assert set(drawn[1].tolist()) == {0, 2, 4}


def test_a_data_set_without_classes_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="choose negatives_from='any'"):
        CRDLoss().set_dataset(5, None)
    with pytest.raises(ValueError, match=r"one class id for each of 5 rows, got torch.float32 of shape \(5,\)"):
        CRDLoss().set_dataset(5, torch.zeros(5))
    with pytest.raises(ValueError, match="all rows of the data set are of one class"):
        built(classes=1).draw(torch.tensor([0]))
    with pytest.raises(RuntimeError, match="set_dataset"):
        CRDLoss().build({}, {})


# --- the banks -------------------------------------------------------------------------------------------------------


def step(loss, index, seed=9, width=(4, 6)):
    """One call in which the loss learns; returns its value."""
    dtype = loss.student_embedding.weight.dtype
    student, teacher = (random(len(index), w, seed=seed + i).to(dtype) for i, w in enumerate(width))
    value = loss(student, teacher, index=torch.tensor(index))
    value.backward()
    return value.detach()


def test_the_rows_of_the_batch_move_and_no_others():
    loss = built(momentum=0.25)
    before = loss.teacher_bank.clone()
    step(loss, [7, 2])
    teacher = loss.teacher_embedding(random(2, 6, seed=10).float())
    expected = F.normalize(0.25 * before[[7, 2]] + 0.75 * teacher, dim=1)
    torch.testing.assert_close(loss.teacher_bank[[7, 2]], expected)
    others = [i for i in range(12) if i not in (7, 2)]
    assert torch.equal(loss.teacher_bank[others], before[others])


def test_nothing_changes_outside_training():
    loss = built()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    arguments = random(2, 4, seed=1).float(), random(2, 6, seed=2).float()
    loss.eval()(*arguments, index=torch.tensor([0, 1]))
    with torch.no_grad():
        loss.train()(*arguments, index=torch.tensor([0, 1]))
    for name, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_first_batch_fixes_the_normalisers_for_good():
    loss = built()
    step(loss, [7, 2])
    first = loss.log_normalizers.clone()
    assert first.isfinite().all()
    step(loss, [3, 2], seed=20)
    assert torch.equal(loss.log_normalizers, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_banks_stay_wide_whatever_the_precision_of_the_module(dtype):
    loss = built()
    before = loss.student_bank.clone()
    loss.to(dtype)
    assert loss.student_embedding.weight.dtype == dtype
    for name in (*BANKS, "log_normalizers"):
        assert loss.get_buffer(name).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(loss.student_bank.float(), before)
    assert step(loss, [3, 5]).dtype == loss.student_bank.dtype
    assert loss.row_classes.dtype == torch.long


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    loss = built()
    for seed in (1, 2, 3):
        step(loss, [seed, seed + 4], seed)
    torch.save({"state": loss.state_dict(), "random": torch.get_rng_state()}, tmp_path / "saved.pt")
    expected = [step(loss, [seed, seed + 3], seed) for seed in (4, 5)]
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other = CRDLoss("a", "b", dim=5, negatives=7)
    other.set_dataset(12, torch.zeros(12, dtype=torch.long))  # as a checkpoint is loaded: the state brings the classes
    other.build({"a": (2, 4)}, {"b": (2, 6)})
    other.load_state_dict(saved["state"])
    torch.set_rng_state(saved["random"])
    found = [step(other, [seed, seed + 3], seed) for seed in (4, 5)]
    assert found == expected
    for name, value in loss.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_copies_go_their_own_way():
    loss = built()
    step(loss, [1, 2])
    copies = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    before = loss.student_bank.clone()
    for other in copies:
        step(other, [1, 2], seed=30)
        assert torch.equal(loss.student_bank, before)
        assert not torch.equal(other.student_bank, before)


# --- what a batch may hold -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[0, 12], [-1, 3]])
def test_a_row_that_is_not_there_is_refused(index):
    with pytest.raises(ValueError, match=r"row indices from 0 to 11.*wrap it last"):
        step(built(), index)


def test_a_row_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="two samples of a batch have the same row index"):
        step(built(), [3, 4, 3])


@pytest.mark.parametrize("index", [torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3]), torch.tensor([[1], [2]])])
def test_an_index_of_another_form_is_refused(index):
    with pytest.raises(ValueError, match="expected one row index for each of 2 samples"):
        built()(random(2, 4, seed=1).float(), random(2, 6, seed=2).float(), index=index)


def test_a_device_is_asked_now_and_then_and_forgets_nothing():
    watch = RowWatch()
    good, bad = torch.tensor(False), torch.tensor(True)
    looks = []
    for number in range(1, 102):
        looks.append(watch.must_look(good, bad if number == 30 else good, free=False))
        if looks[-1] and number == 51:
            with pytest.raises(ValueError, match="same row"):
                watch.look(5)
        elif looks[-1]:
            watch.look(5)
    assert [number for number, looked in enumerate(looks, 1) if looked] == [1, 51, 101]


# --- two processes ---------------------------------------------------------------------------------------------------

STEPS = [[0, 5, 3, 8, 2], [7, 1, 0, 4, 9], [2, 6, 8, 5, 1]]
SPLIT = (0, 2, 5)  # processes with 2 and 3 samples


def run(steps, part, seed):
    """Train the banks on a part of each step's samples; returns the state and the gradients' sums."""
    loss = built(seed=seed)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter).sin())
    contrast = torch.randint(12, (3, 5, 7))
    for number, index in enumerate(steps):
        index = torch.tensor(index)
        rows = torch.cat((index.unsqueeze(1), contrast[number]), dim=1)
        student, teacher = random(5, 4, seed=number).float(), random(5, 6, seed=number + 9).float()
        loss(student[part], teacher[part], index=index[part], contrast_index=rows[part]).backward()
    return {name: value.clone() for name, value in loss.state_dict().items()}


def work(rank, file, results, steps):
    torch.set_num_threads(1)
    with processes.process_group(rank, file, limit=120):
        torch.save(run(steps, slice(*SPLIT[rank : rank + 2]), seed=rank), f"{results}/{rank}.pt")


def in_two_processes(folder, steps):
    processes.spawned(work, folder / "init", folder, steps, limit=300)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_keep_the_banks_of_one(tmp_path):
    one, (first, second) = run(STEPS, slice(None), seed=0), in_two_processes(tmp_path, STEPS)
    for name in CRDLoss.replicated_buffers:
        if name in first:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], one[name], rtol=1e-6, atol=1e-6)


def test_of_a_row_in_two_processes_that_of_the_first_counts(tmp_path):
    """A distributed sampler fills up its last batch with samples of the first."""
    first, second = in_two_processes(tmp_path, [[0, 5, 3, 8, 0]])
    one = run([[0, 5, 3, 8, 9]], slice(None), seed=0)
    for name in BANKS:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name][[0, 5, 3, 8]], one[name][[0, 5, 3, 8]], rtol=1e-6, atol=1e-6)


# --- banks of 16 bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "error"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_a_bank_of_16_bits_is_the_rounded_one_of_32(name, error):
    wide, narrow = built(), built(bank_dtype=name)
    with torch.no_grad():
        for bank in BANKS:
            wide.get_buffer(bank).copy_(narrow.get_buffer(bank))
    for seed in (9, 10):
        values = []
        for loss in (wide, narrow):
            torch.manual_seed(seed)
            values.append(step(loss, [0, 4, 7], seed))
        torch.testing.assert_close(values[1], values[0], rtol=3 * error, atol=0.0)
    for bank in BANKS:
        assert str(narrow.get_buffer(bank).dtype) == f"torch.{name}"
        assert (narrow.get_buffer(bank).float() - wide.get_buffer(bank)).abs().max() < error


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_bank_of_16_bits_stays_one(name):
    loss = built(bank_dtype=name)
    before = loss.student_bank.clone()
    for other in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        assert str(loss.to(other).student_bank.dtype) == f"torch.{name}"
    assert torch.equal(loss.student_bank, before)
    again = built(bank_dtype=name, seed=1)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.teacher_bank, loss.teacher_bank)


def test_an_unknown_format_of_the_banks_is_refused():
    with pytest.raises(ValueError, match="bank_dtype 'float32' or 'float16' or 'bfloat16', got 'int8'"):
        CRDLoss("a", "b", bank_dtype="int8")
