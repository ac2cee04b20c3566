"""What a user gets wrong, and the words that tell the way out."""

import re

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_kd import DistillationCallback, DistillationLoss, DistillationModule
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import from_checkpoint
from tests import support


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def test_an_unknown_student_layer_shows_the_nearest_names():
    words = says("student ConvNet has no layer 'feature.1'", "Nearest: features.1")
    with pytest.raises(ValueError, match=words):
        support.module(losses=[HintLoss("feature.1", "features.1")])


def test_an_unknown_teacher_layer_is_named_at_setup_of_the_callback():
    callback = DistillationCallback(support.teacher(), [HintLoss("features", "haed")])
    with pytest.raises(ValueError, match=says("teacher ConvNet has no layer 'haed'", "head")):
        support.fit(support.UserModule(support.student()), callbacks=[callback])


def test_the_same_layer_twice():
    with pytest.raises(ValueError, match=says("HintLoss: student layer 'features' is named twice")):
        HintLoss(["features", "features"], ["features", "head"])


def test_the_same_loss_object_twice():
    loss = KDLoss()
    with pytest.raises(ValueError, match=says("The same KDLoss object is in losses twice")):
        support.module(losses=[loss, loss])


@pytest.mark.parametrize("door", ["module", "callback"])
def test_different_class_counts(door):
    guide = support.teacher(classes=7)
    made, callbacks = support.through(door, guide=guide, losses=[KDLoss()])
    with pytest.raises(ValueError, match=says("teacher has 7 classes", "student 4")):
        support.fit(made, callbacks=callbacks)


@pytest.mark.parametrize("losses", [[], None])
def test_an_empty_list_of_losses(losses):
    with pytest.raises(ValueError, match=says("list of losses is empty", "losses=[KDLoss()]")):
        DistillationModule(support.student(), support.teacher(), losses)
    with pytest.raises(ValueError, match=says("list of losses is empty")):
        DistillationCallback(support.teacher(), losses)


def test_nothing_to_train_with():
    with pytest.raises(ValueError, match=says("nothing to train with", "task_loss")):
        DistillationModule(support.student())


def test_a_task_loss_among_the_losses():
    with pytest.raises(TypeError, match=says("got CrossEntropyLoss", "task_loss")):
        support.module(losses=[nn.CrossEntropyLoss()])


def test_a_loss_without_its_teacher():
    with pytest.raises(ValueError, match=says("['kd', 'hint']", "need a teacher", "EMATeacher or BornAgain")):
        support.fit(support.module(teacher=None))


def test_student_and_teacher_that_share_parameters():
    net = support.student()
    with pytest.raises(ValueError, match=says("share", "copy.deepcopy")):
        support.module(net, teacher=net, losses=[KDLoss()])


class Exploding(DistillationLoss):
    """Becomes NaN at its third call: probe aside, the second step."""

    needs_teacher_logits = True
    calls = 0

    def forward(self, student_logits, teacher_logits):
        self.calls += 1
        return student_logits.sum() * (float("nan") if self.calls == 2 else 1.0)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_loss_that_is_not_finite_names_part_and_step_and_spares_the_weights(door):
    net = support.student()
    made, callbacks = support.through(door, net, losses=[KDLoss(), Exploding()])
    with pytest.raises(FloatingPointError, match=says("not finite at step 1", "'exploding' is nan")) as error:
        support.fit(made, callbacks=callbacks)
    assert "'kd'" not in str(error.value)
    assert all(p.isfinite().all() for p in net.parameters())


def test_manual_optimization_under_the_callback():
    class Manual(support.UserModule):
        automatic_optimization = False

    callback = DistillationCallback(support.teacher(), [KDLoss()])
    with pytest.raises(MisconfigurationException, match=says("manual optimization", "subclass DistillationModule")):
        support.fit(Manual(support.student()), callbacks=[callback])


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*:UserWarning")
def test_a_student_in_eval_mode_warns(door):
    made, callbacks = support.through(door, support.student().eval())
    with pytest.warns(UserWarning, match=says("student is in eval mode", "student.train()")):
        support.fit(made, callbacks=callbacks, max_epochs=1)


def test_a_checkpoint_of_another_architecture(tmp_path):
    support.fit(support.module()).save_checkpoint(tmp_path / "last.ckpt")
    other = support.ConvNet(5)
    before = support.snapshot(other)
    words = says("checkpoint is of another student architecture", "features.0.weight: (3, 1, 3, 3)", "(5, 1, 3, 3)")
    with pytest.raises(ValueError, match=words):
        DistillationModule.load_from_checkpoint(
            tmp_path / "last.ckpt", student=other, teacher=support.teacher(), weights_only=True
        )
    support.assert_unchanged(other, before)
    with pytest.raises(ValueError, match=words):
        support.fit(support.module(other), ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_that_names_a_class_which_is_not_imported(tmp_path):
    support.fit(support.module()).save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["losses"][0] = {"class_path": "os.system", "init_args": {"command": "false"}}
    torch.save(content, tmp_path / "stranger.ckpt")
    with pytest.raises(ValueError, match=says("names the class 'os.system'", "not an imported DistillationLoss")):
        DistillationModule.load_from_checkpoint(
            tmp_path / "stranger.ckpt", student=support.student(), teacher=support.teacher(), weights_only=True
        )


def test_a_batch_of_unknown_form():
    x, y = support.data(8).tensors
    with pytest.raises(ValueError, match=says("of 4 elements", "Override unpack_batch")):
        support.fit(support.module(), train=support.batches((x, y, y, y)))


def test_a_task_loss_without_targets():
    x = support.data(8).tensors[0]
    with pytest.raises(ValueError, match=says("task_loss needs a target", "drop task_loss")):
        support.fit(support.module(), train=support.batches(x))


def test_a_student_that_the_training_step_does_not_call():
    class Idle(support.UserModule):
        def training_step(self, batch, batch_idx):
            return self.net.head.weight.sum()

    callback = DistillationCallback(support.teacher(), [KDLoss()])
    with pytest.raises(ValueError, match=says("did not call the student")):
        support.fit(Idle(support.student()), callbacks=[callback])


def test_a_module_with_several_candidates_for_the_student():
    class Two(support.UserModule):
        def __init__(self):
            super().__init__(support.student())
            self.other = nn.Linear(2, 2)

    with pytest.raises(ValueError, match=says("2 children with parameters (net, other)", "student='name'")):
        support.fit(Two(), callbacks=[DistillationCallback(support.teacher(), [KDLoss()])])
    with pytest.raises(ValueError, match=says("no module 'body'", "net")):
        support.fit(Two(), callbacks=[DistillationCallback(support.teacher(), [KDLoss()], student="body")])


def test_a_layer_that_does_not_run():
    class Skipping(support.ConvNet):
        def forward(self, x):
            return self.head(x.flatten(1).repeat(1, 3))

    with pytest.raises(RuntimeError, match=says("student layer(s) ['features'] did not run")):
        support.fit(support.module(Skipping(3)))


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_out_of_range(weight):
    with pytest.raises(ValueError, match=says("KDLoss: expected a finite weight >= 0")):
        KDLoss(weight=weight)
    with pytest.raises(ValueError, match=says("expected a finite task_weight >= 0")):
        support.module(task_weight=weight)


def test_teacher_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=says("There is no file", "absent.pt")):
        from_checkpoint(support.teacher(), tmp_path / "absent.pt")
    torch.save({"net.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=says("do not fit ConvNet", "prefix")):
        from_checkpoint(support.teacher(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=says("begins with 'student.'")):
        from_checkpoint(support.teacher(), tmp_path / "other.pt", prefix="student.")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=says("holds no state dict, but a list")):
        from_checkpoint(support.teacher(), tmp_path / "list.pt")


def test_export_to_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=says("end it in .pt, .pth, .safetensors")):
        support.module().export(tmp_path / "student.bin")
