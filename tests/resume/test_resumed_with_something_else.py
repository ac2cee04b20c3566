"""A fit that goes on from a checkpoint of other losses, options or networks says in what it differs."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.engine.objective import Objective
from lightning_kd.files.checkpoint import CHECKPOINT_KEY
from lightning_kd.fit.resume.made_of import differences, made_of
from lightning_kd.losses import ATLoss, CRDLoss, DKDLoss, HintLoss, HybridLoss, KDLoss, RKDLoss
from lightning_kd.losses.naming import name_losses
from lightning_kd.schedules import LinearSchedule
from lightning_kd.teachers import Ensemble, SwitchingTeacher
from tests import support

DOORS = ["module", "callback"]
GOES_ON = "goes on from a checkpoint that was made with something else"
CANNOT = "cannot go on from this checkpoint with other losses"


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def hint(layer="stage2", teacher=None, **options):
    return HintLoss(layer, teacher or layer, **options)


def net(seed=3):
    return support.seeded(lambda: support.StagedNet(3), seed)


def guide(seed=7):
    return support.seeded(lambda: support.StagedNet(5), seed)


def made(door, losses, student=None, teacher=None, **options):
    if door == "module":
        return support.module(student or net(), teacher=teacher or guide(), losses=losses, **options), []
    return support.through(door, student or net(), guide=teacher or guide(), losses=losses)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a function that gives a checkpoint after one epoch with some losses."""
    paths = {}

    def path(door, losses, name):
        if (door, name) not in paths:
            module, callbacks = made(door, losses)
            paths[door, name] = tmp_path_factory.mktemp("made") / "last.ckpt"
            support.fit(module, callbacks=callbacks, max_epochs=1).save_checkpoint(paths[door, name])
        return paths[door, name]

    return path


def resume(door, path, losses, **parts):
    module, callbacks = made(door, losses, **parts)
    return support.fit(module, callbacks=callbacks, ckpt_path=path, max_epochs=2)


def kd_and_hint():
    return [KDLoss(temperature=4.0, weight=0.9), hint()]


@pytest.mark.parametrize("door", DOORS)
def test_the_same_says_nothing(door, checkpoint):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpoint that was made with.*")
        resume(door, checkpoint(door, kd_and_hint(), "two"), [KDLoss(temperature=4, weight=0.9), hint(["stage2"])])


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (lambda: [KDLoss(temperature=1.0, weight=0.9), hint()], ["part 'kd': temperature was 4.0, is 1.0"]),
        (lambda: [KDLoss(temperature=4.0, weight=0.5), hint()], ["part 'kd': weight was 0.9, is 0.5"]),
        (
            lambda: [KDLoss(temperature=LinearSchedule(4.0, 1.0, length=7), weight=0.9), hint()],
            ["part 'kd': temperature was 4.0, is LinearSchedule(start=4.0, end=1.0, length=7"],
        ),
        (lambda: [DKDLoss(), hint()], ["part 'kd' (KDLoss) is not there any more", "part 'dkd' (DKDLoss) is new"]),
        (lambda: [KDLoss(temperature=4.0, weight=0.9), hint(), RKDLoss("embedding", "embedding")], ["'rkd' (RKDLoss)"]),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_what_can_go_on_is_named(door, losses, words, checkpoint):
    with pytest.warns(UserWarning, match=says(GOES_ON, *words)) as told:
        trainer = resume(door, checkpoint(door, kd_and_hint(), "two"), losses())
    assert trainer.current_epoch == 2
    assert len([one for one in told if GOES_ON in str(one.message)]) == 1


class Scaled(nn.Module):
    """A teacher whose answers a number changes."""

    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = net(), scale

    def forward(self, x):
        return self.scale * self.net(x)


def turned(network):
    """The same network with its classes in another order, whose weights have the same sum."""
    with torch.no_grad():
        for tensor in (network.head.weight, network.head.bias):
            tensor.copy_(tensor.roll(1, 0))
    return network


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"teacher": Scaled(1.0)}, {"teacher": Scaled(3.0)}, "the teacher's scale was 1.0, is 3.0"),
        ({"teacher": net()}, {"teacher": turned(net())}, "the teacher is a StagedNet with other weights"),
        (
            {"teacher": Ensemble([net(), turned(net())])},
            {"teacher": Ensemble([net(), turned(net())], "vote")},
            "the teacher's average was 'probabilities', is 'vote'",
        ),
        (
            {"teacher": SwitchingTeacher([net(), turned(net())], [1])},
            {"teacher": SwitchingTeacher([net(), turned(net())], [2])},
            r"the teacher's milestones was \[1\], is \[2\]",
        ),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_of_another_make_is_named(door, before, after, words, tmp_path):
    losses = [KDLoss(temperature=4.0, weight=0.9)]
    module, callbacks = made(door, losses, **before)
    support.fit(module, callbacks=callbacks, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=f"{GOES_ON}.*{words}"):
        resume(door, tmp_path / "last.ckpt", losses, **after)


def test_other_weights_of_classes_are_named(tmp_path):
    def module(first):
        weight = torch.tensor([first, *[1.0] * (support.CLASSES - 1)])
        return support.module(task_loss=nn.CrossEntropyLoss(weight=weight))

    support.fit(module(1.0), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="task_loss's tensors"):
        support.fit(module(3.0), ckpt_path=tmp_path / "last.ckpt", max_epochs=2)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (lambda: [KDLoss(), hint(teacher="stage1")], ["part 'hint': teacher was ['stage2'], is ['stage1']"]),
        (lambda: [KDLoss()], ["part 'hint' (HintLoss) is not there any more"]),
        (lambda: [KDLoss(), hint(), hint("stage1")], ["part 'hint_2' (HintLoss) is new"]),
        (lambda: [KDLoss(), hint("stage1")], ["part 'hint': student was ['stage2'], is ['stage1']"]),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_go_on_is_named_and_loads_nothing(door, losses, words, checkpoint):
    student = net()
    before = support.snapshot(student)
    path = checkpoint(door, kd_and_hint(), "two")
    with pytest.raises(ValueError, match=says(CANNOT, *words) + ".*Fit with what .* begin a new fit"):
        resume(door, path, losses(), student=student)
    if door == "module":  # under the callback the user's module has been loaded by then
        support.assert_unchanged(student, before)


class Even(nn.Module):
    """Layers of equal width, between which a projector fits everywhere."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(16, width), nn.Linear(width, width)
        self.head = nn.Linear(width, support.CLASSES)

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


@pytest.mark.parametrize("door", DOORS)
def test_a_projector_of_another_layer_that_would_fit_is_refused(door, tmp_path):
    even = {"student": Even(6), "teacher": Even(9)}
    module, callbacks = made(door, [HintLoss("first", "first")], **copy.deepcopy(even))
    support.fit(module, callbacks=callbacks, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=says(CANNOT, "part 'hint': student was ['first'], is ['second']")):
        resume(door, tmp_path / "last.ckpt", [HintLoss("second", "second")], **even)


@pytest.mark.parametrize("door", DOORS)
def test_layers_by_default_are_compared_by_what_was_chosen(door, checkpoint):
    path = checkpoint(door, [HintLoss()], "default")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpoint that was made with.*")
        resume(door, path, [HintLoss()])
    with pytest.raises(ValueError, match=says(CANNOT, "part 'hint': student was [", "is ['stage1']")):
        resume(door, path, [hint("stage1")])


@pytest.mark.parametrize("door", DOORS)
def test_an_older_checkpoint_is_compared_by_what_it_tells(door, tmp_path):
    even = {"student": Even(6), "teacher": Even(9)}
    losses = [KDLoss(), HintLoss("first", "first")]
    module, callbacks = made(door, losses, **copy.deepcopy(even))
    path = tmp_path / "last.ckpt"
    support.fit(module, callbacks=callbacks, max_epochs=1).save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    del saved[CHECKPOINT_KEY]["made_of"]
    torch.save(saved, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpoint that was made with.*")
        resume(door, path, [KDLoss(temperature=2.0), HintLoss("first", "first")], **copy.deepcopy(even))
    with pytest.raises(ValueError, match=says(CANNOT, "part 'hint': student was ['first'], is ['second']")):
        resume(door, path, [KDLoss(), HintLoss("second", "first")], **copy.deepcopy(even))


@pytest.mark.parametrize("door", DOORS)
def test_a_loss_without_weights_may_read_another_layer(door, checkpoint):
    path = checkpoint(door, [ATLoss("stage2", "stage2")], "at")
    with pytest.warns(UserWarning, match=says(GOES_ON, "part 'at': student was ['stage2'], is ['stage1']")):
        resume(door, path, [ATLoss("stage1", "stage1")])


@pytest.mark.parametrize("door", DOORS)
def test_another_teacher_is_named(door, checkpoint):
    path = checkpoint(door, kd_and_hint(), "two")
    with pytest.warns(UserWarning, match=says(GOES_ON, "the teacher is a StagedNet with other weights")):
        resume(door, path, kd_and_hint(), teacher=guide(8))

    class Other(support.StagedNet):
        pass

    with pytest.warns(UserWarning, match=says(GOES_ON, "the teacher was a StagedNet, is a Other")):
        resume(door, path, kd_and_hint(), teacher=Other(5))


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_of_another_width_is_refused_in_words(door, checkpoint):
    class Wider(support.StagedNet):
        pass

    with pytest.raises(ValueError, match=says(CANNOT, "the teacher was a StagedNet, is a Wider")):
        resume(door, checkpoint(door, kd_and_hint(), "two"), kd_and_hint(), teacher=Wider(6))


@pytest.mark.parametrize("door", DOORS)
def test_another_student_is_refused_in_words(door, checkpoint):
    student = support.StagedNet(4)
    before = support.snapshot(student)
    words = says("another student architecture", "stage1.0.weight: (3, 1, 3, 3) in the checkpoint, (4, 1, 3, 3) here")
    with pytest.raises(ValueError, match=words):
        resume(door, checkpoint(door, [KDLoss()], "kd"), [KDLoss()], student=student)
    support.assert_unchanged(student, before)


def test_another_task_is_named(checkpoint):
    path = checkpoint("module", [KDLoss()], "kd")
    words = says(GOES_ON, "task_weight was 1.0, is 0.5", "task_loss.label_smoothing was 0.0, is 0.1")
    options = {"task_loss": nn.CrossEntropyLoss(label_smoothing=0.1), "task_weight": 0.5}
    with pytest.warns(UserWarning, match=words):
        resume("module", path, [KDLoss()], **options)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_inside_a_hybrid_is_named(door, checkpoint):
    path = checkpoint(door, [HybridLoss([KDLoss(), hint()], balance="magnitude")], "hybrid")
    with pytest.warns(UserWarning, match=says(GOES_ON, "part 'hybrid.kd': temperature was 4.0, is 2.0")):
        resume(door, path, [HybridLoss([KDLoss(temperature=2.0), hint()], balance="magnitude")])
    with pytest.raises(ValueError, match=says(CANNOT, "part 'hybrid.hint': student was ['stage2'], is ['stage1']")):
        resume(door, path, [HybridLoss([KDLoss(), hint("stage1")], balance="magnitude")])


@pytest.mark.parametrize("door", DOORS)
def test_evaluating_a_checkpoint_with_something_else_says_nothing(door, checkpoint):
    path = checkpoint(door, kd_and_hint(), "two")
    module, callbacks = made(door, [KDLoss(temperature=1.0), hint()], teacher=guide(8))
    trainer = support.trainer(callbacks=callbacks)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpoint that was made with.*")
        trainer.validate(module, support.loader(), ckpt_path=path, verbose=False)


def test_a_module_may_be_loaded_with_other_losses(checkpoint):
    path = checkpoint("module", [KDLoss()], "kd")
    options = {"student": net(), "teacher": guide(8), "losses": [DKDLoss()], "weights_only": True}
    loaded = DistillationModule.load_from_checkpoint(path, **options)
    assert [*loaded.losses] == ["dkd"]


@pytest.mark.parametrize("door", DOORS)
def test_a_memory_is_not_taken_for_that_of_another_layer(door, tmp_path):
    from torch.utils.data import DataLoader

    from lightning_kd.data import Indexed

    even = {"student": Even(6), "teacher": Even(9)}
    data = DataLoader(Indexed(support.data()), batch_size=8)

    def crd(layer):
        return [CRDLoss(layer, layer, dim=4, negatives=6)]

    module, callbacks = made(door, crd("first"), **copy.deepcopy(even))
    trainer = support.fit(module, train=data, callbacks=callbacks, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module, callbacks = made(door, crd("second"), **copy.deepcopy(even))
    with pytest.raises(ValueError, match=says(CANNOT, "part 'crd': student was ['first'], is ['second']")):
        support.fit(module, train=data, callbacks=callbacks, ckpt_path=tmp_path / "last.ckpt")


def test_the_students_own_loss_is_called_model_and_was_called_str():
    objective = Objective(name_losses([KDLoss()]))
    own = made_of(objective, None, None, "model")
    assert own["task"]["task_loss"] == "model"
    other = made_of(objective, None, None, nn.MSELoss())
    assert differences(own, other) == (["task_loss was 'model', is 'MSELoss'"], [])
    older = copy.deepcopy(own)
    older["task"]["task_loss"] = "str"
    assert differences(older, own) == ([], [])
    assert differences(older, other)[0] == ["task_loss was 'model', is 'MSELoss'"]
