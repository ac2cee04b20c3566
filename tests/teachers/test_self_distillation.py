"""Teachers made of the student: born-again generations, the mean teacher, and mutual learning, through both doors."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.functional import kd_loss
from lightning_kd.losses import HintLoss, KDLoss, MutualLearning
from lightning_kd.schedules import LinearSchedule, Moment
from lightning_kd.teachers import BornAgain, EMATeacher
from lightning_kd.teachers.born_again import reset_weights
from tests import support
from tests.fit.test_stages import Compressed

DOORS = ["module", "callback"]


def losses():
    return [KDLoss(temperature=2.0), HintLoss("features", "features")]


def fitted(door, *callbacks, parts=None, net=None, **options):
    net = support.student() if net is None else net
    parts = losses() if parts is None else parts
    torch.manual_seed(5)
    if door == "module":
        made, doors = support.module(net, teacher=None, losses=parts), []
        kept = made.losses
    else:
        made, doors = support.UserModule(net), [DistillationCallback(None, parts)]
        kept = doors[0].losses
    trainer = support.fit(made, callbacks=[*callbacks, *doors], **options)
    return net, trainer, kept


class Weights(Callback):
    """Keeps the student's weights after the first step and at the end of every epoch."""

    def __init__(self, net):
        self.net, self.begins, self.ends = net, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.begins.append(support.snapshot(self.net))

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(support.snapshot(self.net))


# --- the mean teacher ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("warmup", [True, False])
def test_the_mean_teacher_is_the_moving_average_of_the_students_weights(door, warmup):
    net = support.student()
    start = support.snapshot(net)
    mean_teacher, seen = EMATeacher(decay=0.9, warmup=warmup), []

    class Steps(Callback):
        def on_train_batch_end(self, *_):
            seen.append(support.snapshot(net))

    fitted(door, mean_teacher, Steps(), net=net)
    expected = {name: value.double() for name, value in start.items()}
    for step, weights in enumerate(seen, 1):
        decay = min(0.9, 1 - 1 / (step + 1)) if warmup else 0.9
        for name, value in weights.items():
            running = "running" in name or "num" in name
            expected[name] = value.double() if running else decay * expected[name] + (1 - decay) * value.double()
    teacher = mean_teacher.teacher.module.state_dict()
    assert mean_teacher.steps == len(seen) == 6
    for name, value in expected.items():
        torch.testing.assert_close(teacher[name].double(), value, rtol=1e-5, atol=1e-7)


def test_the_mean_teacher_waits_for_an_optimizer_step():
    mean_teacher = EMATeacher()
    fitted("module", mean_teacher, max_epochs=1, accumulate_grad_batches=3)
    assert mean_teacher.steps == 1


def test_the_mean_teacher_of_a_16_bit_student_moves_by_less_than_16_bits_can_tell():
    mean_teacher = EMATeacher(decay=0.999, warmup=False)
    mean_teacher.student = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    mean_teacher.student.weight.data.fill_(1.0)
    mean_teacher.provide(mean_teacher.student)
    mean_teacher.student.weight.data.fill_(2.0)
    for _ in range(1000):
        mean_teacher.update()
    assert mean_teacher.teacher.module.weight.item() == pytest.approx(2 - 0.999**1000, rel=1e-2)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_cannot_be_is_refused(decay):
    with pytest.raises(ValueError, match=r"expected decay in \[0, 1\)"):
        EMATeacher(decay)


# --- born again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_each_generation_is_taught_by_the_one_before_and_starts_afresh(door):
    net = support.student()
    watch, born_again = Weights(net), BornAgain(generations=3, ensemble=True)
    _, trainer, _ = fitted(door, born_again, watch, net=net, max_epochs=6)
    for generation in (1, 2):
        last, first = watch.ends[2 * generation - 1], watch.begins[2 * generation]
        assert not torch.equal(last["features.0.weight"], first["features.0.weight"])
        assert first["features.1.num_batches_tracked"] == 1  # BatchNorm begins anew
    teacher = born_again.teacher.module.state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in watch.ends[3].items())
    assert "train/kd" in trainer.callback_metrics
    generations = born_again.ensemble_of_generations()
    assert len(generations.members) == 3
    x = support.data().tensors[0]
    expected = torch.zeros(())
    for weights in (watch.ends[1], watch.ends[3], watch.ends[5]):
        member = support.student().eval()
        member.load_state_dict(weights)
        expected = expected + member(x).softmax(1) / 3
    torch.testing.assert_close(generations.eval()(x).softmax(1), expected)


def test_the_first_generation_learns_the_task_alone():
    alone = support.student()
    support.fit(support.module(alone, teacher=None, losses=None), max_epochs=1)
    net = support.student()
    watch = Weights(net)
    fitted("module", BornAgain(generations=2), watch, net=net, parts=[KDLoss()], max_epochs=2)
    assert all(torch.equal(watch.ends[0][name], value) for name, value in alone.state_dict().items())


def test_the_second_generation_is_distilled_from_the_first_with_everything_afresh():
    seen, start = [], support.student()

    class Batches(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch)

    net = support.student()
    watch = Weights(net)
    schedule = LinearSchedule(1.0, 0.0, length=4)  # counts from the generation's beginning
    born_again = BornAgain(generations=2, make_student=lambda: copy.deepcopy(start))
    fitted("module", born_again, watch, Batches(), net=net, parts=[KDLoss(2.0, weight=schedule)], max_epochs=4)
    guide, by_hand = support.student().eval(), copy.deepcopy(start)
    guide.load_state_dict(watch.ends[1])
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for step, (x, y) in enumerate(seen[6:]):
        logits = by_hand(x)
        with torch.no_grad():
            shown = guide(x)
        loss = nn.functional.cross_entropy(logits, y)
        weight = 1.0 if step < 3 else 0.75
        loss = loss + weight * kd_loss(logits, shown, temperature=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value)


@pytest.mark.parametrize("door", DOORS)
def test_a_stage_that_needs_the_teacher_waits_for_the_second_generation(door):
    net = support.student()
    watch = Weights(net)
    fitted(door, BornAgain(generations=2), watch, net=net, parts=[Compressed(1)], max_epochs=4)
    ends = [weights["features.0.weight"] for weights in watch.ends]
    assert not torch.equal(ends[0], ends[1])  # the task alone
    assert torch.equal(ends[2], watch.begins[2]["features.0.weight"])  # the stage, without the student
    assert not torch.equal(ends[2], ends[3])


class Before(Callback):
    """Keeps the losses' weights and the learning rate before the first step of every epoch."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.fit_loop.epoch_loop.batch_idx == 0:
            self.losses.append(support.snapshot(pl_module.losses))
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_losses_and_learning_rate_begin_anew_with_every_generation():
    before, schedule = Before(), partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[1], gamma=0.5)
    module = support.module(teacher=None, losses=losses(), lr_scheduler=schedule)
    support.fit(module, callbacks=[BornAgain(generations=3), before], max_epochs=6)
    assert before.rates == [0.1, 0.05] * 3
    name = "hint.projectors.0.conv.weight"
    start, *_, third, end = (weights[name] for weights in before.losses)
    assert torch.equal(third, start)
    assert not torch.equal(end, start)


@pytest.mark.parametrize("max_epochs", [1, 5])
def test_epochs_that_cannot_be_shared_are_refused(max_epochs):
    with pytest.raises(MisconfigurationException, match=rf"cannot share max_epochs={max_epochs} evenly among 2"):
        fitted("module", BornAgain(generations=2), max_epochs=max_epochs)
    with pytest.raises(MisconfigurationException, match=r"2 generations of 4 epochs are 8 epochs"):
        fitted("module", BornAgain(generations=2, epochs=4), max_epochs=max_epochs)


def test_weights_that_cannot_be_drawn_afresh_are_named():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))

    with pytest.raises(MisconfigurationException, match=r"\['1.token'\].*make_student"):
        reset_weights(nn.Sequential(nn.Linear(1, 1), Token()))
    with pytest.raises(ValueError, match="expected generations >= 2, got 1"):
        BornAgain(generations=1)
    with pytest.raises(RuntimeError, match="ensemble=True"):
        BornAgain().ensemble_of_generations()


# --- mutual learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_the_peers_learn_beside_the_student(door):
    peer = support.seeded(lambda: support.ConvNet(4), 9)
    before = support.snapshot(peer)
    parts = [MutualLearning([peer])]
    _, trainer, kept = fitted(door, parts=parts)
    assert not torch.equal(peer.head.weight, before["head.weight"])
    assert trainer.callback_metrics["train/mutual_learning"] > 0
    assert kept["mutual_learning"].peers[0] is peer


def test_both_doors_learn_mutually_alike():
    nets = [fitted(door, parts=[MutualLearning([support.teacher()])])[0] for door in DOORS]
    support.assert_same_weights(*nets)


# --- whichever -------------------------------------------------------------------------------------------------------


def sources():
    return {"ema": lambda: EMATeacher(decay=0.9), "born again": lambda: BornAgain(generations=2, ensemble=True)}


@pytest.mark.parametrize("make", sources().values(), ids=sources())
def test_both_doors_train_the_same_student(make):
    (one, _, mine), (two, _, its) = (fitted(door, make()) for door in DOORS)
    support.assert_same_weights(one, two)
    support.assert_same_weights(mine, its)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("make", sources().values(), ids=sources())
def test_a_second_fit_goes_on_from_the_first(make, door):
    source, parts = make(), losses()
    net = support.student()
    if door == "module":
        made, doors = support.module(net, teacher=None, losses=parts), []
    else:
        made, doors = support.UserModule(net), [DistillationCallback(None, parts)]
    support.fit(made, callbacks=[source, *doors])
    teacher = source.teacher
    support.fit(made, callbacks=[source, *doors])
    assert source.teacher is teacher
    if isinstance(source, EMATeacher):
        assert source.steps == 12
    else:
        assert (source.generation, len(source.ensemble_of_generations().members)) == (1, 2)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("make", [*sources().values(), None], ids=[*sources(), "mutual"])
def test_a_run_resumed_at_any_step_equals_the_uninterrupted_one(make, door, at, tmp_path):
    def run(*extra, **options):
        first = [make()] if make else []
        parts = None if make else [MutualLearning([support.teacher()])]
        options = {"parts": parts, "train": support.ResumableLoader(), "max_epochs": 2, **options}
        net, _, kept = fitted(door, *first, *extra, **options)
        return net, kept, first

    whole, parts, made = run(support.SaveEveryStep(tmp_path))
    resumed, its, again = run(ckpt_path=tmp_path / f"{at}.ckpt", seed=99)
    support.assert_same_weights(whole, resumed)
    support.assert_same_weights(parts, its)
    for one, other in zip(made, again, strict=True):
        support.assert_same_weights(one.teacher.module, other.teacher.module)


def test_a_step_that_was_saved_before_it_was_in_the_average_is_made_up_for(tmp_path):
    whole, source = EMATeacher(decay=0.9), EMATeacher(decay=0.9)
    options = {"train": support.ResumableLoader(), "max_epochs": 2}
    fitted("module", support.SaveEveryStep(tmp_path), whole, **options)
    fitted("module", source, ckpt_path=tmp_path / "4.ckpt", **options)
    support.assert_same_weights(whole.teacher.module, source.teacher.module)
    assert source.steps == whole.steps == 6


@pytest.mark.parametrize("door", DOORS)
def test_a_second_teacher_is_refused(door):
    with pytest.raises(MisconfigurationException, match=r"EMATeacher and BornAgain make the teacher.*at most one"):
        fitted(door, EMATeacher(), BornAgain(2))
    made, callbacks = support.through(door)
    with pytest.raises(MisconfigurationException, match=r"EMATeacher makes the teacher.*a teacher besides"):
        support.fit(made, callbacks=[EMATeacher(), *callbacks])


@pytest.mark.filterwarnings("ignore:.*left out")  # the log compares no outputs of which some classes are chosen
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"teacher_classes": [3, 0, 1, 2]}, True),
        ({"teacher_classes": [1, 0], "student_classes": [0, 1]}, True),
        ({"teacher_classes": [1, 0], "student_classes": [1, 0]}, False),
    ],
)
def test_other_classes_than_the_students_own_are_refused(door, options, refused):
    if door == "module":
        made, callbacks = DistillationModule(support.student(), losses=[KDLoss()], **options), []
    else:
        made, callbacks = support.UserModule(support.student()), [DistillationCallback(None, [KDLoss()], **options)]
    with (
        pytest.raises(MisconfigurationException, match=r"EMATeacher makes .* same classes")
        if refused
        else nullcontext()
    ):
        support.fit(made, callbacks=[EMATeacher(), *callbacks])


def test_a_source_without_a_run_says_how_to_use_it():
    with pytest.raises(RuntimeError, match="has no teacher yet; fit a DistillationModule without a teacher"):
        EMATeacher().pair()


@pytest.mark.parametrize("door", DOORS)
def test_the_copies_are_in_no_optimizer_and_not_among_the_modules_own_weights(door, tmp_path):
    net, trainer, kept = fitted(door, EMATeacher())
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in [*net.parameters(), *kept.parameters()]}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in saved["state_dict"]} <= {"student", "losses", "net"}
    assert saved["callbacks"]["EMATeacher"]["steps"] == 6


def test_a_moment_counts_from_the_beginning():
    assert Moment(3, 1).count("step") == 3
    assert Moment(3, 1).count("epoch") == 1


class Wide(nn.Module):
    """Draws its weights otherwise than its layers would, as transformers do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(400, 4)
        nn.init.normal_(self.head.weight, std=0.5)

    def forward(self, x):
        return self.head(x.flatten(1).repeat(1, 400)[:, :400])


@pytest.mark.parametrize("own", [True, False])
def test_generations_that_would_begin_otherwise_are_told(own, recwarn):
    made = support.module(support.seeded(Wide, 1), teacher=None, losses=[KDLoss()])
    options = {"make_student": Wide} if own else {}
    support.fit(made, callbacks=[BornAgain(generations=2, **options)], max_epochs=2)
    told = [str(one.message) for one in recwarn if "Pass make_student=" in str(one.message)]
    assert bool(told) != own
    # uniform within 1 / sqrt(400) has a standard deviation of 0.0289
    assert own or "begins with a standard deviation of 0.02" in told[0]
