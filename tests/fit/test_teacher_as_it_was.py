"""A fit leaves the teacher as it was; a teacher that does not stay so is told."""

import random
import re
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd.capture.fingerprint import as_one_number, changed, fingerprint
from lightning_kd.fit.resume import random_state
from lightning_kd.losses import HintLoss, KDLoss, MutualLearning
from lightning_kd.teachers import BornAgain, EMATeacher
from tests import support

DOORS = ["module", "callback"]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def state_of(net):
    return {
        "weights": support.snapshot(net),
        "modes": [part.training for part in net.modules()],
        "grads": [(p.requires_grad, p.grad) for p in net.parameters()],
        "hooks": [len(getattr(part, table)) for part in net.modules() for table in HOOKS],
        "attributes": [sorted(vars(part)) for part in net.modules()],
    }


class Noisy(support.ConvNet):
    """Everything in a network that a careless call disturbs, in eval mode as is due."""

    def __init__(self, width):
        super().__init__(width, dropout=0.5)
        self.features.append(nn.BatchNorm2d(width, momentum=0.9))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("ends", ["finished", "broken off"])
def test_a_fit_leaves_the_teacher_as_it_was(door, ends):
    guide = support.seeded(lambda: Noisy(8), 7)
    made, callbacks = support.through(door, guide=guide)
    before = state_of(guide)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The teacher")
        if ends == "finished":
            support.fit(made, callbacks=callbacks)
        else:

            class Breaks(Callback):
                def on_train_batch_end(self, *_):
                    raise RuntimeError("broken off")

            with pytest.raises(RuntimeError, match="broken off"):
                support.fit(made, callbacks=[*callbacks, Breaks()])
    after = state_of(guide)
    assert after.pop("weights").keys() == before["weights"].keys()
    support.assert_unchanged(guide, before.pop("weights"))
    assert after == before


@pytest.mark.parametrize("door", DOORS)
def test_a_fit_draws_what_it_draws_without_a_teacher(door):
    """The look at the networks and the teacher draw nothing: the random state ends as that of another teacher's fit."""
    ends = []
    for guide in (support.teacher(), support.seeded(lambda: Noisy(5), 1)):
        made, callbacks = support.through(door, guide=guide, losses=[KDLoss(), HintLoss("features", "features")])
        random.seed(1)
        np.random.seed(1)
        support.fit(made, callbacks=callbacks)
        state = random_state.current()
        ends.append((state["torch"].tolist(), state["python"], state["numpy"]["state"]))
    assert ends[0] == ends[1]


class Counting(support.ConvNet):
    """Writes a buffer in each call."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


class Caching(support.ConvNet):
    """Fills a buffer in its first call alone, as rotary embeddings do."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("table", torch.zeros(3), persistent=False)

    def forward(self, x):
        self.table = torch.arange(3.0)
        return super().forward(x)


class MovingAverage(support.ConvNet):
    """A BatchNorm that goes on counting in eval mode, through torch's own function."""

    def forward(self, x):
        norm = self.features[1]
        nn.functional.batch_norm(self.features[0](x), norm.running_mean, norm.running_var, training=True)
        return super().forward(x)


@pytest.mark.parametrize(("make", "name"), [(Counting, "'seen'"), (MovingAverage, "'features.1.running_mean'")])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("options", [{}, {"max_epochs": -1, "max_steps": 2}])
def test_a_teacher_that_writes_buffers_is_told(door, make, name, options):
    made, callbacks = support.through(door, guide=support.seeded(lambda: make(8), 7))
    words = says("teacher", make.__name__, "not what it was", name, "self.training")
    with pytest.warns(UserWarning, match=words) as told:
        support.fit(made, callbacks=callbacks, **options)
    assert len([one for one in told if "not what it was" in str(one.message)]) == 1


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_that_is_trained_along_is_told(door):
    guide = support.teacher()

    class Trains(Callback):
        def on_train_batch_end(self, *_):
            guide.head.weight.data.mul_(1.01)

    made, callbacks = support.through(door, guide=guide)
    with pytest.warns(UserWarning, match=says("not what it was", "'head.weight'", "copy.deepcopy(teacher)")):
        support.fit(made, callbacks=[*callbacks, Trains()])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("losses", "extra", "guide"),
    [
        (lambda: [KDLoss()], [], lambda: Caching(8)),
        (lambda: [KDLoss()], [lambda: EMATeacher(decay=0.5)], None),
        (lambda: [KDLoss()], [lambda: BornAgain(generations=2)], None),
        (lambda: [KDLoss(), MutualLearning([support.seeded(lambda: support.ConvNet(4), 9)])], [], support.teacher),
    ],
)
def test_who_changes_on_purpose_is_not_told(door, losses, extra, guide):
    made, callbacks = support.through(door, guide=guide and guide(), losses=losses())
    if guide is None:
        made, callbacks = _without_teacher(door, losses())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The teacher")
        support.fit(made, callbacks=[*callbacks, *(one() for one in extra)])


def _without_teacher(door, losses):
    from lightning_kd import DistillationCallback

    if door == "module":
        return support.module(teacher=None, losses=losses), []
    return support.UserModule(support.student()), [DistillationCallback(None, losses)]


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_that_draws_in_eval_mode_is_told_at_set_up(door):
    class Draws(support.ConvNet):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    made, callbacks = support.through(door, guide=support.seeded(lambda: Draws(8), 7))
    with pytest.warns(UserWarning, match=says("The teacher Draws draws random numbers", "training=self.training")):
        support.fit(made, callbacks=callbacks, fast_dev_run=True)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.bool]
)
def test_a_fingerprint_changes_with_any_one_value(dtype):
    net = nn.Module()
    net.register_buffer("values", torch.ones(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last))
    before = fingerprint(net)
    assert changed(before, fingerprint(net)) == []
    assert before.keys() == {"values"}
    net.values[1, 2, 3, 4] = 0
    assert changed(before, fingerprint(net)) == ["values"]
    assert as_one_number(before) != as_one_number(fingerprint(net))


def test_what_has_no_memory_has_no_fingerprint():
    net = nn.Module()
    net.lazy, net.far = nn.LazyLinear(3), nn.Linear(1, 1, device="meta")
    net.register_buffer("sparse", torch.eye(3).to_sparse())
    net.register_buffer("empty", torch.zeros(0, 3))
    assert fingerprint(net) == {"empty": 0}
