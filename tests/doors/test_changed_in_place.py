"""Nobody sees what another has written: what a network, a step or a task's loss changes is refused, wherever it is."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.capture.call import Call
from lightning_kd.functional import kd_loss
from lightning_kd.losses import DKDLoss, HintLoss, KDLoss, MutualLearning, TfKDLoss
from tests import support

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


class Graph:
    def __init__(self, x):
        self.x = x


class Dressed(nn.Module):
    """Reads its input in a dress of its own, and may write into it."""

    def __init__(self, seed, write=None, returns=lambda logits: logits):
        super().__init__()
        self.net = support.seeded(lambda: nn.Linear(6, 3), seed)
        self.write, self.returns = write, returns

    def forward(self, given):
        if self.write is not None:
            self.write(given)
        return self.returns(self.net(bare(given)))


def bare(given):
    if isinstance(given, Graph):
        return given.x
    if isinstance(given, dict):
        return bare(given["x"])
    return torch.stack(list(given)) if isinstance(given, list) else given[0] if isinstance(given, tuple) else given


def put(given):
    if isinstance(given, Graph):
        given.x = given.x - 1
    elif isinstance(given, dict):
        given["x"] = given["x"] - 1
    else:
        given[0] = given[0] - 1


def write(given):
    bare(given).sub_(1.0)


DRESSES = {
    "dict": lambda x: {"x": x},
    "list": list,
    "tuple": lambda x: (x,),
    "object": Graph,
    "nested": lambda x: {"x": {"x": x}},
}


class Module(DistillationModule):
    dress = staticmethod(lambda x: x)

    def unpack_batch(self, batch):
        return Batch(args=(type(self).dress(batch[0]),), target=batch[1])


class User(support.UserModule):
    def __init__(self, net, step):
        super().__init__(net)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self.net, batch)

    def validation_step(self, batch, batch_idx):
        self.step(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(batch_size=4):
    return DataLoader(TensorDataset(X.clone(), Y.clone()), batch_size)


def fit(door, dress, losses, student=None, teacher=None, step=None, run="fit", **options):
    student = Dressed(1) if student is None else student
    teacher = Dressed(2) if teacher is None else teacher
    still = partial(torch.optim.SGD, lr=0.0)
    if door == "module":
        kind = type("Door", (Module,), {"dress": staticmethod(dress)})
        module, callbacks = kind(student, teacher, losses, optimizer=still, **options), []
    else:
        step = step or (lambda net, batch: F.cross_entropy(net(dress(batch[0])), batch[1]))
        module, callbacks = User(student, step), [DistillationCallback(teacher, losses)]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    if run == "validate":
        trainer.validate(module, loader(), verbose=False)
    else:
        trainer.fit(module, loader(), loader())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


DOORS = ["module", "callback"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dress", DRESSES)
def test_the_mean_of_an_epoch_is_over_rows_in_every_dress(door, dress):
    found = fit(door, DRESSES[dress], [KDLoss()])["train/kd"]
    expected = kd_loss(Dressed(1)(X), Dressed(2)(X), temperature=4.0)
    assert found == pytest.approx(expected.item(), rel=1e-5)


class Pools(nn.Module):
    """One answer for each graph of several nodes."""

    def __init__(self, seed):
        super().__init__()
        self.net = support.seeded(lambda: nn.Linear(6, 3), seed)

    def forward(self, nodes, graph):
        return self.net(torch.zeros(int(graph.max()) + 1, 6).index_add_(0, graph, nodes))


def test_logits_that_a_door_computes_are_computed_once_for_the_losses():
    calls = []

    class Computes(DistillationCallback):
        def logits_of(self, output):
            calls.append(torch.is_grad_enabled())
            return output

    user = User(Dressed(1), lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]))
    counted = []
    for steps in (1, 2):
        calls.clear()
        callback = Computes(Dressed(2), [KDLoss()])
        support.fit(copy.deepcopy(user), train=loader(5), limit_val_batches=0, max_steps=steps, callbacks=[callback])
        counted.append(len(calls))
    assert counted[1] - counted[0] == 2  # of the student and of the teacher


def test_the_mean_of_an_epoch_is_over_graphs_not_over_their_nodes():
    class Graphs(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(args=batch)

    batches = [(X, torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])), (X[:4], torch.arange(4))]
    module = Graphs(Pools(1), Pools(2), [KDLoss()], optimizer=partial(torch.optim.SGD, lr=0.0))
    fitted = support.fit(module, train=DataLoader(batches, batch_size=None), max_epochs=1, limit_val_batches=0)
    rows = [torch.cat([net(*batch) for batch in batches]) for net in (Pools(1), Pools(2))]
    assert float(fitted.callback_metrics["train/kd"]) == pytest.approx(kd_loss(*rows, temperature=4.0).item(), rel=1e-5)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("run", ["fit", "validate"])
@pytest.mark.parametrize(
    ("dress", "change"),
    [
        *((dress, put) for dress in ("dict", "list", "object")),
        *((dress, write) for dress in ("dict", "tuple", "object")),
    ],
)
def test_a_student_that_writes_into_its_input_is_refused_in_every_dress(door, run, dress, change):
    with pytest.raises(RuntimeError, match="The student changed its input"):
        fit(door, DRESSES[dress], [KDLoss()], student=Dressed(1, change), run=run)


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_plain_input_too(run):
    with pytest.raises(RuntimeError, match="The student changed its input"):
        fit("module", lambda x: x, [KDLoss()], student=Dressed(1, write), run=run)


def test_what_was_noted_of_a_call_around_a_call_does_not_count():
    """Lightning has DDP call the module itself with the whole batch, within which a step calls it with the inputs."""
    call = Call()
    call.note_inputs(((X, Y),), {}, copied=False)
    call.note_inputs((X,), {}, copied=False)
    call.args = (X,)
    assert not call.changed_input


def test_a_network_may_add_entries_of_its_own():
    def add(given):
        given["features"] = given["x"] * 2

    found = fit("module", DRESSES["dict"], [KDLoss()], student=Dressed(1, add), teacher=Dressed(2, add))["train/kd"]
    assert found == pytest.approx(kd_loss(Dressed(1)(X), Dressed(2)(X), temperature=4.0).item(), rel=1e-5)


def test_peers_of_a_student_that_writes_into_its_input_do_not_learn_from_that():
    module = DistillationModule(
        Dressed(1, write), None, [MutualLearning([Dressed(2)])], task_loss=nn.CrossEntropyLoss()
    )
    with pytest.raises(RuntimeError, match="The student changed its input"):
        support.fit(module, train=loader(), limit_val_batches=0)


def test_nor_do_the_students_after_it():
    module = DistillationModule(
        students={"a": Dressed(1, write), "b": Dressed(2)}, losses=[TfKDLoss()], task_loss=nn.CrossEntropyLoss()
    )
    with pytest.raises(RuntimeError, match="The student 'a' changed the batch in place"):
        support.fit(module, train=loader(), limit_val_batches=0)


@pytest.mark.parametrize("dress", [*DRESSES, "views"])
def test_samples_in_another_order_are_refused_in_every_dress(dress):
    turn = {"views": lambda x: [*x.unbind(0)][::-1]}.get(dress) or (lambda x: DRESSES[dress](x.flip(0)))
    with pytest.raises(ValueError, match="may have mixed or reordered the samples"):
        fit("callback", None, [DKDLoss()], step=lambda net, b: F.cross_entropy(net(turn(b[0])), b[1].flip(0)))


@pytest.mark.parametrize("dress", DRESSES)
def test_samples_in_order_are_not(dress):
    fit("callback", DRESSES[dress], [DKDLoss()])


def replaced(net, batch):
    output = net(batch[0])
    output["logits"] = output["logits"] * 3
    return F.cross_entropy(output["logits"], batch[1])


def test_an_output_whose_entries_a_step_replaces_is_refused():
    student, teacher = (Dressed(seed, returns=lambda logits: {"logits": logits}) for seed in (1, 2))
    with pytest.raises(RuntimeError, match="What the student returned was changed"):
        fit("callback", None, [KDLoss()], student, teacher, step=replaced)


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_logits_that_an_evaluation_changes_are_refused(run):
    def step(net, batch):
        logits = net(batch[0])
        if not net.training:
            logits[:, 2] = -1e4
        return F.cross_entropy(logits, batch[1])

    with pytest.raises(RuntimeError, match="What the student returned was changed"):
        fit("callback", None, [KDLoss()], step=step, run=run)


class Rewrites(nn.Module):
    def forward(self, logits, target):
        target[target == 2] = -100
        return F.cross_entropy(logits, target)


def test_a_task_loss_that_rewrites_the_labels_is_refused():
    with pytest.raises(ValueError, match="task_loss, a Rewrites, changed the target in place"):
        fit("module", lambda x: x, [DKDLoss()], task_loss=Rewrites())


def test_in_an_evaluation_alone_it_rewrites_a_copy():
    found = fit("module", lambda x: x, [DKDLoss()], task_loss=Rewrites(), run="validate")
    right = (Dressed(2)(X).argmax(1) == Y).float().mean().item()
    assert found["val/teacher_accuracy"] == pytest.approx(right)


def dropping(drop):
    return nn.Sequential(nn.Linear(6, 3), drop)


@pytest.mark.parametrize(
    "drop", [nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU()], ids=lambda one: type(one).__name__
)
def test_a_part_that_draws_is_not_shared_with_the_teacher(drop):
    with pytest.raises(ValueError, match=f"a {type(drop).__name__}, is one of the teacher's too"):
        DistillationModule(dropping(drop), dropping(drop), [KDLoss()])


def test_a_part_that_does_not_draw_may_be():
    shared = nn.ReLU()
    DistillationModule(dropping(shared), dropping(shared), [KDLoss()])


def test_students_do_not_share_buffers():
    norm = nn.BatchNorm1d(6, affine=False)
    students = {name: nn.Sequential(norm, nn.Linear(6, 3)) for name in ("a", "b")}
    with pytest.raises(ValueError, match="The students 'a' and 'b' share buffers"):
        DistillationModule(students=students, teacher=Dressed(3), losses=[KDLoss()])


class WithoutLosses(DistillationModule):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.student(batch[0]), batch[1])


def test_a_step_that_leaves_the_losses_out_is_told_once():
    with pytest.warns(
        UserWarning, match="WithoutLosses.training_step made a step without the distillation losses"
    ) as told:
        support.fit(WithoutLosses(Dressed(1), Dressed(2), [KDLoss()]), train=loader(), limit_val_batches=0)
    assert len([one for one in told if "made a step without" in str(one.message)]) == 1


class Thaws(Callback):
    def __init__(self, add):
        self.add = add

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.student[0].requires_grad_(True)
            if self.add:
                trainer.optimizers[0].add_param_group({"params": [*pl_module.student[0].parameters()]})


@pytest.mark.parametrize("add", [False, True])
def test_weights_that_thaw_and_are_in_no_optimizer_are_told(add):
    student = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    student[0].requires_grad_(False)
    module = DistillationModule(student, Dressed(2), [KDLoss()], optimizer=partial(torch.optim.SGD, lr=0.1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        support.fit(module, train=loader(), max_epochs=3, limit_val_batches=0, callbacks=[Thaws(add)])
    said = [str(one.message) for one in told if "were frozen at set-up and train now" in str(one.message)]
    assert said == [] if add else len(said) == 1 and "'0.weight' and 1 more" in said[0]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_layer_may_be_changed_in_place_where_an_evaluation_does_not_read_it(inference_mode):
    nets = [nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 3)) for inplace in (True, False)]
    module = DistillationModule(*nets, [HintLoss("0", "0")], task_loss=nn.CrossEntropyLoss())
    (found,) = support.trainer(inference_mode=inference_mode).validate(module, loader(), verbose=False)
    right = (nets[1](X).argmax(1) == Y).float().mean().item()
    assert found["val/teacher_accuracy"] == pytest.approx(right)
