"""The callback on modules that nothing here was written for: what they train is what distilling by hand trains."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback
from lightning_kd.capture.networks import original
from lightning_kd.losses import KDLoss, VIDLoss
from lightning_kd.teachers import BornAgain, EMATeacher
from tests import support
from tests.support import styles

pytestmark = pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")  # as one style means it


def kd(weight=0.9):
    return KDLoss(temperature=2.0, weight=weight)


def fit(module, data=None, seed=11, ckpt_path=None, **options):
    made = support.trainer(**options)
    torch.manual_seed(seed)
    rows = support.data() if data is None else data()
    val = DataLoader(rows, batch_size=8) if is_overridden("validation_step", original(module)) else None
    made.fit(module, DataLoader(rows, batch_size=8, shuffle=True), val, ckpt_path=ckpt_path)
    return made


def distil(style, weight=0.9, callbacks=(), **options):
    """Fit a style with the callback; returns the module."""
    module = style.alone()
    callback = DistillationCallback(style.guide(), [kd(weight)], **style.options)
    fit(module, style.data, callbacks=[callback, *callbacks], **options)
    return module


def untouched(style):
    """Fit a style without the callback; returns the module."""
    module = style.alone()
    fit(module, style.data)
    return module


def plain(module):
    """A module's attributes that are plain data."""
    return {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | list)}


@pytest.mark.parametrize("style", styles.BY_NAME.values(), ids=styles.BY_NAME)
def test_it_trains_what_distillation_by_hand_trains(style):
    distilled, written = distil(style), style.by_hand()
    fit(written, style.data)
    support.assert_same_weights(distilled, written)
    with pytest.raises(AssertionError, match="weight"):
        support.assert_same_weights(distilled, untouched(style))


@pytest.mark.parametrize("style", styles.BY_NAME.values(), ids=styles.BY_NAME)
def test_with_no_weight_it_changes_nothing(style):
    watched, alone = distil(style, weight=0.0), untouched(style)
    support.assert_same_weights(watched, alone)
    assert plain(watched) == plain(alone)
    assert vars(watched).keys() == vars(alone).keys()
    assert [name for name, _ in watched.named_modules()] == [name for name, _ in alone.named_modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in watched.modules())


@pytest.mark.parametrize("style", styles.BY_NAME.values(), ids=styles.BY_NAME)
def test_a_resumed_run_is_the_uninterrupted_one(style, tmp_path):
    saving = {"callbacks": [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)], "enable_checkpointing": True}
    whole = distil(style, max_epochs=4)
    distil(style, max_epochs=2, **saving)
    resumed = distil(style, max_epochs=4, seed=99, ckpt_path=tmp_path / "epoch=1.ckpt", **saving)
    support.assert_same_weights(whole, resumed)


def built_late():
    return styles.BuiltInConfigureModel()


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model:UserWarning")
@pytest.mark.parametrize("first", [True, False])
def test_a_network_made_late_has_losses_with_parameters_and_averaged_copies(first, tmp_path):
    made, callback = built_late(), DistillationCallback(support.teacher(), support.default_losses())
    average = EMAWeightAveraging(decay=0.5)
    trainer = fit(made, callbacks=[average, callback] if first else [callback, average])
    assert len(list(average._average_model.parameters())) == len([*made.parameters(), *callback.losses.parameters()])
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for part in (made, callback.losses) for p in part.parameters()}


def test_a_network_made_late_teaches_itself():
    made, source = built_late(), EMATeacher(decay=0.5)
    fit(made, callbacks=[source, DistillationCallback(None, [kd()])])
    assert source.student is made.net
    assert source.steps == 6


@pytest.mark.parametrize("source", [EMATeacher(decay=0.5), BornAgain(generations=2)], ids=["mean", "born again"])
def test_a_module_that_is_the_network_teaches_itself_beside_losses_with_parameters(source):
    made = styles.BackboneAndHead()
    callback = DistillationCallback(None, [kd(), VIDLoss("backbone", "backbone")], student="")
    fit(made, callbacks=[source, callback])
    assert [name for name, _ in source.teacher.module.named_parameters()] == [
        name for name, _ in made.named_parameters()
    ]
    assert not torch.equal(source.teacher.module.head.weight, styles.BackboneAndHead().head.weight)


def test_what_others_put_on_the_module_is_there_afterwards():
    made = support.UserModule(support.student())
    calls = []

    def step(batch, batch_idx):
        calls.append(batch_idx)
        return support.UserModule.training_step(made, batch, batch_idx)

    made.training_step = step
    fit(made, max_epochs=1, callbacks=[DistillationCallback(support.teacher(), [kd()])])
    assert calls == [0, 0, 1, 2]  # the look before the fit, then every batch
    assert made.training_step is step
    assert "setup" not in vars(made)


def test_several_callbacks_are_refused_with_the_remedy():
    several = [DistillationCallback(support.teacher(), [kd()]) for _ in range(2)]
    with pytest.raises(MisconfigurationException, match=r"Give one all the losses.*Ensemble"):
        fit(support.UserModule(support.student()), callbacks=several)


def test_several_calls_are_refused_with_the_remedy():
    made = styles.TwoViews()
    with pytest.raises(RuntimeError, match=r"called the student 2 times.*student_calls='first', 'last', or 'each'"):
        fit(made, callbacks=[DistillationCallback(support.teacher(), [kd()])])


def test_several_calls_in_validation_are_refused_or_all_compared():
    class Turned(support.UserModule):
        def validation_step(self, batch, batch_idx):
            self.net(batch[0])
            self.net(batch[0].flip(-1))

    with pytest.raises(RuntimeError, match="called the student 2 times"):
        fit(Turned(support.student()), callbacks=[DistillationCallback(support.teacher(), [kd()])])
    made, guide = Turned(support.student()), support.teacher()
    trainer = fit(made, callbacks=[DistillationCallback(guide, [kd()], student_calls="each")])
    x = support.data().tensors[0]
    views = torch.cat([x, x.flip(-1)])
    same = made.net.eval()(views).argmax(1) == guide(views).argmax(1)
    assert trainer.callback_metrics["val/agreement"] == same.float().mean()


def test_an_unknown_choice_of_calls_is_refused():
    with pytest.raises(ValueError, match=r"'one', 'first', 'last', 'each'\], got 'second'"):
        DistillationCallback(support.teacher(), [kd()], student_calls="second")


@pytest.mark.parametrize("student", [None, "inner", "inner.nets"])
def test_a_module_that_is_not_called_is_refused_and_the_one_that_is_named(student):
    class Outer(styles.Nested):
        def training_step(self, batch):
            return F.cross_entropy(self.inner.nets["student"](batch[0]), batch[1])

    options = {} if student is None else {"student": student}
    with pytest.raises(ValueError, match=r"did not call the student 'inner.*student='inner\.nets\.student'\)"):
        fit(Outer(), callbacks=[DistillationCallback(support.teacher(), [kd()], **options)])


def test_a_call_of_forward_itself_is_refused_with_the_remedy():
    class Direct(styles.BackboneAndHead):
        def loss(self, logits, x, y):
            return super().loss(self.forward(x), x, y)

        def __call__(self, x):
            return self.forward(x)

    with pytest.raises(ValueError, match=r"did not call the student ''.*Call modules as self\(x\)"):
        fit(Direct(), callbacks=[DistillationCallback(support.teacher(), [kd()], student="")])


class ReadsTheRate(support.UserModule):
    """Looks at the optimizer, which there is during the fit only, before it calls the network."""

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.rate = self.optimizers().param_groups[0]["lr"]
        return super().training_step(batch, batch_idx)


def test_a_step_that_cannot_run_before_the_fit_is_told_why():
    with pytest.raises(RuntimeError, match=r"ReadsTheRate.training_step on two samples.*set example_input_array"):
        fit(ReadsTheRate(support.student()), callbacks=[DistillationCallback(support.teacher(), [kd()])])


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["tensor", "tuple", "named"])
def test_an_example_takes_the_place_of_a_step_that_cannot_run_before_the_fit(form):
    made, like = ReadsTheRate(support.student()), support.UserModule(support.student())
    made.example_input_array = form(torch.ones(2, 1, 4, 4))
    for module in (made, like):
        fit(module, callbacks=[DistillationCallback(support.teacher(), support.default_losses())])
    support.assert_same_weights(made, like)


def test_the_look_before_the_fit_writes_to_no_log_and_prints_nothing(tmp_path, capsys):
    class Watched(support.UserModule):
        def training_step(self, batch, batch_idx):
            self.logger.log_metrics({"size": len(batch[0])}, self.global_step)
            self.print(f"{len(batch[0])} samples")
            return super().training_step(batch, batch_idx)

    logger = CSVLogger(tmp_path)
    callback = DistillationCallback(support.teacher(), [kd()])
    fit(Watched(support.student()), callbacks=[callback], logger=logger, max_epochs=1)
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    assert [row["size"] for row in rows if row["size"]] == ["8", "8", "8"]
    assert capsys.readouterr().out.split() == ["8", "samples"] * 3


def test_a_step_that_stops_calling_the_student_is_refused():
    class Sometimes(support.UserModule):
        def training_step(self, batch, batch_idx):
            return self.net.head.weight.sum() if batch_idx == 1 else super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="did not call the student"):
        fit(Sometimes(support.student()), callbacks=[DistillationCallback(support.teacher(), [kd()])])


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor:UserWarning")
def test_a_step_that_takes_the_iterator_is_refused_with_the_remedy():
    class Iterating(support.UserModule):
        def training_step(self, dataloader_iter):
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    with pytest.raises(MisconfigurationException, match=r"Write training_step\(batch, batch_idx\)"):
        fit(Iterating(support.student()), callbacks=[DistillationCallback(support.teacher(), [kd()])])


@pytest.mark.parametrize("output", [{"logits": 1}, (1, 2)])
def test_what_the_trainer_refuses_of_a_step_is_the_trainers_to_refuse(output):
    class Odd(support.UserModule):
        def training_step(self, batch, batch_idx):
            self.net(batch[0])
            return output

    messages = []
    for callbacks in ([], [DistillationCallback(support.teacher(), [kd()])]):
        with pytest.raises(MisconfigurationException) as caught:
            fit(Odd(support.student()), callbacks=callbacks)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_checkpoint_that_the_module_fills_itself_holds_no_loss(tmp_path):
    class Trainable(support.UserModule):
        def state_dict(self):
            return {name: p for name, p in self.named_parameters() if p.requires_grad}

    callbacks = [DistillationCallback(support.teacher(), support.default_losses()), support.SaveEveryStep(tmp_path)]
    made = Trainable(support.student())
    fit(made, callbacks=callbacks, max_epochs=1)
    saved = torch.load(tmp_path / "3.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == [name for name, _ in made.named_parameters()]
    assert len(saved["lightning_kd"]["losses"]) == 2


def test_a_compiled_module_is_distilled_as_an_eager_one():
    eager, compiled = Quiet(support.student()), Quiet(support.student())
    for made in (eager, torch.compile(compiled, backend="aot_eager")):
        fit(made, callbacks=[DistillationCallback(support.teacher(), support.default_losses())])
    support.assert_same_weights(eager, compiled)


class Quiet(support.UserModule):
    """Logs nothing, which a compiled step cannot."""

    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])
