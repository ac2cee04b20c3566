"""The example of students that are trained to be quantised: what it converts is int8, and what it was in training."""

import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss

pytestmark = pytest.mark.filterwarnings("ignore")  # torchao reads what torch deprecates


@pytest.fixture(scope="module")
def quantized():
    with warnings.catch_warnings():  # fixtures of a module are made before a test has filters
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao")
        pytest.importorskip("onnxruntime")
        from examples.digits import quantized

    return quantized


@pytest.fixture
def digits(quantized):
    made = quantized.DigitsDataModule(labelled_per_class=5)
    made.setup()
    return made


def test_the_extra_is_named_where_torchao_lacks(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("torchao", "examples.digits.quantized"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"lightning_kd\[quantization,onnx\]"):
        import examples.digits.quantized  # noqa: F401


@pytest.mark.slow
def test_the_teacher_teaches_what_the_rounded_student_answers(quantized, digits):
    torch.manual_seed(0)
    net, teacher = quantized.DigitsConvNet(width=6), quantized.DigitsConvNet(width=8)
    x, y = (part[:16] for part in digits.train_set.tensors[:2])
    student, same = (quantized.prepared(copy.deepcopy(net)) for _ in range(2))
    module = DistillationModule(student, teacher, [KDLoss(temperature=4.0, weight=0.9)])
    module.prepare((x, y))
    loss = module.training_step((x, y), 0)
    with torch.no_grad():
        shown, answer = teacher.eval()(x), same(x)
    expected = 0.9 * 16 * F.kl_div(F.log_softmax(answer / 4, 1), F.softmax(shown / 4, 1), reduction="batchmean")
    # both are small differences of terms around 0.9 * 16 * log(10) = 33, of which float32 keeps 33 * 1.2e-7
    torch.testing.assert_close(loss, expected, rtol=0, atol=4e-6)
    assert not torch.equal(answer, net(x))


@pytest.mark.slow
def test_the_file_holds_int8_and_answers_as_the_student_did(quantized, digits, tmp_path):
    import onnx

    torch.manual_seed(0)
    student = quantized.prepared(quantized.DigitsConvNet(width=6))
    quantized.fit(student, None, digits, seed=1, epochs=2)
    images = digits.held_out_set.tensors[0]
    head = student.get_parameter("head.weight").detach().clone()
    student.eval()
    student.apply(quantized.disable_observer)
    with torch.no_grad():
        rounded = student(images)
    step = student.get_submodule(inputs_of_head(student)).scale.item()
    accuracy, size = quantized.written(quantized.converted(student), tmp_path / "student.onnx", digits)

    weights = [part for part in onnx.load(tmp_path / "student.onnx").graph.initializer if len(part.dims) > 1]
    assert sorted(tuple(part.dims) for part in weights) == [(6, 1, 3, 3), (10, 24), (12, 6, 3, 3), (24, 12, 3, 3)]
    assert {part.data_type for part in weights} == {onnx.TensorProto.INT8}
    assert size < 4 * 3628

    session = quantized.onnxruntime.InferenceSession(str(tmp_path / "student.onnx"))
    (answers,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    answers = torch.from_numpy(answers)
    # conversion folds BatchNorm into the weights, so a value at the border of two steps may be rounded the other way:
    # at most one step in each of the values that the head reads
    assert ((answers - rounded).abs().max(0).values <= step * head.abs().sum(1)).all()
    assert accuracy == pytest.approx(100 * (answers.argmax(1) == digits.held_out_set.tensors[1]).float().mean().item())
    # two epochs leave many images between two classes, so the classes tell less than the values: they move by 1 to 2 %
    assert (answers - rounded).abs().mean() < 0.03 * rounded.std()


def inputs_of_head(student):
    """The part that rounds what the last layer reads."""
    *_, last = (node for node in student.graph.nodes if node.target is torch.ops.aten.linear.default)
    return last.args[0].target


@pytest.mark.slow
def test_the_table_is_printed(quantized, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    found = quantized.main(seeds=1, epochs=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| student", "| float", "| int8, after training", "| int8, QAT"]
    assert all(0.0 <= value <= 100.0 for arm in found.values() for (value,) in arm.values())
