"""The example of segmentation: its data, its fits, and what it says where something lacks."""

import sys

import pytest
import torch

from tests.support import processes


def test_the_same_seed_draws_the_same_images_and_every_class_is_there():
    from examples.segmentation.shapes import CLASSES, SIZE, shapes

    (images, labels), (again, same) = (shapes(300, seed=3).tensors for _ in range(2))
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert images.shape == (300, 3, SIZE, SIZE)
    assert set(labels.unique().tolist()) == set(range(len(CLASSES)))
    share = labels.flatten().bincount() / labels.numel()
    assert 0.5 < share[0] < 0.8
    assert share[1:].min() > 0.03
    assert not torch.equal(images[:10], shapes(10, seed=4).tensors[0])


def test_a_shape_has_the_outline_of_its_class():
    from examples.segmentation.shapes import CLASSES, _outlines

    points = torch.tensor([[0.0, 0.0], [0.95, 0.0], [0.75, 0.75], [0.0, 0.7]])  # (x, y)
    inside = _outlines(points[:, 0].reshape(1, 1, -1), points[:, 1].reshape(1, 1, -1))[0, :, 0]
    expected = {
        "disc": [True, False, False, True],
        "square": [True, False, True, True],
        "triangle": [True, False, False, True],
        "cross": [True, True, False, True],
        "ring": [False, True, False, True],
    }
    assert dict(zip(CLASSES[1:], inside.tolist(), strict=True)) == expected


def test_the_extra_is_named_where_torchvision_lacks(monkeypatch):
    monkeypatch.delitem(sys.modules, "examples.segmentation.networks", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"lightning_kd\[segmentation\]"):
        import examples.segmentation.networks  # noqa: F401


@pytest.fixture(scope="module")
def compare():
    pytest.importorskip("torchvision")
    from examples.segmentation import compare

    return compare


def test_a_missing_teacher_is_told_with_the_command(compare, tmp_path):
    with pytest.raises(SystemExit, match=r"Train the teacher first: python -m examples\.segmentation\.teacher"):
        compare.main(weights=str(tmp_path / "none.safetensors"))


def test_the_networks_are_those_of_the_text_and_a_seed_gives_a_student(compare):
    from examples.segmentation.networks import make_student, make_teacher

    sizes = [sum(p.numel() for p in net.parameters()) for net in (make_teacher(), make_student(1))]
    assert sizes == [240_030, 60_402]
    one, same, other = (make_student(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["backbone.0.0.weight"], other["backbone.0.0.weight"])


@pytest.mark.parametrize("method", ["KD", "CWD on class scores", "CWD on features"])
def test_a_fit_is_the_same_each_time_and_the_teacher_makes_a_difference(compare, method, tmp_path):
    from safetensors.torch import save_model

    from examples.segmentation.networks import make_teacher

    torch.manual_seed(0)
    save_model(make_teacher(), tmp_path / "teacher.safetensors")
    weights = str(tmp_path / "teacher.safetensors")
    students = [
        compare.taught(name, seed=1, images=16, steps=2, weights=weights).state_dict()
        for name in (method, method, compare.ALONE)
    ]
    weight = "classifier.4.weight" if method != "CWD on features" else "backbone.4.0.weight"
    assert torch.equal(students[0][weight], students[1][weight])
    assert not torch.equal(students[0][weight], students[2][weight])


@pytest.mark.slow
def test_the_commands_train_a_teacher_and_print_the_table(compare, tmp_path):
    weights = str(tmp_path / "runs" / "teacher.safetensors")
    quick = ["--images=32", "--steps=3", "--held_out=20"]
    teacher = [sys.executable, "-m", "examples.segmentation.teacher", f"--output={weights}", *quick]
    students = [sys.executable, "-m", "examples.segmentation.compare", f"--weights={weights}", "--seeds=2", *quick]
    (said,) = processes.run([teacher], limit=150)
    assert f"% mean IoU, written to {weights}" in said.stdout
    (table,) = processes.run([students], limit=300)
    rows = [line.split(" | ")[0] for line in table.stdout.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| teacher", *(f"| {name}" for name in compare.METHODS)]
