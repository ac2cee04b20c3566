"""Means over tokens in an evaluation: the same however its rows are batched, ordered, padded, or spread."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.functional import token_kd_loss
from lightning_kd.losses import DistillationLoss, HiddenStateLoss, TokenKDLoss, ULDLoss
from lightning_kd.metrics.counts import WeightedMean
from lightning_kd.metrics.tokens import mean_negative_log_likelihood
from tests import support
from tests.losses.tokens.test_fused_in_fit import networks as named
from tests.losses.tokens.test_in_fit import UsersModule, networks, texts

LENGTHS = (6, 3, 2, 5, 6, 1, 4)
ALL = texts(*LENGTHS)


def to_right(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts, padded on the right."""
    order = batch["attention_mask"].argsort(dim=1, descending=True, stable=True)
    return {name: value.gather(1, order) for name, value in batch.items()}


def split(batch: dict[str, Tensor], size: int, order: list[int] | None = None) -> list[dict[str, Tensor]]:
    rows = torch.tensor(order or range(len(batch["input_ids"])))
    return [{name: value[some] for name, value in batch.items()} for some in rows.split(size)]


def still(losses: list[DistillationLoss], **options: object) -> DistillationModule:
    student, teacher = networks()
    return DistillationModule(student, teacher, losses, optimizer=partial(torch.optim.SGD, lr=0.0), **options)


def evaluate(module: DistillationModule, *loaders: list[dict[str, Tensor]]) -> dict[str, float]:
    trainer = support.trainer(max_epochs=1)
    trainer.fit(
        module, DataLoader(split(ALL, 3), batch_size=None), [DataLoader(one, batch_size=None) for one in loaders]
    )
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def expected(batch: dict[str, Tensor], **options: object) -> dict[str, float]:
    """What one pass over all rows gives, position by position."""
    student, teacher = networks()
    inputs = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        ours, theirs = student(*inputs).logits, teacher(*inputs).logits
    kl, own, its, right, alike = [], [], [], [], []
    for row, length in enumerate(LENGTHS):
        start = (6 - length) * bool(batch["attention_mask"][row, 0] == 0)
        for at in range(start + 1, start + length):
            label = batch["labels"][row, at]
            q, p = ours[row, at - 1].log_softmax(0), theirs[row, at - 1].log_softmax(0)
            kl.append((p.exp() * (p - q)).sum())
            own.append(-q[label])
            its.append(-p[label])
            right.append((q.argmax() == label).double())
            alike.append((q.argmax() == p.argmax()).double())
    mean = {
        name: float(torch.stack(v).mean()) for name, v in vars_of(kl=kl, own=own, its=its, right=right, alike=alike)
    }
    return {
        "val/token_kd": mean["kl"],
        "val/perplexity": math.exp(mean["own"]),
        "val/teacher_perplexity": math.exp(mean["its"]),
        "val/accuracy": mean["right"],
        "val/agreement": mean["alike"],
    }


def vars_of(**named: list[Tensor]) -> list[tuple[str, list[Tensor]]]:
    return list(named.items())


def close(found: dict[str, float], wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


WHOLE = expected(ALL)


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_the_size_of_the_batches_changes_nothing(size: int) -> None:
    found = evaluate(still([TokenKDLoss()]), split(ALL, size))
    close(found, WHOLE | {"val/loss": WHOLE["val/token_kd"]})


def test_the_order_of_the_rows_and_the_side_of_the_padding_change_nothing() -> None:
    right = to_right(ALL)
    assert expected(right) == pytest.approx(WHOLE, rel=1e-9)
    close(evaluate(still([TokenKDLoss()]), split(ALL, 2, [6, 0, 3, 1, 5, 2, 4])), WHOLE)
    close(evaluate(still([TokenKDLoss()]), split(right, 2)), WHOLE)


def test_more_padding_changes_nothing() -> None:
    more = {
        "input_ids": F.pad(ALL["input_ids"], (3, 0), value=4),
        "attention_mask": F.pad(ALL["attention_mask"], (3, 0)),
        "labels": F.pad(ALL["labels"], (3, 0), value=-100),
    }
    close(evaluate(still([TokenKDLoss()]), split(more, 3)), WHOLE)


def test_each_loader_has_means_of_its_own() -> None:
    found = evaluate(still([TokenKDLoss()]), split(ALL, 2), split(to_right(ALL), 7), split(texts(2, 2, seed=5), 1))
    for number in (0, 1):
        close(found, {f"{name}/dataloader_idx_{number}": value for name, value in WHOLE.items()})
    assert found["val/token_kd/dataloader_idx_2"] != pytest.approx(WHOLE["val/token_kd"], rel=1e-2)


def test_each_part_is_logged_apart_and_the_loss_is_their_sum() -> None:
    found = evaluate(still([TokenKDLoss(cross_entropy=0.5), TokenKDLoss("jsd", weight=2.0)]), split(ALL, 3))
    entropy = math.log(WHOLE["val/perplexity"])
    kl = WHOLE["val/token_kd"] + 0.5 * entropy
    student, teacher = networks()
    inputs = ALL["input_ids"], ALL["attention_mask"]
    jsd = token_kd_loss(
        student(*inputs).logits,
        teacher(*inputs).logits,
        labels=ALL["labels"],
        mask=ALL["attention_mask"],
        divergence="jsd",
        shift=True,
    ).item()
    parts = {"val/token_kd": kl, "val/token_kd/cross_entropy": entropy, "val/token_kd_2": jsd}
    close(found, parts | {"val/loss": kl + 2.0 * jsd})


def test_what_the_fused_loss_logs_is_that_of_whole_logits() -> None:
    student, teacher = named()
    found = [
        evaluate(
            DistillationModule(student, teacher, [TokenKDLoss(fused=f)], optimizer=partial(torch.optim.SGD, lr=0.0)),
            split(ALL, 2),
        )
        for f in (True, False)
    ]
    assert found[0] == found[1]


def test_a_part_that_is_no_mean_over_tokens_leaves_the_whole_loss_out() -> None:
    module = still([TokenKDLoss(), HiddenStateLoss("block", "block")])
    module.student.float()
    module.run.teacher.module.float()
    found = evaluate(module, split(ALL, 2))
    assert found["val/token_kd"] == pytest.approx(WHOLE["val/token_kd"], rel=1e-4)
    assert "val/loss" not in found


def test_answers_of_other_tokens_are_means_over_rows() -> None:
    module = still([ULDLoss()])
    one, five = (evaluate(module, split(ALL, size)) for size in (1, 5))
    assert one["val/uld"] == pytest.approx(five["val/uld"], rel=1e-6)
    assert one["val/uld"] > 0


def test_the_callback_logs_its_own_parts_and_the_teacher() -> None:
    student, teacher = networks()

    class Evaluated(UsersModule):
        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            self.net(batch["input_ids"], attention_mask=batch["attention_mask"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = support.trainer(max_epochs=1, callbacks=[DistillationCallback(teacher, [TokenKDLoss()])])
    train, val = (DataLoader(split(ALL, size), batch_size=None) for size in (3, 2))
    trainer.fit(Evaluated(student), train, val)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    close(found, {name: WHOLE[name] for name in ("val/token_kd", "val/teacher_perplexity", "val/agreement")})
    assert not {"val/loss", "val/perplexity", "val/accuracy"} & set(found)


def test_validation_without_a_fit() -> None:
    (found,) = support.trainer().validate(still([TokenKDLoss()]), DataLoader(split(ALL, 2), batch_size=None))
    close(found, WHOLE)


def test_a_batch_without_a_label_weighs_nothing() -> None:
    empty = {name: value.clone() for name, value in texts(4, 4, seed=9).items()}
    empty["labels"][:] = -100
    close(evaluate(still([TokenKDLoss()]), [*split(ALL, 3), empty]), WHOLE)


def test_an_id_that_is_no_target() -> None:
    marked = ALL | {"labels": ALL["labels"].masked_fill(ALL["labels"] == -100, 5)}
    gone = ALL | {"labels": ALL["labels"].masked_fill(ALL["labels"] == 5, -100)}
    losses = [TokenKDLoss(ignore_index=5), TokenKDLoss("jsd", ignore_index=5)]
    found, wanted = evaluate(still(losses), split(marked, 2)), evaluate(still([TokenKDLoss()]), split(gone, 7))
    close(found, {name: value for name, value in wanted.items() if name != "val/loss"})


def test_labels_that_a_collator_has_shifted() -> None:
    right = to_right(ALL)
    shifted = right | {"labels": F.pad(right["labels"][:, 1:], (0, 1), value=-100)}
    close(evaluate(still([TokenKDLoss(shift=False)]), split(shifted, 3)), WHOLE)


def test_the_sums_are_those_of_all_batches() -> None:
    average = WeightedMean()
    for mean, count in ((1.0, 3), (math.nan, 0), (5.0, 1)):
        average.update(torch.tensor(mean), torch.tensor(count))
    assert average.compute() == 2.0
    rows, ids = torch.randn(300, 70_000), torch.arange(300)
    wanted = F.cross_entropy(rows.double(), ids)
    torch.testing.assert_close(mean_negative_log_likelihood(rows, ids), wanted, rtol=1e-6, atol=0.0)


class Unordered(nn.Module):
    """A network of tokens of which nothing says what a position predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.net(input_ids)


def test_other_outputs_of_tokens_are_read_as_before() -> None:
    class OverTokens(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(logits.mT, target)

    torch.manual_seed(0)
    student = Unordered()
    module = DistillationModule(student, task_loss=OverTokens(), optimizer=partial(torch.optim.SGD, lr=0.0))
    ids = torch.randint(0, 11, (4, 5))
    loader = DataLoader([{"input_ids": ids, "labels": ids}], batch_size=None)
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, loader, loader)
    found = trainer.callback_metrics
    assert found["val/accuracy"] == (student(ids).argmax(-1) == ids).float().mean()
    assert "val/perplexity" not in found
