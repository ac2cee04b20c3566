"""Targets and metrics by task: the right number, or none and a line that says why; never a crash."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelF1Score
from torchmetrics.functional.classification import multilabel_f1_score
from torchmetrics.functional.regression import pearson_corrcoef
from torchmetrics.regression import MeanAbsoluteError

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import AdaptiveTemperature, BYOTLoss, DKDLoss, HintLoss, KDLoss, NKDLoss, TfKDLoss, WSLDLoss
from lightning_kd.metrics import Comparison
from lightning_kd.metrics.task import Task
from tests import support
from tests.support.names import named


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape, classes, seed=5):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


class Functional(nn.Module):
    """A loss that is written in code, as most are."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, logits, target):
        return self.function(logits, target)


def nets(shape):
    """Two networks whose outputs have a shape, batch axis left out."""
    size = torch.Size(shape).numel()
    return [
        nn.Sequential(support.seeded(lambda: nn.Linear(6, size), seed), nn.Unflatten(1, shape)) if len(shape) > 1
        else nn.Sequential(support.seeded(lambda: nn.Linear(6, size), seed))
        for seed in (1, 2)
    ]  # fmt: skip


class Own(support.UserModule):
    def __init__(self, net, loss):
        super().__init__(net)
        self.function = loss if isinstance(loss, nn.Module) else None
        self.loss = loss
        del self.criterion

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("own", self.loss(self.net(batch[0]), batch[1]))


def logged(door, shape, target, loss, batch_size=5, order=None, metrics=None):
    """What a validation logs, and the outputs of student and teacher on the data."""
    x = random(len(target), 6)
    student, teacher = nets(shape)
    rows = torch.arange(len(target)) if order is None else order
    loader = DataLoader(TensorDataset(x[rows], target[rows]), batch_size=batch_size)
    hint = HintLoss("0", "0")
    if door == "module":
        task = loss if isinstance(loss, nn.Module) else Functional(loss)
        made, callbacks = DistillationModule(student, teacher, [hint], task_loss=task, metrics=metrics), []
    else:
        made, callbacks = Own(student, loss), [DistillationCallback(teacher, [hint], student="net", metrics=metrics)]
    (found,) = support.trainer(callbacks=callbacks).validate(made, loader, verbose=False)
    with torch.no_grad():
        return {name.removeprefix("val/"): value for name, value in found.items()}, student(x), teacher(x)


def mean(hits):
    return hits.float().mean().item()


DOORS = ["module", "callback"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("shape", "target", "loss", "flat"),
    [
        ((4,), ids(17, classes=4), F.cross_entropy, lambda y: y),
        ((4,), ids(17, 1, classes=4), lambda z, y: F.cross_entropy(z, y[:, 0]), lambda y: y[:, 0]),
        ((4,), F.one_hot(ids(17, classes=4), 4), lambda z, y: F.cross_entropy(z, y.float()), lambda y: y.argmax(1)),
        ((4, 3, 5), ids(17, 3, 5, classes=4), nn.CrossEntropyLoss(), lambda y: y),
        ((4, 3, 5), ids(17, 1, 3, 5, classes=4), lambda z, y: F.cross_entropy(z, y[:, 0]), lambda y: y[:, 0]),
    ],
    ids=["ids", "ids (B, 1)", "one-hot", "masks", "masks (B, 1, H, W)"],
)
def test_classes_are_counted_in_every_form_of_target(door, shape, target, loss, flat):
    found, mine, its = logged(door, shape, target, loss)
    mine, its, y = mine.argmax(1), its.argmax(1), flat(target)
    expected = {"teacher_accuracy": mean(its == y), "agreement": mean(mine == its)}
    if door == "module":
        expected["accuracy"] = mean(mine == y)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) - set(expected) <= {"loss", "own"}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("tokens", [7, 4])
def test_tokens_have_their_classes_on_the_last_axis(door, tokens):
    y = ids(17, tokens, classes=4)
    y[:, 2:] = torch.where(random(17, tokens - 2, seed=3) > 0, y[:, 2:], -1)
    found, mine, its = logged(
        door, (tokens, 4), y, lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten(), ignore_index=-1)
    )
    mine, its, valid = mine.argmax(-1), its.argmax(-1), y != -1
    assert found["teacher_accuracy"] == pytest.approx(mean((its == y)[valid]))
    assert found["agreement"] == pytest.approx(mean((mine == its)[valid]))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mark", [255, 0, 3, -1])
@pytest.mark.parametrize("form", ["module", "function"])
def test_void_pixels_do_not_count(door, mark, form):
    y = ids(17, 3, 5, classes=4)
    y = torch.where(random(17, 3, 5, seed=3) > 0, y, mark)
    loss = nn.CrossEntropyLoss(ignore_index=mark) if form == "module" else (
        lambda z, t: F.cross_entropy(z, t.long(), ignore_index=mark)
    )  # fmt: skip
    stored = y.to(torch.uint8) if mark == 255 and form == "function" else y
    found, mine, its = logged(door, (4, 3, 5), stored, loss)
    mine, its, valid = mine.argmax(1), its.argmax(1), y != mark
    assert found["teacher_accuracy"] == pytest.approx(mean((its == y)[valid]))
    assert found["agreement"] == pytest.approx(mean((mine == its)[valid]))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("labels", ["float", "integer", "-1/1"])
def test_labels_of_several_a_sample_give_f1(door, labels):
    y = (random(17, 5, seed=3) > 0).float()
    target = {"float": y, "integer": y.long(), "-1/1": 2 * y - 1}[labels]
    function = F.soft_margin_loss if labels == "-1/1" else (
        lambda z, t: F.binary_cross_entropy_with_logits(z, t.float())
    )  # fmt: skip
    found, mine, its = logged(door, (5,), target, function)
    expected = multilabel_f1_score(its.sigmoid(), y.long(), num_labels=5, average="micro")
    assert found["teacher_f1"] == pytest.approx(expected.item())
    assert found["agreement"] == pytest.approx(mean((mine > 0) == (its > 0)))
    assert "teacher_accuracy" not in found


@pytest.mark.parametrize("door", DOORS)
def test_labels_that_are_not_known_do_not_count(door):
    y = (random(17, 5, seed=3) > 0).float()
    known = random(17, 5, seed=4) > 0
    found, _, its = logged(
        door,
        (5,),
        torch.where(known, y, float("nan")),
        lambda z, t: F.binary_cross_entropy_with_logits(z[~t.isnan()], t[~t.isnan()]),
    )
    ours, theirs = (its > 0)[known], y[known] > 0
    assert found["teacher_f1"] == pytest.approx(2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()))


class Centres(nn.Module):
    """Cross entropy of cosines to centres of the classes, as ArcFace without its margin."""

    def __init__(self, inner=None):
        super().__init__()
        self.centres, self.inner = nn.Parameter(random(4, 6)), inner

    def forward(self, embeddings, target):
        cosines = F.normalize(embeddings) @ F.normalize(self.centres).T
        return F.cross_entropy(cosines, target) if self.inner is None else self.inner(cosines, target)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("inner", [None, nn.CrossEntropyLoss()], ids=["function", "module"])
def test_embeddings_of_which_a_loss_makes_scores_have_no_accuracy(door, inner):
    with pytest.warns(UserWarning, match="val/agreement is left out: the task's loss reads the outputs otherwise"):
        found, _, _ = logged(door, (6,), ids(17, classes=4), Centres(inner))
    assert not {"accuracy", "teacher_accuracy", "agreement"} & set(found)


def supervised_contrast(product, embeddings, target):
    """Khosla et al. 2020 on one view: each row against the rows of its class; the softmax is over rows."""
    directions = F.normalize(embeddings)
    similar = product(directions) / 0.1 - 1e4 * torch.eye(len(directions))
    same = (target[:, None] == target) & ~torch.eye(len(target), dtype=torch.bool)
    return -(similar.log_softmax(1) * same).sum() / same.sum().clamp(min=1)


def triplets(embeddings, target):
    apart = torch.cdist(embeddings, embeddings)
    same = target[:, None] == target
    return F.relu((apart * same).amax(1) - (apart + 1e4 * same).amin(1) + 0.3).mean()


METRIC_LEARNING = {
    "@": lambda z, y: supervised_contrast(lambda rows: rows @ rows.T, z, y),
    "einsum": lambda z, y: supervised_contrast(lambda rows: torch.einsum("ik,jk->ij", rows, rows), z, y),
    "exp": lambda z, y: ((z @ z.t()).exp().sum(1).log() - (z @ z.t() * (y[:, None] == y)).mean(1)).mean(),
    "triplets": triplets,
    "cosines": lambda z, y: (F.cosine_similarity(z[None], z[:, None], dim=-1) - (y[:, None] == y).float()).abs().mean(),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("size", [6, 17])
@pytest.mark.parametrize("name", METRIC_LEARNING)
def test_outputs_that_a_loss_compares_with_each_other_are_no_class_scores(door, size, name):
    found, mine, its = logged(door, (size,), ids(17, classes=4), METRIC_LEARNING[name], batch_size=17)
    assert not {"accuracy", "teacher_accuracy", "agreement"} & set(found)
    assert found["cosine_to_teacher"] == pytest.approx(mean(F.cosine_similarity(mine, its)), abs=1e-6)


CLASS_SCORES = {
    "log_softmax": lambda z, y: -z.log_softmax(-1).gather(1, y[:, None]).mean(),
    "softmax": lambda z, y: (1 - z.softmax(-1).gather(1, y[:, None])).square().mean(),
    "logsumexp": lambda z, y: (z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).mean(),
    "vmap": lambda z, y: torch.vmap(lambda row, one: row.logsumexp(0) - row @ one)(z, F.one_hot(y, 4).float()).mean(),
    "by hand": lambda z, y: (z.exp().sum(1).log() - z.gather(1, y[:, None])[:, 0]).mean(),
    "normalised": lambda z, y: -(5 * F.normalize(z)).log_softmax(-1).gather(1, y[:, None]).mean(),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", CLASS_SCORES)
def test_class_scores_are_known_in_a_loss_that_is_written_out(door, name):
    target = ids(17, classes=4)
    found, _, its = logged(door, (4,), target, CLASS_SCORES[name])
    assert found["teacher_accuracy"] == pytest.approx(mean(its.argmax(1) == target))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), F.smooth_l1_loss], ids=named)
@pytest.mark.parametrize("size", [(), (1,), (3,)])
def test_values_give_errors_and_correlations(door, loss, size):
    y = random(17, *size, seed=3)
    outputs = size or (1,)
    called = loss if size else (lambda z, t: F.mse_loss(z[:, 0], t))
    found, mine, its = logged(door, outputs, y, called)
    y = y.reshape(mine.shape)
    assert found["teacher_mse"] == pytest.approx(F.mse_loss(its, y).item(), rel=1e-5)
    assert found["mse_to_teacher"] == pytest.approx(F.mse_loss(mine, its).item(), rel=1e-5)
    assert found["pearson_to_teacher"] == pytest.approx(pearson_corrcoef(mine, its).mean().item(), rel=1e-4)
    assert not {"accuracy", "agreement", "teacher_accuracy"} & set(found)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("shape", "target", "loss"),
    [
        ((4, 3, 5), ids(17, 6, 10, classes=4), lambda z, y: F.cross_entropy(F.interpolate(z, y.shape[1:]), y)),
        ((4,), ids(17, 2, classes=4), lambda z, y: F.cross_entropy(z, y[:, 0])),
        ((2,), ids(17, 2, classes=9), lambda z, y: F.poisson_nll_loss(z, y)),
        ((2,), random(17), lambda z, y: F.gaussian_nll_loss(z[:, 0], y, z[:, 1].exp())),
        ((3,), random(17), lambda z, y: (z - y[:, None]).abs().mean()),
        ((16,), 39 - ids(17, classes=12), lambda z, y: z.square().mean()),
    ],
    ids=["coarser logits", "two labels", "counts", "mean and variance", "quantiles", "identities"],
)
def test_what_does_not_fit_is_left_out_with_one_line_and_the_run_goes_on(door, shape, target, loss):
    with pytest.warns(UserWarning, match="is left out: ") as told:
        found, *_ = logged(door, shape, target, loss)
    assert not {"accuracy", "teacher_accuracy"} & set(found)
    lines = [str(one.message) for one in told if "is left out" in str(one.message)]
    assert len(lines) == len({line.split()[0] for line in lines})


def test_ids_that_are_no_class_in_a_later_batch_make_no_number_and_a_line():
    target = torch.cat((ids(10, classes=4), torch.tensor([30, 31])))
    with pytest.warns(UserWarning, match="accuracy, teacher_accuracy: not a number"):
        found, *_ = logged("module", (4,), target, lambda z, y: z.square().mean())
    assert math.isnan(found["accuracy"])


def test_a_teacher_of_other_classes_is_not_compared():
    comparison = Comparison(Task("classes"))
    comparison.update(random(6, 3), random(6, 50), ids(6, classes=3))
    assert list(comparison.compute()) == ["accuracy"]
    assert "of other classes" in comparison.left_out["agreement"]


@pytest.mark.parametrize(
    ("shape", "target", "loss"),
    [
        ((4,), ids(17, classes=4), F.cross_entropy),
        ((5,), (random(17, 5, seed=3) > 0).float(), nn.BCEWithLogitsLoss()),
        ((3,), random(17, 3, seed=3), nn.MSELoss()),
        (
            (4, 3, 5),
            torch.where(random(17, 3, 5) > 0, ids(17, 3, 5, classes=4), 255),
            nn.CrossEntropyLoss(None, None, 255),
        ),
    ],
    ids=["classes", "labels", "values", "void"],
)
def test_batches_and_order_do_not_change_a_number(shape, target, loss):
    once, *_ = logged("module", shape, target, loss, batch_size=17)
    turned = torch.randperm(17, generator=torch.Generator().manual_seed(2))
    for options in ({"batch_size": 5}, {"batch_size": 4, "order": turned}):
        again, *_ = logged("module", shape, target, loss, **options)
        assert again == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", ["one", "list", "collection", "names"])
def test_metrics_of_the_user_are_computed_for_student_and_teacher(door, form):
    y = ids(17, classes=4)
    metric = MulticlassAccuracy(4, average="micro")
    given = {"one": metric, "list": [metric], "collection": MetricCollection([metric]), "names": {"top": metric}}[form]
    found, mine, its = logged(door, (4,), y, F.cross_entropy, metrics=given)
    name = "top" if form == "names" else "MulticlassAccuracy"
    assert found[name] == pytest.approx(mean(mine.argmax(1) == y))
    assert found[f"teacher_{name}"] == pytest.approx(mean(its.argmax(1) == y))
    assert not metric.update_called


def test_metrics_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="two have the name 'MeanAbsoluteError'"):
        DistillationCallback(nn.Linear(1, 1), [KDLoss()], metrics=[MeanAbsoluteError(), MeanAbsoluteError()])
    with pytest.raises(TypeError, match="'f1' is a int"):
        DistillationCallback(nn.Linear(1, 1), [KDLoss()], metrics={"f1": 3})
    with pytest.raises(ValueError, match=r"MultilabelF1Score \('f1'\) cannot compare outputs of shape \(5, 4\)"):
        logged("module", (4,), ids(17, classes=4), F.cross_entropy, metrics={"f1": MultilabelF1Score(4)})


@pytest.mark.parametrize(
    "loss",
    [DKDLoss, NKDLoss, WSLDLoss, TfKDLoss, lambda: KDLoss(AdaptiveTemperature("correctness"))],
    ids=["dkd", "nkd", "wsld", "tfkd", "kd"],
)
@pytest.mark.parametrize("dtype", [torch.long, torch.uint8])
def test_losses_leave_out_what_the_task_leaves_out(loss, dtype):
    logits, guide, y = random(9, 4), random(9, 4, seed=1), ids(9, classes=4)
    y[::2] = 255
    module = DistillationModule(
        nn.Linear(4, 4), nn.Linear(4, 4), [loss()], task_loss=nn.CrossEntropyLoss(ignore_index=255)
    )
    (told,) = module.run.objective.components
    arguments = (logits,) if isinstance(told, TfKDLoss) else (logits, guide)
    value = told(*arguments, target=y.to(dtype))
    assert torch.equal(value, loss()(*arguments, target=torch.where(y == 255, -100, y)))


def test_byot_leaves_out_what_the_task_leaves_out():
    values = []
    for mark in (255, -100):
        y = support.data().tensors[1].clone()
        y[::2] = mark
        loader = DataLoader(TensorDataset(support.data().tensors[0], y), batch_size=8)
        net = support.seeded(lambda: support.StagedNet(3), 1)
        made = DistillationModule(net, None, [support.seeded(lambda: BYOTLoss(["stage1", "stage2"]), 3)],
                                  task_loss=nn.CrossEntropyLoss(ignore_index=mark))  # fmt: skip
        trainer = support.trainer(max_epochs=1)
        torch.manual_seed(0)
        trainer.fit(made, loader, loader)
        values.append(float(trainer.callback_metrics["train/byot"]))
    assert values[0] == values[1]


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, logits, target):
        return self.value(logits, target)


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        (nn.CrossEntropyLoss(reduction="none"), ValueError, r"Part 'task' returned a tensor of shape \(8,\).*mean"),
        (Returns(lambda z, y: (F.cross_entropy(z, y), {})), TypeError, "Part 'task' returned a tuple"),
        (nn.CrossEntropyLoss(weight=torch.zeros(4)), ValueError, "Part 'task' is not a number: the class weights .* 0"),
    ],
)
def test_a_task_loss_of_another_form_is_named(task, error, words):
    made = support.module(task_loss=task)
    with pytest.raises(error, match=words):
        support.fit(made)


def test_mixup_tuples_reach_a_loss_that_takes_them_and_are_refused_in_words_by_others():
    def mixed(samples):
        x, y = (torch.stack(one) for one in zip(*samples, strict=True))
        return x, (y, y.flip(0), torch.tensor(0.7))

    loader = DataLoader(support.data(), batch_size=8, collate_fn=mixed)
    with pytest.raises(ValueError, match=r"CrossEntropyLoss cannot take a target that is a .*unpack_batch"):
        support.trainer(max_epochs=1).fit(support.module(), loader, loader)
    own = Returns(lambda z, t: t[2] * F.cross_entropy(z, t[0]) + (1 - t[2]) * F.cross_entropy(z, t[1]))
    trainer = support.trainer(max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(support.module(task_loss=own), loader, loader)
    assert "val/loss" in trainer.callback_metrics
    with pytest.raises(ValueError, match=r"dkd_loss: expected class ids, got a target that is a (list|tuple),"):
        support.trainer(max_epochs=1).fit(support.module(losses=[DKDLoss()], task_loss=own), loader, loader)


class Reordering(support.UserModule):
    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        turned = torch.arange(len(x)).flip(0)
        return self.criterion(self.net(x[turned]), y[turned])


def test_a_step_that_reorders_rows_is_refused_where_a_loss_needs_targets():
    callback = DistillationCallback(support.teacher(), [DKDLoss()])
    with pytest.raises(ValueError, match=r"mixed or reordered the samples.*unpack_batch"):
        support.fit(Reordering(support.student()), callbacks=[callback])
    support.fit(Reordering(support.student()), callbacks=[DistillationCallback(support.teacher(), [KDLoss()])])


def test_a_callback_that_knows_the_order_is_trusted():
    class Knows(DistillationCallback):
        def unpack_batch(self, batch):
            read = super().unpack_batch(batch)
            read.target = read.target.flip(0)
            return read

    support.fit(Reordering(support.student()), callbacks=[Knows(support.teacher(), [DKDLoss()])])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((random(4, 8), random(4, 8), ids(4, classes=3)), "second element float32.* looks like another input"),
        ((ids(4, 7, classes=9), torch.ones(4, 7, dtype=torch.long), ids(4, classes=3)), "looks like another input"),
        ((random(4, 8), ids(4, classes=3), random(4)), "third element .* it is float32"),
        ((random(4, 8), ids(4, classes=3), ids(4, 3, 5, classes=3)), "third element .* it is int64"),
    ],
)
def test_a_batch_of_three_whose_third_is_no_row_is_refused(batch, words):
    with pytest.raises(ValueError, match=words):
        support.module().unpack_batch(batch)


def test_a_path_beside_the_target_is_passed_over():
    batch = (random(4, 8), ids(4, classes=3), ["a", "b", "c", "d"])
    read = support.module().unpack_batch(batch)
    assert read.index is None
    assert read.target is batch[1]
