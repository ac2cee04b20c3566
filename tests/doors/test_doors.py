"""The module door and the callback door train the same student, bit for bit."""

import pytest
import torch
from torch import nn

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from tests import support


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("form", ["tensor", "dict"])
def test_both_doors_train_the_same_student(accumulate, form):
    module = support.module()
    support.fit(module, accumulate_grad_batches=accumulate)
    user, callback = support.UserModule(support.student(), form), None
    callback = DistillationCallback(support.teacher(), support.default_losses())
    support.fit(user, accumulate_grad_batches=accumulate, callbacks=[callback])
    support.assert_same_weights(module.student, user.net)
    support.assert_same_weights(module.losses, callback.losses)


def test_distillation_changes_the_students_weights():
    with_teacher, without = support.module(), support.module(teacher=None, losses=None)
    support.fit(with_teacher)
    support.fit(without)
    assert not torch.equal(with_teacher.student.head.weight, without.student.head.weight)


def test_total_is_the_task_term_plus_the_weighted_parts():
    module = support.module(task_weight=0.1)
    trainer = support.fit(module, max_epochs=1, log_every_n_steps=50)
    value = {name: float(v) for name, v in trainer.callback_metrics.items()}
    expected = 0.1 * value["train/task"] + 0.9 * value["train/kd"] + 2.0 * value["train/hint"]
    assert value["train/loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
def test_callback_lets_a_skipped_step_be_skipped():
    user = support.UserModule(support.student(), "sometimes none")
    trainer = support.fit(user, callbacks=[DistillationCallback(support.teacher(), support.default_losses())])
    assert trainer.current_epoch == 2


def test_callback_leaves_the_users_module_as_it_was():
    user = support.UserModule(support.student())
    keys, step = list(user.state_dict()), user.training_step
    support.fit(user, callbacks=[DistillationCallback(support.teacher(), support.default_losses())])
    assert list(user.state_dict()) == keys
    assert user.training_step == step
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in user.modules())
    assert [name for name, _ in user.named_children()] == ["net", "criterion"]


def test_callback_restores_the_module_after_an_exception():
    class Failing(support.UserModule):
        def on_train_batch_end(self, *args):
            raise KeyError("stop")

    user = Failing(support.student())
    with pytest.raises(KeyError):
        support.fit(user, callbacks=[DistillationCallback(support.teacher(), support.default_losses())])
    assert "training_step" not in vars(user)
    assert not any(m._forward_hooks for m in user.modules())


def test_callback_joins_an_optimizer_over_the_submodule_only():
    class Narrow(support.UserModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    narrow, wide = Narrow(support.student()), support.UserModule(support.student())
    for user in (narrow, wide):
        support.fit(user, callbacks=[DistillationCallback(support.teacher(), support.default_losses())])
    support.assert_same_weights(narrow.net, wide.net)


def test_callback_finds_a_student_by_its_dotted_name():
    class Nested(support.UserModule):
        def __init__(self, net):
            super().__init__(net)
            self.other = nn.Linear(2, 2)

    callback = DistillationCallback(support.teacher(), [KDLoss()], student="net")
    trainer = support.fit(Nested(support.student()), callbacks=[callback])
    assert trainer.callback_metrics["train/kd"] > 0


def test_callback_distils_a_module_that_is_itself_the_network():
    class Whole(support.UserModule):
        def __init__(self):
            super().__init__(None)
            self.first, self.second = nn.Linear(16, 8), nn.Linear(8, support.CLASSES)

        def forward(self, x):
            return self.second(self.first(x.flatten(1)).relu())

        def training_step(self, batch, batch_idx):
            return self.criterion(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self(batch[0])

    callback = DistillationCallback(support.teacher(), [KDLoss()], student="")
    trainer = support.fit(Whole(), callbacks=[callback])
    assert trainer.callback_metrics["train/kd"] > 0
    assert 0 <= trainer.callback_metrics["val/agreement"] <= 1


class Named(nn.Module):
    """Takes named inputs and returns an object with logits."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, pixels, scale=None):
        logits = self.net(pixels if scale is None else pixels * scale.view(-1, 1, 1, 1))
        if self.form == "tuple":
            return logits, pixels
        return {"logits": logits} if self.form == "dict" else type("Output", (), {"logits": logits})()


@pytest.mark.parametrize("form", ["tuple", "dict", "object"])
def test_dictionary_batches_and_structured_outputs(form):
    x, y = support.data(8).tensors
    named = support.batches({"pixels": x, "scale": torch.ones(8), "labels": y})
    module = support.module(Named(support.student(), form), teacher=Named(support.teacher(), form), losses=[KDLoss()])
    plain = support.module(losses=[KDLoss()])
    for made, train in ((module, named), (plain, support.batches((x, y)))):
        support.fit(made, train=train, val=train)
    support.assert_same_weights(module.student.net, plain.student)


def test_batches_with_an_index_and_unlabelled_batches():
    x, y = support.data(8).tensors
    indexed, plain, unlabelled = (support.module(losses=[KDLoss()]) for _ in range(3))
    unlabelled.task_loss = None
    support.fit(indexed, train=support.batches((x, y, torch.arange(8))), val=support.batches((x, y)))
    support.fit(plain, train=support.batches((x, y)), val=support.batches((x, y)))
    support.assert_same_weights(indexed.student, plain.student)
    support.fit(unlabelled, train=support.batches(x), val=support.batches(x))
    assert "val/accuracy" not in unlabelled.trainer.callback_metrics
    assert "val/agreement" in unlabelled.trainer.callback_metrics


def test_the_hooks_unpack_other_batches_and_give_the_teacher_its_own_view():
    class Views(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(args=(batch["views"][0],), target=batch["views"][2])

        def teacher_inputs(self, batch, args, kwargs):
            return (batch["views"][1],), kwargs

    x, y = support.data(8).tensors
    seen = []
    net = support.teacher()
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    module = Views(support.student(), net, [KDLoss()], task_loss=nn.CrossEntropyLoss())
    batch = {"views": (x, x + 1, y)}
    support.fit(module, train=support.batches(batch), val=support.batches(batch), max_epochs=1)
    assert all(torch.equal(view, x + 1) for view in seen)
    assert len(seen) == 3  # probe, training, validation


@pytest.mark.parametrize("target", ["ids", "soft", "smooth", "some hidden", "all hidden"])
def test_task_loss_takes_every_kind_of_target(target):
    x, y = support.data(8).tensors
    smoothing = 0.1 if target == "smooth" else 0.0
    if target == "soft":
        y = torch.nn.functional.one_hot(y, support.CLASSES).float()
    if "hidden" in target:
        y = torch.where(torch.arange(8) < (4 if target == "some hidden" else 8), -100, y)
    module = support.module(losses=[KDLoss()], task_loss=nn.CrossEntropyLoss(label_smoothing=smoothing))
    with torch.no_grad():
        task = module.train()._task(module(x), Batch(target=y))
    shown = y != -100 if "hidden" in target else slice(None)
    expected = (
        torch.tensor(0.0)
        if target == "all hidden"
        else nn.functional.cross_entropy(module(x)[shown], y[shown], label_smoothing=smoothing)
    )
    torch.testing.assert_close(task, expected.detach())
    support.fit(module, train=support.batches((x, y)), val=support.loader())
    assert all(p.isfinite().all() for p in module.student.parameters())


def test_predict_returns_the_students_logits():
    module = support.module()
    predicted = support.trainer().predict(module, support.loader())
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(predicted), module.eval()(support.data().tensors[0]))


def test_test_stage_compares_through_both_doors():
    module = support.module()
    (by_module,) = support.trainer().test(module, support.loader(), verbose=False)
    user = support.UserModule(support.student())
    user.test_step = user.validation_step
    callback = DistillationCallback(support.teacher(), support.default_losses())
    (by_callback,) = support.trainer(callbacks=[callback]).test(user, support.loader(), verbose=False)
    assert by_module["test/agreement"] == by_callback["test/agreement"]
    assert by_module["test/teacher_accuracy"] == by_callback["test/teacher_accuracy"]
