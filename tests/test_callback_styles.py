"""The callback on modules that nothing here was written for: what they train is what distilling by hand trains."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_kd import DistillationCallback
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import EMATeacher
from tests import styles, support

PLAIN = (torch.Tensor, int, float, str, type(None))


def kd(weight=0.9):
    return KDLoss(temperature=2.0, weight=weight)


def fit(module, seed=11, ckpt_path=None, **options):
    made = support.trainer(**options)
    torch.manual_seed(seed)
    val = support.loader() if is_overridden("validation_step", module) else None
    made.fit(module, support.loader(shuffle=True), val, ckpt_path=ckpt_path)
    return made


def distil(module, options=None, losses=None, callbacks=(), **others):
    callback = DistillationCallback(support.teacher(), [kd()] if losses is None else losses, **(options or {}))
    return fit(module, callbacks=[callback, *callbacks], **others)


@pytest.mark.parametrize("name", styles.BY_NAME)
def test_it_trains_what_distillation_by_hand_trains(name):
    style, by_hand, options = styles.BY_NAME[name]
    distilled, written, alone = style(), by_hand(), style()
    distil(distilled, options)
    fit(written)
    fit(alone)
    support.assert_same_weights(distilled, written)
    with pytest.raises(AssertionError):
        support.assert_same_weights(distilled, alone)


@pytest.mark.parametrize("name", styles.BY_NAME)
def test_with_no_weight_it_changes_nothing(name):
    style, _, options = styles.BY_NAME[name]
    watched, alone = style(), style()
    distil(watched, options, losses=[kd(weight=0.0)])
    fit(alone)
    support.assert_same_weights(watched, alone)
    assert {k: v for k, v in vars(watched).items() if isinstance(v, PLAIN)} == {
        k: v for k, v in vars(alone).items() if isinstance(v, PLAIN)
    }


@pytest.mark.parametrize("name", styles.BY_NAME)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    style, _, options = styles.BY_NAME[name]
    whole, first, second = style(), style(), style()
    distil(whole, options, max_epochs=4)
    saving = {"callbacks": [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)], "enable_checkpointing": True}
    distil(first, options, max_epochs=2, **saving)
    distil(second, options, max_epochs=4, seed=99, ckpt_path=tmp_path / "epoch=1.ckpt", **saving)
    support.assert_same_weights(whole, second)


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


def test_what_others_put_on_the_module_is_there_afterwards():
    made = support.UserModule(support.student())
    calls = []

    def step(batch, batch_idx):
        calls.append(batch_idx)
        return support.UserModule.training_step(made, batch, batch_idx)

    made.training_step = step
    distil(made, max_epochs=1)
    assert calls == [0, 0, 1, 2]  # the look before the fit, then every batch
    assert made.training_step is step
    assert "setup" not in vars(made)


def test_several_callbacks_are_refused_with_the_remedy():
    several = [DistillationCallback(support.teacher(), [kd()]) for _ in range(2)]
    with pytest.raises(MisconfigurationException, match=r"Give one all the losses.*Ensemble"):
        fit(support.UserModule(support.student()), callbacks=several)
