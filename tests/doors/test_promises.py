"""The exact promises: teacher untouched, exact resume, clean checkpoints and copies, hooks under compilation."""

import copy
import pickle
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from lightning_kd import DistillationModule
from lightning_kd.losses import HintLoss
from tests import support

DOORS = ["module", "callback"]


def through(door, dropout=0.0):
    """Return (module to fit, its student, its losses, its teacher, the door's callbacks)."""
    guide, learner = support.teacher(), support.student(dropout)
    made, callbacks = support.through(door, learner, guide=guide)
    losses = callbacks[0].losses if callbacks else made.losses
    return made, learner, losses, guide, callbacks


@pytest.mark.parametrize("door", DOORS)
def test_the_teacher_is_bit_identical_after_fit_whatever_the_user_calls(door):
    made, _, _, guide, callbacks = through(door)
    before = support.snapshot(guide)
    made.train()
    made.unfreeze()
    support.fit(made, callbacks=callbacks)
    support.assert_unchanged(guide, before)
    assert not guide.training
    assert not any(p.requires_grad for p in guide.parameters())


def test_a_teacher_that_somebody_puts_in_train_mode_is_put_back():
    made = support.module()
    before = support.snapshot(made.teacher)
    made.teacher.train()
    support.fit(made)
    support.assert_unchanged(made.teacher, before)


@pytest.mark.parametrize("door", DOORS)
def test_the_teacher_is_in_no_checkpoint_and_no_optimizer(door, tmp_path):
    made, learner, losses, guide, callbacks = through(door)
    trainer = support.fit(made, callbacks=callbacks)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {k.split(".")[0] for k in state} == ({"student", "losses"} if door == "module" else {"net"})
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for part in (learner, losses) for p in part.parameters()}
    assert not optimized & {id(p) for p in guide.parameters()}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_the_teacher_is_in_no_ema_copy_and_the_losses_are(door, first, tmp_path):
    made, learner, losses, guide, callbacks = through(door)
    ema = EMAWeightAveraging(decay=0.5)
    order = [ema, *callbacks] if first else [*callbacks, ema]
    trainer = support.fit(made, callbacks=order)
    copies = list(ema._average_model.parameters())
    assert len(copies) == len([*learner.parameters(), *losses.parameters()])
    assert not {id(p) for p in copies} & {id(p) for p in guide.parameters()}
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    keys = torch.load(tmp_path / "ema.ckpt", weights_only=True)["state_dict"]
    assert not any("teacher" in key or "_kd" in key for key in keys)


@pytest.mark.parametrize("door", DOORS)
def test_stochastic_weight_averaging_runs(door):
    made, _, _, guide, callbacks = through(door)
    before = support.snapshot(guide)
    support.fit(made, callbacks=[StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1), *callbacks], max_epochs=3)
    support.assert_unchanged(guide, before)


@pytest.mark.parametrize("door", DOORS)
def test_resume_equals_the_uninterrupted_run_bit_for_bit(door, tmp_path):
    whole, learner, losses, _, callbacks = through(door, dropout=0.5)
    support.fit(whole, callbacks=callbacks, max_epochs=4)

    first, _, _, _, callbacks = through(door, dropout=0.5)
    saver = ModelCheckpoint(tmp_path, filename="half", save_top_k=-1)
    support.fit(first, callbacks=[*callbacks, saver], max_epochs=2, enable_checkpointing=True)

    second, resumed, its_losses, _, callbacks = through(door, dropout=0.5)
    options = {"callbacks": [*callbacks, ModelCheckpoint(tmp_path, filename="more")], "enable_checkpointing": True}
    support.fit(second, seed=99, max_epochs=4, ckpt_path=tmp_path / "half.ckpt", **options)
    support.assert_same_weights(learner, resumed)
    support.assert_same_weights(losses, its_losses)


def test_a_checkpoint_loads_strictly_with_student_and_teacher_from_python(tmp_path):
    module = support.module()
    support.fit(module).save_checkpoint(tmp_path / "last.ckpt")
    loaded = DistillationModule.load_from_checkpoint(
        tmp_path / "last.ckpt", student=support.student(), teacher=support.teacher(), weights_only=True
    )
    support.assert_same_weights(module, loaded)
    assert [repr(loss) for loss in loaded.losses.values()] == [repr(loss) for loss in module.losses.values()]


def test_a_callback_checkpoint_loads_into_the_users_module_without_the_callback(tmp_path):
    user, *_, callbacks = through("callback")
    support.fit(user, callbacks=callbacks).save_checkpoint(tmp_path / "last.ckpt")
    loaded = support.UserModule.load_from_checkpoint(tmp_path / "last.ckpt", net=support.student())
    support.assert_same_weights(user, loaded)


@pytest.mark.parametrize("how", ["in place", "wrapped", "child"])
def test_hooks_work_under_full_graph_compilation(how):
    torch.compiler.reset()
    eager, compiled = support.module(), support.student()
    options = {"fullgraph": True, "backend": "aot_eager"}
    if how == "in place":
        compiled.compile(**options)
    elif how == "child":
        compiled.features = torch.compile(compiled.features, **options)
    else:
        compiled = torch.compile(compiled, **options)
    module = support.module(compiled)
    for made in (eager, module):
        support.fit(made, train=support.loader())
    for one, other in zip(eager.student.parameters(), module.student.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_probe_disturbs_neither_batchnorm_nor_modes_nor_random_state():
    net = support.student()
    net.features[1].eval()
    module = support.module(net)
    before = support.snapshot(net)
    batch = next(iter(support.loader()))
    torch.manual_seed(5)
    module.run.setup.prepare(batch, module._call_student, module)
    support.assert_unchanged(net, before)
    assert net.training
    assert not net.features[1].training
    # nor does drawing the projector's weights
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())


def test_a_copy_of_the_module_records_into_its_own_store_and_shares_the_teacher():
    module = support.module()
    module.run.step.attach()
    twin = copy.deepcopy(module)
    assert twin.teacher is module.teacher
    with module.run.step.capture.recording() as mine, twin.run.step.capture.recording() as its:
        twin(support.data().tensors[0])
    assert its.features.keys() == {"features"}
    assert not mine.called


def test_the_module_pickles():
    module = support.module()
    module.run.step.attach()
    twin = pickle.loads(pickle.dumps(module))
    support.assert_same_weights(module, twin)
    support.assert_same_weights(module.teacher, twin.teacher)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_teacher_follows_the_precision_or_keeps_its_own(dtype):
    module = support.module(teacher_dtype=dtype)
    support.fit(module, precision="bf16-true")
    assert module.student.head.weight.dtype == torch.bfloat16
    assert module.teacher.head.weight.dtype == (dtype or torch.bfloat16)


@pytest.mark.parametrize("door", DOORS)
def test_mixed_precision_runs_through_both_doors(door):
    made, learner, _, _, callbacks = through(door)
    trainer = support.fit(made, callbacks=callbacks, precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert learner.head.weight.dtype == torch.float32


@pytest.mark.parametrize("compiled", [False, True])
def test_what_no_loss_reaches_is_left_alone_even_by_weight_decay(compiled):
    net = support.student()
    before = support.snapshot(net.head)
    if compiled:
        net.compile(fullgraph=True, backend="aot_eager")
    optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.1)
    hint = HintLoss("features", "features")
    support.fit(support.module(net, losses=[hint], task_loss=None, optimizer=optimizer), max_epochs=1)
    support.assert_unchanged(net.head, before)
