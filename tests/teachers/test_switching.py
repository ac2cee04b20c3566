"""One teacher after another: who is asked when, that the others do not run, and that a resumed fit goes on so."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_kd import DistillationCallback
from lightning_kd.capture.call import Call
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.schedules import Moment
from lightning_kd.teachers import SwitchingTeacher
from tests import support


def guides(count=3):
    return [support.seeded(lambda: support.ConvNet(8), seed) for seed in range(20, 20 + count)]


def counted(networks):
    """Notes the number of each network that runs, from when it is emptied on."""
    order = []
    for index, network in enumerate(networks):
        network.register_forward_hook(lambda *_, index=index: order.append(index))
    return order


class Forget(Callback):
    """Empties a list as the training begins: set-up asks everybody."""

    def __init__(self, order):
        self.order = order

    def on_train_start(self, *_):
        self.order.clear()


def fitted(door, teacher, order=None, **options):
    made, callbacks = support.through(door, guide=teacher)
    extra = [] if order is None else [Forget(order)]
    trainer = support.fit(made, callbacks=[*callbacks, *extra], **options)
    return (made.student if door == "module" else made.net), trainer


@pytest.mark.parametrize("door", ["module", "callback"])
def test_one_teacher_is_asked_in_each_epoch_and_the_others_do_not_run(door):
    networks = guides()
    order = counted(networks)
    fitted(door, SwitchingTeacher(networks, [1, 3]), order, max_epochs=4)
    # three batches of training and three of validation in each epoch
    assert order == [0] * 6 + [1] * 12 + [2] * 6


def test_steps_can_be_counted():
    networks = guides(2)
    order = counted(networks)
    fitted("module", SwitchingTeacher(networks, [2], "step"), order, max_epochs=1)
    # after the third step validation asks the teacher of the steps done by then
    assert order == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("door", ["module", "callback"])
def test_what_is_learned_is_what_each_teacher_teaches_alone(door):
    networks = guides(2)
    switched, _ = fitted(door, SwitchingTeacher(networks, [1]), max_epochs=1)
    alone, _ = fitted(door, networks[0], max_epochs=1)
    support.assert_same_weights(switched, alone)
    both, _ = fitted(door, SwitchingTeacher(networks, [1]), max_epochs=2)
    one, _ = fitted(door, networks[0], max_epochs=2)
    assert not torch.equal(both.head.weight, one.head.weight)


def test_a_resumed_fit_goes_on_with_the_teacher_of_the_moment(tmp_path):
    whole, _ = fitted("module", SwitchingTeacher(guides(), [2, 5], "step"), max_epochs=3)
    made = support.module(teacher=SwitchingTeacher(guides(), [2, 5], "step"))
    support.fit(made, max_epochs=3, callbacks=[support.SaveEveryStep(tmp_path)])
    support.assert_same_weights(made.student, whole)
    for step in (1, 2, 4, 5, 7):
        networks = guides()
        order = counted(networks)
        again = support.module(teacher=SwitchingTeacher(networks, [2, 5], "step"))
        support.fit(again, max_epochs=3, ckpt_path=tmp_path / f"{step}.ckpt", callbacks=[Forget(order)])
        support.assert_same_weights(again.student, whole)
        assert set(order) == {index for index, first in enumerate((0, 2, 5)) if index == 2 or step < (2, 5)[index]}


def test_the_teachers_accuracy_is_logged_of_each():
    x, y = support.data().tensors
    networks = [network.eval() for network in guides(2)]

    class Collect(Callback):
        seen = []

        def on_validation_end(self, trainer, *_):
            self.seen.append(trainer.callback_metrics["val/teacher_accuracy"].item())

    collect = Collect()
    made = support.module(teacher=SwitchingTeacher(networks, [1]))
    support.fit(made, max_epochs=2, callbacks=[collect])
    with torch.no_grad():
        expected = [(network(x).argmax(1) == y).double().mean().item() for network in networks]
    assert expected[0] != expected[1]
    assert collect.seen == pytest.approx(expected)


def test_the_teachers_stay_untouched_and_out_of_the_checkpoint():
    networks = guides(2)
    before = [support.snapshot(network) for network in networks]
    made = support.module(teacher=SwitchingTeacher(networks, [1]))
    made.train()
    support.fit(made, max_epochs=2)
    for network, state in zip(networks, before, strict=True):
        support.assert_unchanged(network, state)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(part._forward_hooks for part in network.modules())
    assert all(name.startswith(("student.", "losses.")) for name in made.state_dict())


def test_all_of_them_follow_the_module_to_its_format():
    networks = guides(2)
    support.module(teacher=SwitchingTeacher(networks, [1])).to(torch.bfloat16)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    kept = guides(2)
    support.module(teacher=SwitchingTeacher(kept, [1], dtype="float64")).to(torch.bfloat16)
    assert {p.dtype for network in kept for p in network.parameters()} == {torch.float64}


def test_named_inputs_reach_those_that_take_them():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(factor))

        def forward(self, x, scale=1.0):
            return x * scale * self.weight

    class Plain(nn.Module):
        def forward(self, x):
            return x

    teacher = SwitchingTeacher([Scaled(2.0), Plain()], [1])
    call = Call(args=(torch.ones(1, 2),), kwargs={"scale": 3.0})
    assert teacher.answer(None, call).output.tolist() == [[6.0, 6.0]]
    teacher.set_moment(Moment(epoch=1))
    assert teacher.answer(None, call).output.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"milestones": []}, "one teacher more than milestones, got 2 teachers and 0"),
        ({"milestones": [0]}, "expected a whole number milestone >= 1, got 0"),
        ({"milestones": [1], "unit": "batch"}, "SwitchingTeacher: expected unit 'epoch' or 'step'"),
    ],
)
def test_milestones_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SwitchingTeacher(guides(2), **options)
    with pytest.raises(ValueError, match="expected ascending milestones"):
        SwitchingTeacher(guides(3), [3, 2])


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match=r"expected a network as teacher 1 .*got a SwitchingTeacher"):
        SwitchingTeacher([nn.Identity(), SwitchingTeacher(guides(2), [1])], [1])
    with pytest.raises(ValueError, match=r"teacher 0 \(Linear\) is on the meta device"):
        SwitchingTeacher([nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)], [1])


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_teacher_that_does_not_fit_is_found_at_set_up(door):
    other = support.seeded(lambda: support.ConvNet(8, classes=5), 1)
    with pytest.raises(ValueError, match=r"the logits of teacher 0 .* \(2, 4\), those of teacher 1 .* \(2, 5\)"):
        _prepared(door, SwitchingTeacher([guides(1)[0], other], [1]), [KDLoss()])
    wide = support.seeded(lambda: support.ConvNet(9), 1)
    with pytest.raises(ValueError, match="the values of layer 'features' of teacher 0"):
        _prepared(door, SwitchingTeacher([guides(1)[0], wide], [1]), [HintLoss("features", "features")])
    with pytest.raises(ValueError, match=r"teacher 1 \(Linear\): The teacher Linear has no layer 'features'"):
        _prepared(door, SwitchingTeacher([guides(1)[0], nn.Linear(4, 4)], [1]), [HintLoss("features", "features")])


def _prepared(door, teacher, losses):
    if door == "module":
        support.fit(support.module(teacher=teacher, losses=losses), max_epochs=1)
    else:
        callback = DistillationCallback(teacher, losses)
        support.fit(support.UserModule(support.student()), callbacks=[callback], max_epochs=1)
