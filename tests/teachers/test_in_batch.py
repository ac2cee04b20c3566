"""Answers of a teacher that lie in the batch: whole logits, the most likely tokens, or draws; no network runs."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.functional import kd_loss, token_kd_loss
from lightning_kd.losses import DistillationLoss, KDLoss, SparseLogits, TokenKDLoss
from lightning_kd.losses.tokens import token_kd
from lightning_kd.teachers import BatchTeacher
from tests import support
from tests.losses.tokens.test_fused_in_fit import Capped, NamedHead, networks
from tests.losses.tokens.test_in_fit import VOCABULARY, UsersModule, same, texts

BATCH = texts(6, 3, 2)
SPARSE = {"ids": "teacher_ids", "log_probs": "teacher_log_probs"}


def answers(batch: dict[str, Tensor], kind: type[NamedHead] = NamedHead) -> Tensor:
    _, teacher = networks(kind)
    with torch.no_grad():
        return teacher(batch["input_ids"], batch["attention_mask"]).logits


def stored(batch: dict[str, Tensor], k: int, kind: type[NamedHead] = NamedHead) -> dict[str, Tensor]:
    kept = SparseLogits.top_k(answers(batch, kind), k)
    return batch | {"teacher_ids": kept.ids, "teacher_log_probs": kept.log_probs}


def fitted(
    losses: list[DistillationLoss],
    batch: dict[str, Tensor],
    teacher: object,
    kind: type[NamedHead] = NamedHead,
    **options: object,
) -> DistillationModule:
    student, _ = networks(kind)
    module = DistillationModule(student, teacher, losses, optimizer=partial(torch.optim.SGD, lr=0.5))
    loader = DataLoader([batch] * 2, batch_size=None)
    support.trainer(max_epochs=1, **{"limit_val_batches": 0, **options}).fit(module, loader, loader)
    return module


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the loss worked on hidden states."""
    calls: list[str] = []
    work = token_kd.fused_sparse_sum

    def counted(*args: object, **named: object) -> object:
        calls.append(str(named["memory"]))
        return work(*args, **named)

    monkeypatch.setattr(token_kd, "fused_sparse_sum", counted)
    return calls


@pytest.mark.parametrize("options", [{}, {"divergence": "jsd", "temperature": 2.0}, {"cross_entropy": 0.5}])
@pytest.mark.parametrize("f", [False, True])
def test_all_tokens_are_as_good_as_the_teacher(f: bool, options: dict[str, object], fused: list[str]) -> None:
    _, teacher = networks()
    whole = fitted([TokenKDLoss(fused=False, **options)], BATCH, teacher)
    found = fitted([TokenKDLoss(fused=f, **options)], stored(BATCH, VOCABULARY), BatchTeacher(**SPARSE))
    assert fused == ["save"] * 2 * f
    same(found.student.state_dict(), whole.student.state_dict(), 1e-12)
    assert found.run.log.epoch_means == pytest.approx(whole.run.log.epoch_means, rel=1e-6)


@pytest.mark.parametrize("kind", [NamedHead, Capped])
@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize(
    "options",
    [
        {"missing": "renormalize"},
        {"missing": "tail", "divergence": "reverse_kl", "temperature": 2.0, "temperature_squared": True},
        {"missing": "renormalize_both", "cross_entropy": 0.5},
    ],
)
def test_a_few_tokens_inside_the_loss_are_those_of_whole_logits(
    options: dict[str, object], memory: str, kind: type[NamedHead], fused: list[str]
) -> None:
    batch = stored(BATCH, 3, kind)
    whole = fitted([TokenKDLoss(fused=False, **options)], batch, BatchTeacher(**SPARSE), kind)
    assert not fused
    found = fitted([TokenKDLoss(fused=True, memory=memory, **options)], batch, BatchTeacher(**SPARSE), kind)
    assert fused == [memory] * 2
    same(found.student.state_dict(), whole.student.state_dict(), 1e-12)
    assert found.run.log.epoch_means == pytest.approx(whole.run.log.epoch_means, rel=1e-6)


def test_the_first_value_is_that_of_the_function() -> None:
    batch = stored(BATCH, 3)
    student, _ = networks()
    kept = SparseLogits(batch["teacher_ids"], batch["teacher_log_probs"])
    ours = student(BATCH["input_ids"], BATCH["attention_mask"]).logits
    given = {"labels": BATCH["labels"], "mask": BATCH["attention_mask"], "shift": True, "missing": "tail"}
    expected = token_kd_loss(ours, kept, **given).item()
    for f in (False, True):
        found = fitted([TokenKDLoss(fused=f, missing="tail")], batch, BatchTeacher(**SPARSE), limit_train_batches=1)
        assert found.run.log.epoch_means["token_kd"] == pytest.approx(expected, rel=1e-6)


def test_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = answers(BATCH).softmax(-1)
    ids = torch.multinomial(shares.flatten(0, 1), 8, replacement=True, generator=generator).unflatten(0, (3, 6))
    batch, teacher = BATCH | {"drawn": ids}, BatchTeacher(ids="drawn")
    one, other = (fitted([TokenKDLoss(fused=f)], batch, teacher) for f in (False, True))
    same(one.student.state_dict(), other.student.state_dict(), 1e-12)


def test_whole_logits_in_a_column_are_for_every_loss_of_logits() -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    student, teacher = (support.seeded(lambda: nn.Linear(4, 3), seed) for seed in (1, 2))
    batch = {"input": x, "labels": y, "theirs": teacher(x).detach()}
    module = DistillationModule(student, BatchTeacher("theirs"), [KDLoss()], optimizer=partial(torch.optim.SGD, lr=0.0))
    loader = DataLoader([batch], batch_size=None)
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, loader, loader)
    expected = kd_loss(student(x), teacher(x), temperature=4.0)
    torch.testing.assert_close(trainer.callback_metrics["train/kd"], expected.detach())
    assert float(trainer.callback_metrics["val/teacher_accuracy"]) == float((teacher(x).argmax(1) == y).float().mean())


def test_the_callback_reads_them_too() -> None:
    student, _ = networks()
    batch = stored(BATCH, 3)
    door = DistillationCallback(BatchTeacher(**SPARSE), [TokenKDLoss()])
    loader = DataLoader([batch] * 2, batch_size=None)
    support.trainer(max_epochs=1, callbacks=[door], limit_val_batches=0).fit(UsersModule(student), loader, loader)
    same(student.state_dict(), fitted([TokenKDLoss()], batch, BatchTeacher(**SPARSE)).student.state_dict(), 1e-12)


def test_an_evaluation_logs_the_mean_over_tokens() -> None:
    whole = fitted([TokenKDLoss()], stored(BATCH, 3), BatchTeacher(**SPARSE), limit_val_batches=1)
    found = whole.trainer.callback_metrics
    student = whole.student
    batch = stored(BATCH, 3)
    kept = SparseLogits(batch["teacher_ids"], batch["teacher_log_probs"])
    given = {"labels": BATCH["labels"], "mask": BATCH["attention_mask"], "shift": True}
    with torch.no_grad():
        ours = student(BATCH["input_ids"], BATCH["attention_mask"]).logits
    assert float(found["val/token_kd"]) == pytest.approx(token_kd_loss(ours, kept, **given).item(), rel=1e-6)
    assert float(found["val/loss"]) == float(found["val/token_kd"])
    assert {"val/perplexity", "val/accuracy"} <= set(found)
    assert not {"val/teacher_perplexity", "val/agreement"} & set(found)


def test_a_fit_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    batch = stored(BATCH, 3)

    def made() -> DistillationModule:
        student, _ = networks()
        return DistillationModule(
            student, BatchTeacher(**SPARSE), [TokenKDLoss()], optimizer=partial(torch.optim.SGD, lr=0.5)
        )

    loader = DataLoader([batch] * 3, batch_size=None)
    whole, first, second = made(), made(), made()
    support.trainer(max_epochs=2, limit_val_batches=0).fit(whole, loader, loader)
    trainer = support.trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(first, loader, loader)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    support.trainer(max_epochs=2, limit_val_batches=0).fit(second, loader, loader, ckpt_path=tmp_path / "first.ckpt")
    for name, value in whole.student.state_dict().items():
        assert torch.equal(second.student.state_dict()[name], value)


def test_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text("""
model:
  student: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 2}}
  teacher:
    class_path: lightning_kd.teachers.BatchTeacher
    init_args: {ids: teacher_ids, log_probs: teacher_log_probs}
  losses: [{class_path: lightning_kd.losses.TokenKDLoss, init_args: {missing: tail, shift: true}}]
""")
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(DistillationModule, "model")
    module = parser.instantiate_classes(parser.parse_path(str(tmp_path / "fit.yaml"))).model
    assert module.run.teacher.columns == ("teacher_ids", "teacher_log_probs")
    assert module.losses["token_kd"].missing == "tail"


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_lies_at_padding_does_not_count(side: str) -> None:
    batch = stored(texts(6, 3, 2) if side == "left" else texts(6, 6, 6), 3)
    other = {name: value.clone() for name, value in batch.items()}
    padding = batch["attention_mask"] == 0
    other["teacher_ids"][padding] = 0
    other["teacher_log_probs"][padding] = float("nan")
    one, found = (fitted([TokenKDLoss()], given, BatchTeacher(**SPARSE)) for given in (batch, other))
    same(found.student.state_dict(), one.student.state_dict(), 1e-12)


def bad(change: str) -> dict[str, Tensor]:
    batch = stored(BATCH, 3)
    ids, log_probs = batch["teacher_ids"], batch["teacher_log_probs"]
    if change == "vocabulary":
        ids[0, 5, 0] = VOCABULARY
    elif change == "twice":
        ids[0, 5, 0] = ids[0, 5, 1]
    elif change == "logits":
        log_probs += 3.0
    elif change == "positions":
        return batch | {name: batch[name][:, :-1] for name in ("teacher_ids", "teacher_log_probs")}
    elif change == "rows":
        return batch | {name: batch[name][:-1] for name in ("teacher_ids", "teacher_log_probs")}
    elif change == "column":
        del batch["teacher_ids"]
    return batch


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("vocabulary", r"token ids from 0 to 11, but the student's vocabulary has 11 tokens"),
        ("twice", "the same token id twice at a position"),
        ("logits", "hold no log-probabilities"),
        ("positions", "must be of the same positions"),
        ("rows", "is of 2 rows, but the student was called with 3"),
        ("column", "reads the column 'teacher_ids' of the batch"),
    ],
)
def test_bad_answers_are_refused_at_set_up(change: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fitted([TokenKDLoss()], bad(change), BatchTeacher(**SPARSE))


def test_losses_that_read_whole_logits_are_refused_at_set_up() -> None:
    with pytest.raises(ValueError, match="'kd' reads whole logits of the teacher, but its answer is SparseLogits"):
        fitted([TokenKDLoss(), KDLoss()], stored(BATCH, 3), BatchTeacher(**SPARSE))


def test_options_without_effect_are_refused() -> None:
    _, teacher = networks()
    with pytest.raises(ValueError, match="missing='tail' has no effect on whole logits"):
        fitted([TokenKDLoss(missing="tail")], BATCH, teacher)
    with pytest.raises(ValueError, match="vocab='truncate' has no effect on SparseLogits"):
        fitted([TokenKDLoss(vocab="truncate")], stored(BATCH, 3), BatchTeacher(**SPARSE))
    with pytest.raises(ValueError, match="expected missing to be one of"):
        TokenKDLoss(missing="rest")
    with pytest.raises(ValueError, match="reverse_kl is not defined where the teacher's probability is 0"):
        fitted([TokenKDLoss("reverse_kl")], stored(BATCH, 3), BatchTeacher(**SPARSE))
    whole = BATCH | {"theirs": answers(BATCH)}
    with pytest.raises(ValueError, match="teacher is no network that is called in the step"):
        fitted([TokenKDLoss(fused=True)], whole, BatchTeacher("theirs"))
    for names in ({}, {"logits": "a", "ids": "b"}, {"log_probs": "a"}):
        with pytest.raises(ValueError, match="BatchTeacher: expected"):
            BatchTeacher(**names)


def test_its_columns_are_not_told_as_unused(recwarn: pytest.WarningsRecorder) -> None:
    fitted([TokenKDLoss()], stored(BATCH, 3), BatchTeacher(**SPARSE))
    assert not [w for w in recwarn if "No network takes" in str(w.message)]
