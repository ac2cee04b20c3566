"""Several students beside one another learn what each would learn alone, and the teacher answers once a batch."""

import copy
import logging
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_kd import Batch, DistillationModule, cache
from lightning_kd.capture.call import Call
from lightning_kd.data import Indexed
from lightning_kd.engine.one_answer import OneAnswer
from lightning_kd.files.weights import from_checkpoint
from lightning_kd.fit.students.several import SeveralStudents
from lightning_kd.losses import ABLoss, ATLoss, BYOTLoss, FSPLoss, FTLoss, HintLoss, KDLoss, RKDLoss
from lightning_kd.schedules import LinearSchedule
from lightning_kd.teachers import BornAgain, CachedTeacher, Ensemble, Renormalize
from tests import support

WIDTHS = {"small": 6, "tiny": 3}


def nets():
    return {name: support.seeded(partial(support.ConvNet, width), width) for name, width in WIDTHS.items()}


def staged(norm=False):
    return {n: support.seeded(partial(support.StagedNet, w, norm=norm), w) for n, w in WIDTHS.items()}


def several(students=None, kind=DistillationModule, **options):
    defaults = {
        "teacher": support.teacher(),
        "losses": support.default_losses(),
        "task_loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    }
    return kind(students=nets() if students is None else students, **(defaults | options))


class CountCalls(Callback):
    """Counts the calls of a network in training steps and in validation steps."""

    def __init__(self, network):
        self.calls = {"train": 0, "val": 0}
        self.where = None
        network.register_forward_hook(self.count)

    def count(self, *_):
        if self.where is not None:
            self.calls[self.where] += 1

    def on_train_batch_start(self, *_):
        self.where = "train"

    def on_train_batch_end(self, *_):
        self.where = None

    def on_validation_batch_start(self, *_):
        self.where = "val"

    def on_validation_batch_end(self, *_):
        self.where = None


def staged_teacher():
    return support.seeded(partial(support.StagedNet, 8, norm=False), 7)


ALONE = {
    "logits and layers": {},
    "default layers": {"losses": [HintLoss(), ATLoss()]},
    "relations": {"losses": [RKDLoss("<output>", "<output>")], "task_loss": None},
    "scheduled": {"losses": [KDLoss(temperature=LinearSchedule(4.0, 1.0, length=5, unit="step"))]},
    "task weight": {"task_weight": LinearSchedule(1.0, 0.1, length=5, unit="step")},
    "a stage before": {
        "students": staged,
        "teacher": staged_teacher,
        "losses": [FTLoss(stage_length=3, stage_unit="step", stage_lr=0.01), KDLoss()],
        "lr_scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        "lr_interval": "step",
    },
    "without a teacher": {"students": staged, "teacher": None, "losses": [BYOTLoss()]},
    "other inputs": {"teacher_inputs": Renormalize([0.0], [1.0], [0.1], [0.5])},
    "scheduler": {"lr_scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)},
}
TRAINER = {
    "clipped": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulated": {"accumulate_grad_batches": 2},
    "sixteen bits": {"precision": "bf16-mixed"},
}


def fitted(made, **options):
    rows = torch.utils.data.DataLoader(Indexed(support.data()), batch_size=7, shuffle=True)
    return support.fit(made, train=rows, val=support.loader(batch_size=5), **options)


@pytest.mark.parametrize("case", [*ALONE, *TRAINER])
def test_each_student_learns_what_it_learns_alone(case):
    options, trainer_options = dict(ALONE.get(case, {})), TRAINER.get(case, {})
    make_nets = options.pop("students", nets)
    guide = options.pop("teacher", support.teacher)
    guide = None if guide is None else guide()
    losses = options.pop("losses", support.default_losses())
    students = make_nets()
    counter = [] if guide is None else [CountCalls(guide)]
    together = fitted(several(students, teacher=guide, losses=losses, **options), callbacks=counter, **trainer_options)
    if counter:
        assert counter[0].calls == {"train": 8, "val": 10}
    for name, net in make_nets().items():
        alone = support.module(net, teacher=guide, losses=copy.deepcopy(losses), **options)
        trainer = fitted(alone, **trainer_options)
        support.assert_same_weights(net, students[name])
        assert trainer.callback_metrics.keys()
        for logged, value in trainer.callback_metrics.items():
            beginning, _, rest = logged.partition("/")
            assert together.callback_metrics[f"{beginning}/{name}/{rest}"] == value, logged
    of_several = len(trainer.callback_metrics) * len(students)
    assert len(together.callback_metrics) == of_several


def test_each_student_may_have_losses_of_its_own():
    losses = {"small": [KDLoss(temperature=2.0)], "tiny": [HintLoss("features", "features")]}
    students, guide = nets(), support.teacher()
    trainer = fitted(several(students, teacher=guide, losses=losses))
    for name, net in nets().items():
        fitted(support.module(net, teacher=guide, losses=losses[name]))
        support.assert_same_weights(net, students[name])
    assert {"train/small/kd", "train/tiny/hint"} <= trainer.callback_metrics.keys()
    assert "train/tiny/kd" not in trainer.callback_metrics


def test_the_teacher_stops_early_only_if_no_student_reads_its_output():
    def calls(losses):
        guide = support.teacher()
        counts = {"head": 0}
        guide.head.register_forward_pre_hook(lambda *_: counts.update(head=counts["head"] + 1))
        made = several(teacher=guide, losses=losses, task_loss=None)
        before = CountHead(counts)
        support.fit(made, max_epochs=1, limit_val_batches=0, callbacks=[before])
        return before.in_steps

    class CountHead(Callback):
        def __init__(self, counts):
            self.counts, self.in_steps = counts, 0

        def on_train_batch_start(self, *_):
            self.begin = self.counts["head"]

        def on_train_batch_end(self, *_):
            self.in_steps += self.counts["head"] - self.begin

    hint = HintLoss("features", "features")
    assert calls([hint]) == calls({"small": [hint], "tiny": [KDLoss()]}) - 3 == 0


class Mixing(DistillationModule):
    """Mixes the rows of a batch at random, and shows the teacher noise of its own."""

    def unpack_batch(self, batch):
        x, y = batch[:2]
        share = torch.rand(())
        return Batch(args=(share * x + (1 - share) * x.flip(0),), target=y)

    def teacher_inputs(self, batch, args, kwargs):
        return (args[0] + torch.rand(()),), kwargs


def test_what_a_users_class_draws_is_drawn_once_for_all():
    guide = support.teacher()
    inputs = {"small": [], "tiny": []}
    students = nets()
    for name, network in students.items():
        network.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
    counter = CountCalls(guide)
    support.fit(several(students, Mixing, teacher=guide), max_epochs=1, limit_val_batches=0, callbacks=[counter])
    steps = [of[-3:] for of in inputs.values()]  # those of set-up come before
    assert all(small is tiny for small, tiny in zip(*steps, strict=True))
    assert counter.calls["train"] == 3


def test_the_hooks_that_bring_a_batch_to_the_device_are_those_of_the_users_class():
    class Doubled(DistillationModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return 2 * x, y

    students = nets()
    support.fit(several(students, Doubled))
    for name, net in nets().items():
        support.fit(_one(Doubled, net))
        support.assert_same_weights(net, students[name])


def _one(kind, net):
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": optimizer}
    return kind(net, support.teacher(), support.default_losses(), **options)


def test_stored_and_joined_teachers_teach_several(tmp_path):
    cache.write(support.teacher(), support.data(), tmp_path, losses=support.default_losses(), dtype="float32")
    rows = support.loader()
    found = {}
    for kind, teacher in {"live": support.teacher(), "stored": CachedTeacher(tmp_path)}.items():
        found[kind] = nets()
        support.fit(several(found[kind], teacher=teacher), train=rows, limit_val_batches=0)
    for name in WIDTHS:
        pairs = zip(found["live"][name].parameters(), found["stored"][name].parameters(), strict=True)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)
    members = [support.teacher(), support.seeded(partial(support.ConvNet, 5), 5)]
    students = nets()
    support.fit(several(students, teacher=Ensemble(members), losses=[KDLoss()]))
    for name, net in nets().items():
        support.fit(support.module(net, teacher=Ensemble(members), losses=[KDLoss()]))
        support.assert_same_weights(net, students[name])


def test_a_checkpoint_holds_all_and_is_refused_for_others(tmp_path):
    made = several()
    trainer = support.fit(made)
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "all.ckpt", students={name: support.ConvNet(w) for name, w in WIDTHS.items()},
        teacher=support.teacher(), task_loss=nn.CrossEntropyLoss(),
    )  # fmt: skip
    assert isinstance(again, SeveralStudents)
    for name, net in again.students.items():
        support.assert_same_weights(net, made.students[name])
        loaded = from_checkpoint(support.ConvNet(WIDTHS[name]), tmp_path / "all.ckpt", prefix=f"{name}.student.")
        support.assert_same_weights(loaded, net)
    tested = trainer.test(again, support.loader(), verbose=False)
    assert tested == trainer.test(made, support.loader(), verbose=False)
    assert {"test/small/accuracy", "test/tiny/agreement"} <= tested[0].keys()
    others = several(dict(zip(("tiny", "small"), nets().values(), strict=True)))
    with pytest.raises(ValueError, match=r"holds the students \['small', 'tiny'\], but the module has \['tiny', 's"):
        support.fit(others, ckpt_path=tmp_path / "all.ckpt")
    support.fit(support.module()).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="holds one student"):
        support.fit(several(), ckpt_path=tmp_path / "one.ckpt")


def test_each_is_exported_and_predicts(tmp_path):
    made = several()
    trainer = support.fit(made)
    made.export(tmp_path / "{student}.safetensors")
    made.tiny.export(tmp_path / "program.pt2")
    for name, net in made.students.items():
        loaded = from_checkpoint(support.ConvNet(WIDTHS[name]), tmp_path / f"{name}.safetensors")
        support.assert_same_weights(loaded, net)
    with pytest.raises(ValueError, match=r"names one file for 2 students; write '\{student\}' into it"):
        made.export(tmp_path / "one.safetensors")
    x = support.data().tensors[0]
    predicted = trainer.predict(made, torch.utils.data.DataLoader(x, batch_size=len(x)))[0]
    outputs = made.eval()(x)
    for name, net in made.students.items():
        assert torch.equal(predicted[name], net(x))
        assert torch.equal(outputs[name], predicted[name])


def test_averages_and_a_learning_rate_finder_see_all_students():
    made = several(lr_scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9))
    average = EMAWeightAveraging(decay=0.5)
    finder = LearningRateFinder(min_lr=1e-4, max_lr=1.0, num_training_steps=20)
    trainer = support.fit(made, train=support.loader(batch_size=1), callbacks=[average, finder], max_epochs=1)
    assert made.lr is not None
    (optimizer,) = trainer.optimizers
    assert len(optimizer.param_groups) == 2
    assert [group["initial_lr"] for group in optimizer.param_groups] == [made.lr] * 2
    held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    for own, member in zip(held, made.members.values(), strict=True):
        assert own == {id(p) for p in (*member.student.parameters(), *member.losses.parameters())}
    assert any(name.startswith("tiny.student") for name in average._average_model.module.state_dict())


def test_nothing_is_left_on_students_teacher_and_trainer():
    students, guide = nets(), support.teacher()
    made = several(students, teacher=guide)
    trainer = support.fit(made)
    support.fit(made)  # once more
    for network in (guide, *students.values()):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert [type(one).__name__ for one in trainer.callbacks if "Hooks" in type(one).__name__] == []
    assert all("log" not in vars(member) for member in made.members.values())


def test_what_all_have_in_common_is_said_once(caplog):
    with caplog.at_level(logging.INFO):
        support.fit(several(), enable_model_summary=True)
    assert caplog.text.count("is frozen and no part of the module") == 1
    assert caplog.text.count("Student 'tiny':") == 1


def test_a_loop_of_ones_own_trains_several():
    made, (x, y) = several(), support.data().tensors
    alone = support.module(nets()["tiny"])
    for one in (made, alone):
        one.prepare((x, y))
        optimizer = one.configure_optimizers()
        for step in range(2):
            one.set_moment(step)
            one.training_step((x, y), step).backward()
            optimizer.step()
            optimizer.zero_grad()
    support.assert_same_weights(alone.student, made.tiny.student)


REFUSED = {
    "both": ({"student": nn.Linear(2, 2)}, ValueError, "give student=... or students="),
    "none": ({"students": {}}, ValueError, "give at least one"),
    "a name with a dot": ({"students": {"a.b": nn.Linear(2, 2)}}, ValueError, "such as 'small'"),
    "a name that is taken": ({"students": {"trainer": nn.Linear(2, 2)}}, ValueError, "means something else"),
    "no module": ({"students": {"small": 3}}, ValueError, "is a int, no torch.nn.Module"),
    "losses of others": ({"losses": {"big": [KDLoss()]}}, ValueError, "losses are given for .'big'.*students are"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    options, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        several(**options)


def test_shared_parameters_are_refused():
    net = support.ConvNet(3)
    with pytest.raises(ValueError, match="'a' and 'b' share parameters"):
        several({"a": net, "b": net})
    with pytest.raises(ValueError, match="share"):
        several({"a": net, "b": support.ConvNet(3)}, teacher=net)


def test_losses_by_name_need_several_students():
    with pytest.raises(ValueError, match="losses by name are those of several students"):
        support.module(losses={"small": [KDLoss()]})
    with pytest.raises(ValueError, match="needs a student"):
        DistillationModule(teacher=support.teacher())


def test_hooks_that_would_not_be_called_are_refused():
    class Own(DistillationModule):
        def on_train_epoch_start(self):
            raise AssertionError("never called")

    with pytest.raises(ValueError, match="Own has its own on_train_epoch_start, which students= does not call"):
        several(kind=Own)

    class Made(DistillationModule):
        def __init__(self):
            super().__init__(students=nets(), losses=[])

    with pytest.raises(ValueError, match="keeps its __init__"):
        Made()


def test_what_cannot_train_together_is_refused_at_set_up():
    with pytest.raises(MisconfigurationException, match="BornAgain makes the teacher of the student, but there are"):
        support.fit(several(teacher=None), callbacks=[BornAgain(generations=2)])
    stages = {name: [ABLoss(stage_length=length, stage_unit="step")] for name, length in (("small", 2), ("tiny", 3))}
    with pytest.raises(ValueError, match="first stages of other lengths"):
        support.fit(several(staged(), teacher=staged_teacher(), losses=stages))
    with pytest.raises(ValueError, match=r"Student 'tiny': .* has no layer 'nowhere'"):
        several(losses={"small": [KDLoss()], "tiny": [HintLoss("nowhere", "features")]})
    with pytest.raises(ValueError, match=r"Student 'tiny': .*FSPLoss"):
        support.fit(several(losses={"small": [KDLoss()], "tiny": [FSPLoss("features", "features")]}))


def test_the_lines_of_each_are_those_that_it_writes_alone(tmp_path):
    def lines(made, name):
        logger = CSVLogger(tmp_path, name)
        support.fit(made, logger=logger)
        return support.rows(logger)

    together = lines(several(), "all")
    for name, net in nets().items():
        alone = lines(support.module(net), name)
        shown = [{_shown(key, name): value for key, value in row.items()} for row in alone]
        assert sum("train/kd" in row for row in alone) > 2
        assert all(any(row.items() <= of_all.items() for of_all in together) for row in shown)


def _shown(key, name):
    return key.replace("/", f"/{name}/", 1)


def test_a_gradient_that_is_not_finite_is_told_with_its_student():
    students = nets()
    students["tiny"].head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"not finite at step 0.*'student\.head\.weight'"):
        support.fit(several(students))


def test_the_same_batch_in_another_step_is_asked_about_again():
    guide = support.teacher()
    x, _ = support.data().tensors  # a tensor alone is the same object in every step
    counter = CountCalls(guide)
    made = several(teacher=guide, task_loss=None)
    support.fit(made, train=support.Batches([x]), callbacks=[counter], limit_val_batches=0)
    assert counter.calls["train"] == 2


def test_only_the_same_inputs_have_the_same_answer():
    answers, batch, asked = OneAnswer(), object(), []
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    calls = [
        Call(args=(x,)), Call(args=(x.clone(),)), Call(args=(y,)), Call(kwargs={"a": x}), Call(kwargs={"b": x}),
        Call(args=(x, 1)), Call(args=(x, 2)), Call(args=(x.double(),)),
    ]  # fmt: skip
    for call in calls:
        answers.to_call(batch, call, lambda call=call: call, asked.append, may_draw=False)
    assert [id(call) for call in asked] == [id(call) for call in calls if call is not calls[1]]


def test_options_that_hold_something_are_copied_for_each():
    made = several(teacher_inputs=Renormalize(), task_loss=nn.CrossEntropyLoss(weight=torch.ones(support.CLASSES)))
    assert made.small.task_loss is not made.tiny.task_loss
    assert made.small.teacher_view is not made.tiny.teacher_view
    assert made.small.run.teacher is made.tiny.run.teacher
