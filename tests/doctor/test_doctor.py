"""The doctor warns of a teacher that has nothing to teach, of no other, and leaves the fit as it is."""

import warnings

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule, Doctor, EMATeacher
from lightning_kd.doctor.examination import Examination
from lightning_kd.engine.step import Terms
from lightning_kd.losses import EmbeddingLoss, HintLoss, KDLoss, StepTensors

from .conftest import CLASSES, Answers, data, fitted

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
"""The teacher's class for each of the student's."""


def other_order(logits):
    changed = torch.empty_like(logits)
    changed[:, ORDER] = logits
    return changed


def random_answers(logits):
    return logits.flip(1).roll(1, 0) * 1.0


def half_right(logits):
    """Right on one half of the samples, and on the next class in the others."""
    right = torch.arange(len(logits)) % 2 == 0
    return torch.where(right.unsqueeze(1), logits, logits.roll(1, 1))


def test_a_teacher_that_knows_is_not_warned_of(warned):
    assert warned(Answers()) == []


def test_a_teacher_that_is_often_wrong_is_not_warned_of(warned):
    assert warned(Answers(half_right)) == []


def test_a_teacher_near_chance_is_warned_of_with_what_to_do(warned):
    (said,) = warned(Answers(random_answers))
    assert "of the first 512 training samples, hardly better than a guess (10.00%)" in said
    assert "teacher_weights=FILE" in said


def test_few_samples_are_no_evidence(warned):
    assert warned(Answers(random_answers), data(rows=16, batch_size=8)) == []


def test_a_fit_that_ends_early_is_told_what_it_has_shown(warned):
    assert len(warned(Answers(random_answers), data(rows=256), batches=100)) == 1


def test_another_order_of_the_classes_is_found_and_mended(warned):
    (said,) = warned(Answers(other_order))
    assert f"teacher_classes={ORDER}" in said
    assert warned(Answers(other_order), teacher_classes=ORDER) == []


def test_one_class_for_everything_is_named(warned):
    def always_two(logits):
        return logits.clone().index_fill(1, torch.tensor([2]), 100.0)

    (said,) = warned(Answers(always_two))
    assert "It names class 2 for all of them." in said


def test_the_same_answer_to_everything_is_warned_of(warned):
    (said,) = warned(Answers(lambda logits: logits * 0 + torch.arange(float(CLASSES))))
    assert "gives the same answer to all of the first 512 training samples" in said


def test_a_teacher_that_was_never_trained_is_known_without_labels(warned):
    teacher = nn.Sequential(nn.Linear(CLASSES, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES))
    (said,) = warned(teacher)
    assert "None of the teacher's 1 batch normalisation(s) has seen a batch" in said
    (said,) = warned(teacher, losses=[HintLoss("0", "0")])
    assert "has seen a batch" in said
    teacher[1].running_mean += 1
    assert not any("has seen a batch" in said for said in warned(teacher))


@pytest.mark.parametrize("batches", [1, 8])
@pytest.mark.parametrize(
    ("losses", "task_loss"),
    [
        ([EmbeddingLoss()], None),
        ([KDLoss()], lambda z, y: (torch.cdist(z, z) - (y[:, None] == y).float()).square().mean()),
    ],
    ids=["of the losses", "of the task"],
)
def test_embeddings_are_no_class_scores(losses, task_loss, batches, warned):
    assert (
        warned(Answers(random_answers), data(batch_size=512), losses=losses, task_loss=task_loss, batches=batches) == []
    )


def test_labels_of_minus_100_do_not_count(warned):
    x = torch.rand(512, CLASSES)
    y = x.argmax(1)
    y[5:] = -100
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64)
    assert warned(Answers(random_answers), loader) == []


def test_a_teacher_made_of_the_student_is_left_alone():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(None, callbacks=[EMATeacher(decay=0.999), Doctor(8)])
    assert [str(one.message) for one in caught if "lightning-kd check" in str(one.message)] == []


def test_batches_of_zero_switch_it_off(warned):
    assert warned(Answers(random_answers), batches=0) == []
    with pytest.raises(ValueError, match="expected batches >= 0, got -1"):
        Doctor(-1)


def test_the_fit_is_the_same_bit_for_bit():
    def trained(*callbacks):
        read = []
        loader = data()
        loader.collate_fn = lambda rows: read.append(len(rows)) or torch.utils.data.default_collate(rows)
        module = fitted(Answers(), loader, callbacks, epochs=2, losses=[KDLoss()])
        return module.student.state_dict(), torch.get_rng_state(), read

    (one, state, read), (other, other_state, other_read) = trained(), trained(Doctor(3))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, other_state)
    assert read == other_read


def test_it_calls_no_network():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = Answers(), 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    alone, watched = Counting(), Counting()
    fitted(alone)
    fitted(watched, callbacks=[Doctor(2)])
    assert watched.calls == alone.calls


def test_it_looks_at_as_many_steps_as_it_says_and_then_tells():
    module = DistillationModule(nn.Linear(CLASSES, CLASSES), Answers(), [KDLoss()])
    told = []
    examination = Examination(module.run, 2, told.append)
    logits, target = torch.randn(5, CLASSES), torch.arange(5)
    terms = Terms(torch.tensor(0.0), {}, StepTensors(logits, logits, target=target))
    for _ in range(4):
        examination.look(terms, 0)
    assert (examination.rows, told) == (10, [examination])
