"""Teachers that run outside: a plain function, and an ONNX file. Both give logits, which are checked in every step."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import Batch, DistillationModule
from lightning_kd.capture.call import Call
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import FunctionTeacher, OnnxTeacher
from tests import support

X = support.data().tensors[0]


def answers(network):
    """A function that knows nothing of torch but arrays."""
    network.eval()

    def ask(x):
        with torch.no_grad():
            return network(x).numpy()

    return ask


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_function_teaches_what_its_network_teaches(door):
    nets = []
    for guide in (FunctionTeacher(answers(support.teacher())), support.teacher()):
        made, callbacks = support.through(door, guide=guide, losses=[KDLoss(temperature=2.0)])
        trainer = support.fit(made, callbacks=callbacks)
        nets.append(made.student if door == "module" else made.net)
        assert "val/teacher_accuracy" in trainer.callback_metrics
    support.assert_same_weights(*nets)


def test_a_function_may_read_the_batch():
    table = torch.randn(24, 4)
    teacher = FunctionTeacher(lambda batch: table[batch[2]], reads="batch")
    data = [(x, y, i) for i, (x, y) in enumerate(support.data())]
    made = support.module(teacher=teacher, losses=[KDLoss()])
    support.fit(made, train=DataLoader(data, batch_size=8, shuffle=True), val=DataLoader(data, batch_size=8))


class Nested(DistillationModule):
    def unpack_batch(self, batch):
        return Batch(args=({"x": batch[0]},), target=batch[1])


class OfDict(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, given):
        return self.net(given["x"])


def test_a_function_may_be_given_a_dictionary():
    ask = answers(support.teacher())
    nets = []
    for guide in (FunctionTeacher(lambda given: ask(given["x"])), OfDict(support.teacher())):
        made = Nested(OfDict(support.student()), guide, [KDLoss()])
        support.fit(made)
        nets.append(made.student)
    support.assert_same_weights(*nets)


class Reversed(DistillationModule):
    def unpack_batch(self, batch):
        read = super().unpack_batch(batch)
        read.args = (read.args[0].flip(0),)
        return read


def test_rows_in_another_order_than_the_batch_are_refused():
    def asked(**options):
        teacher = FunctionTeacher(lambda batch: torch.zeros(len(batch[0]), 4), reads="batch", **options)
        support.fit(Reversed(support.student(), teacher, [KDLoss()]), max_epochs=1)

    with pytest.raises(ValueError, match="FunctionTeacher reads the batch row by row"):
        asked()
    asked(in_order=True)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: torch.zeros(len(x) + 1, 4), r"logits of 2 rows, as the student was called with, got .*\(3, 4\)"),
        (lambda x: torch.zeros(()), r"logits of 2 rows"),
        (lambda x: torch.zeros(len(x), 4, dtype=torch.long), r"a floating format, got torch\.int64"),
        (lambda x: torch.full((len(x), 4), float("nan")), r"8 of 8 logits are not finite"),
        (lambda x: "no", r"expected logits, got a str"),
        (lambda x: None, r"expected logits, got a NoneType"),
    ],
)
def test_what_are_no_logits_is_refused(returned, words):
    with pytest.raises(ValueError, match=words):
        FunctionTeacher(returned).answer(None, Call(args=(torch.zeros(2, 3),)))


@pytest.mark.parametrize(("first", "then"), [((2, 4), (2, 5)), ((2, 7, 4), (2, 9, 5)), ((2, 4, 3, 3), (2, 5, 3, 3))])
def test_another_number_of_classes_later_is_refused(first, then):
    sizes = [first, then, first]
    teacher = FunctionTeacher(lambda x: torch.zeros(sizes.pop(0)))
    call = Call(args=(torch.zeros(2, 3),))
    teacher.first_answer(None, call)
    with pytest.raises(ValueError, match=r"those of the first samples had . axes and 4 classes"):
        teacher.answer(None, call)
    teacher.first_answer(None, call)  # a later fit may begin with another number


def test_the_answer_has_no_graph_and_a_format_that_losses_read():
    weight = torch.ones(3, 2, requires_grad=True)
    call = Call(args=(torch.ones(2, 3),))
    assert not FunctionTeacher(lambda x: x @ weight).answer(None, call).output.requires_grad
    doubles = FunctionTeacher(lambda x: (x.double() @ weight.detach().double()).numpy()).answer(None, call)
    assert doubles.output.dtype == torch.float32
    assert doubles.output.tolist() == [[3.0, 3.0]] * 2


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_loss_of_layers_is_refused_at_set_up(door):
    def begun():
        guide = FunctionTeacher(answers(support.teacher()))
        made, callbacks = support.through(door, guide=guide, losses=[HintLoss("features", "features")])
        support.fit(made, callbacks=callbacks)

    with pytest.raises(ValueError, match=r"reads the layer\(s\) \['features'\].* FunctionTeacher gives logits only"):
        begun()


def test_it_reads_one_of_two_things():
    with pytest.raises(ValueError, match="expected reads 'inputs' or 'batch', got 'rows'"):
        FunctionTeacher(len, reads="rows")


# ONNX


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "teacher.onnx"
    _write(support.teacher(), path, (X[:2],), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    return path


def _write(network, path, example, **options):
    torch.onnx.export(network.eval(), example, path, dynamo=True, verbose=False, **options)


def test_an_onnx_file_answers_as_the_network_of_which_it_was_made(file):
    with torch.no_grad():
        expected = support.teacher().eval()(X)
    teacher = OnnxTeacher(file, threads=1)
    torch.testing.assert_close(teacher.answer(None, Call(args=(X,))).output, expected, rtol=1e-4, atol=1e-5)
    named = teacher.answer(None, Call(kwargs={"x": X.double(), "other": X}))
    torch.testing.assert_close(named.output, expected, rtol=1e-4, atol=1e-5)
    sent = pickle.loads(pickle.dumps(teacher))
    torch.testing.assert_close(sent.answer(None, Call(args=(X,))).output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_an_onnx_file_teaches_through_both_doors(file, door):
    made, callbacks = support.through(door, guide=OnnxTeacher(file, threads=1), losses=[KDLoss()])
    trainer = support.fit(made, callbacks=callbacks, max_epochs=1)
    x, y = support.data().tensors
    with torch.no_grad():
        accuracy = (support.teacher().eval()(x).argmax(1) == y).double().mean().item()
    assert trainer.callback_metrics["val/teacher_accuracy"].item() == pytest.approx(accuracy)


def test_an_onnx_file_that_does_not_fit_is_refused(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.onnx"):
        OnnxTeacher(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"has the outputs \['.*'\]; name the logits"):
        OnnxTeacher(file, output="scores")
    with pytest.raises(ValueError, match=r"takes the input 'x', which is no tensor of the call; it has \['image'\]"):
        OnnxTeacher(file).answer(None, Call(kwargs={"image": X}))
    with pytest.raises(ValueError, match=r"takes 1 input\(s\), but 2 are given"):
        OnnxTeacher(file).answer(None, Call(args=(X, X)))


def test_an_onnx_file_of_a_fixed_number_of_samples_is_refused(file, tmp_path):
    _write(nn.Flatten(), tmp_path / "fixed.onnx", (X[:2],))
    with pytest.raises(ValueError, match=r"exported for 2 sample\(s\) at a time, but is given 24"):
        OnnxTeacher(tmp_path / "fixed.onnx").answer(None, Call(args=(X,)))


def test_without_onnx_runtime_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning_kd\[onnx\]"'):
        OnnxTeacher(file)
