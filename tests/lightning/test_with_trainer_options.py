"""The Trainer's own options through both doors: how much is trained, in which pieces, and under which watch."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from tests import support

DOORS = ["module", "callback"]


def fitted(door, **options):
    """Fit on batches in a fixed order; return (student, losses, Trainer)."""
    made, callbacks = support.through(door)
    learner = made.student if door == "module" else made.net
    losses = callbacks[0].losses if callbacks else made.losses
    callbacks = [*callbacks, *options.pop("callbacks", [])]
    return learner, losses, support.fit(made, train=support.loader(), callbacks=callbacks, **options)


def by_hand(*epochs):
    """Train on the given batches of each epoch without a Trainer; return (student, losses, mean loss of each epoch)."""
    module, batches = support.module(), list(support.loader())
    torch.manual_seed(11)
    module.prepare(batches[0])
    optimizer, means = module.configure_optimizers(), []
    for epoch in epochs:
        for i in epoch:
            optimizer.zero_grad()
            module.training_step(batches[i], i).backward()
            optimizer.step()
        means.append(module.run.log.flush()["loss"])
    return module.student, module.losses, means


def assert_same(one, other):
    support.assert_same_weights(one[0], other[0])
    support.assert_same_weights(one[1], other[1])


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning")
@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"fast_dev_run": True}, [[0]]),
        ({"fast_dev_run": 2, "logger": None}, [[0, 1]]),
        ({"overfit_batches": 1}, [[0], [0]]),
        ({"limit_train_batches": 2}, [[0, 1], [0, 1]]),
        ({"limit_train_batches": 0.34, "limit_val_batches": 1}, [[0], [0]]),
        ({"max_steps": 4}, [[0, 1, 2], [0]]),
        ({"max_steps": 4, "max_epochs": -1}, [[0, 1, 2], [0]]),
        ({"min_steps": 5, "max_epochs": 1}, [[0, 1, 2]]),
        ({"val_check_interval": 1}, [[0, 1, 2]] * 2),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, [[0, 1, 2]] * 2),
        ({"check_val_every_n_epoch": 2, "num_sanity_val_steps": 2}, [[0, 1, 2]] * 2),
        ({"detect_anomaly": True}, [[0, 1, 2]] * 2),
        ({"deterministic": True, "inference_mode": False}, [[0, 1, 2]] * 2),
        ({"reload_dataloaders_every_n_epochs": 1}, [[0, 1, 2]] * 2),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_the_batches_that_are_asked_for_train_and_no_others(door, options, epochs):
    *trained, trainer = fitted(door, **options)
    *expected, means = by_hand(*epochs)
    assert_same(trained, expected)
    assert trainer.global_step == sum(map(len, epochs))
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(means[-1])


@pytest.mark.parametrize("door", DOORS)
def test_a_barebones_run_trains_the_same(door):
    options = dict.fromkeys(
        (
            "logger",
            "enable_checkpointing",
            "enable_progress_bar",
            "enable_model_summary",
            "log_every_n_steps",
            "num_sanity_val_steps",
        )
    )
    made, callbacks = support.through(door)
    if door == "callback":
        made.log = lambda *args, **kwargs: None  # the user's own logging, of which Lightning warns
    support.fit(made, train=support.loader(), callbacks=callbacks, barebones=True, **options)
    expected, *_ = by_hand([0, 1, 2], [0, 1, 2])
    support.assert_same_weights(made.student if door == "module" else made.net, expected)


class Shown(Callback):
    """Remembers what callbacks see at each validation: the step, the training means, and the agreement."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, *_):
        values = trainer.callback_metrics
        self.seen.append((trainer.global_step, float(values["train/loss"]), float(values["val/agreement"])))


@pytest.mark.parametrize("door", DOORS)
def test_a_validation_within_an_epoch_sees_the_steps_done_and_disturbs_none(door, tmp_path):
    logger, shown = CSVLogger(tmp_path), Shown()
    options = {"callbacks": [shown], "logger": logger, "log_every_n_steps": 2, "max_epochs": 1}
    fitted(door, val_check_interval=1, **options)
    x = support.data().tensors[0]
    for (step, loss, agreement), done in zip(shown.seen, ([0], [0, 1], [0, 1, 2]), strict=True):
        learner, _, (mean,) = by_hand(done)
        with torch.no_grad():
            expected = (learner.eval()(x).argmax(1) == support.teacher().eval()(x).argmax(1)).float().mean().item()
        assert (step, loss, agreement) == (len(done), pytest.approx(mean), pytest.approx(expected))
    lines = [row for row in support.rows(logger) if "train/loss" in row]
    assert [row["step"] for row in lines] == [1, 2]


@pytest.mark.parametrize("door", DOORS)
def test_anomaly_detection_names_the_operation_that_went_wrong(door):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    made, callbacks = support.through(door)
    learner = made.student if door == "module" else made.net
    learner.head.register_forward_hook(lambda layer, args, output: Broken.apply(output))
    with (
        pytest.raises(RuntimeError, match="Function 'BrokenBackward' returned nan values"),
        pytest.warns(UserWarning, match="Error detected in BrokenBackward"),
    ):
        support.fit(made, callbacks=callbacks, detect_anomaly=True)


@pytest.mark.parametrize(
    ("profiler", "step"),
    [
        (SimpleProfiler, "[Strategy]SingleDeviceStrategy.training_step"),
        (AdvancedProfiler, "training_step"),
        (partial(PyTorchProfiler, row_limit=-1), "[Strategy]SingleDeviceStrategy.training"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule will be overridden:UserWarning")  # few steps
@pytest.mark.parametrize("door", DOORS)
def test_profilers_see_every_step_and_change_none(door, profiler, step, tmp_path):
    *trained, _ = fitted(door, profiler=profiler(dirpath=tmp_path, filename="profile"))
    assert_same(trained, by_hand([0, 1, 2], [0, 1, 2]))
    assert step in (tmp_path / "fit-profile.txt").read_text()


@pytest.mark.parametrize("door", DOORS)
def test_evaluation_needs_no_fit_and_leaves_no_hook(door):
    made, callbacks = support.through(door)
    learner = made.student if door == "module" else made.net
    before = support.snapshot(learner)
    if door == "callback":
        made.test_step = made.validation_step
    x = support.data().tensors[0]
    with torch.no_grad():
        expected = (learner.eval()(x).argmax(1) == support.teacher().eval()(x).argmax(1)).float().mean().item()
    learner.train()
    for stage in ("val", "test", "val"):
        trainer = support.trainer(callbacks=callbacks)
        (results,) = (trainer.validate if stage == "val" else trainer.test)(made, support.loader(), verbose=False)
        assert results[f"{stage}/agreement"] == pytest.approx(expected)
        assert results[f"{stage}/teacher_accuracy"] == 0.25
    support.assert_unchanged(learner, before)
    assert not any(layer._forward_hooks for layer in made.modules())
    assert learner.training


@pytest.mark.parametrize("door", DOORS)
def test_evaluation_after_a_fit_is_of_the_student_that_was_trained(door):
    made, callbacks = support.through(door)
    learner = made.student if door == "module" else made.net
    made.predict_step = lambda batch, batch_idx: learner(batch[0])
    trainer = support.fit(made, callbacks=callbacks)
    last = trainer.callback_metrics["val/agreement"].item()
    (results,) = trainer.validate(made, support.loader(), verbose=False)
    assert results["val/agreement"] == pytest.approx(last)
    assert results["val/teacher_accuracy"] == 0.25  # told once in a fit, and in every evaluation that is asked for
    predicted = torch.cat(trainer.predict(made, support.loader()))
    with torch.no_grad():
        torch.testing.assert_close(predicted, learner.eval()(support.data().tensors[0]))


@pytest.mark.parametrize("same_trainer", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_several_fits_in_a_row_go_on_with_the_weights_and_begin_everything_else_anew(door, same_trainer, tmp_path):
    made, callbacks = support.through(door)
    learner = made.student if door == "module" else made.net
    logger = CSVLogger(tmp_path)
    trainer = support.fit(made, train=support.loader(), callbacks=callbacks, logger=logger, max_epochs=1)
    if same_trainer:
        trainer.fit_loop.max_epochs = 2
        trainer.fit(made, support.loader(), support.loader())
    else:
        logger = CSVLogger(tmp_path)
        support.fit(made, train=support.loader(), callbacks=callbacks, logger=logger, max_epochs=1)
    written = support.rows(logger)
    told = [row["val/teacher_accuracy"] for row in written if "val/teacher_accuracy" in row]
    assert told == [0.25] * (2 if same_trainer else 1)

    module, batches = support.module(), list(support.loader())
    torch.manual_seed(11)
    module.prepare(batches[0])
    for _ in range(2):
        optimizer = module.configure_optimizers()
        for i, batch in enumerate(batches):
            optimizer.zero_grad()
            module.training_step(batch, i).backward()
            optimizer.step()
    support.assert_same_weights(learner, module.student)


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_data_may_have_the_format_that_the_networks_get(precision, dtype, door):
    x, y = support.data().tensors
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.to(dtype), y), batch_size=8)
    net = support.student()
    made, callbacks = support.through(door, net)
    support.fit(made, train=rows, val=rows, precision=precision, callbacks=callbacks)
    plain = support.student()
    other, more = support.through(door, plain)
    loader = support.loader()
    support.fit(other, train=loader, val=loader, precision=precision, callbacks=more)
    support.assert_same_weights(net, plain)
