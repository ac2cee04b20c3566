"""Three lines with folders of images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_kd import distill
from lightning_kd.data import ImageFolder
from lightning_kd.named.wanted import tell
from lightning_kd.simple.images import form_of
from lightning_kd.teachers import Chain, Renormalize, Resize
from tests import support

Image = pytest.importorskip("PIL.Image")
QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 1, "batch_size": 4}

# their teachers are small networks that were never trained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:None of the teacher's")
HALVES = ([0.5] * 3, [0.5] * 3)
QUARTERS = ([0.25] * 3, [0.125] * 3)


class Net(nn.Module):
    """A network of any image size."""

    def __init__(self, classes=3, colours=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(colours, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, classes)
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, tuple(x.shape), x.detach().clone()))
        return self.head(self.body(x).mean((2, 3)))


def net(classes=3, seed=0, **told):
    made = support.seeded(lambda: Net(classes), seed)
    if told:
        tell(made, **{"statistics": None, "size": None, "classes": classes, "names": None} | told)
    return made


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("0", "2", "10"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_a_folder_becomes_a_trained_student_with_its_numbers(photos, caplog):
    student, teacher = net(), net(seed=1, statistics=HALVES, size=(16, 16))
    with caplog.at_level("INFO"):
        result = distill(student, teacher, photos / "train", str(photos / "val"), **QUIET)
    assert list(result.metrics) == ["accuracy", "teacher_accuracy", "agreement"]
    val = ImageFolder(photos / "val", size=16, mean=HALVES[0], std=HALVES[1])
    x, y = (torch.stack(list(map(torch.as_tensor, part))) for part in zip(*val, strict=True))
    with torch.no_grad():
        ours, its = result.student(x).argmax(1), teacher.eval()(x).argmax(1)
    hits = {"accuracy": ours == y, "teacher_accuracy": its == y, "agreement": ours == its}
    assert result.metrics == pytest.approx({name: one.float().mean().item() for name, one in hits.items()})
    told = "\n".join(result.choices)
    assert "12 images of 3 classes: 0 = '0', 1 = '2', 2 = '10'." in told
    assert "Images: 16 x 16, the middle part; normalised by mean 0.5, 0.5, 0.5" in told
    assert "as the teacher wants them. In training they are read in random crops" in told
    assert all(line in caplog.text for line in result.choices)


def test_both_networks_see_the_same_crop_each_in_its_own_form(photos):
    """The teacher is made for one size, as a transformer of timm is."""
    student = net(statistics=QUARTERS, size=(12, 12))
    teacher = net(seed=1, statistics=HALVES)
    teacher.patch_embed = SimpleNamespace(img_size=(16, 16))
    result = distill(student, teacher, photos / "train", **QUIET)
    view = result.module.teacher_view
    assert isinstance(view, Chain)
    assert [type(part) for part in view.parts] == [Renormalize, Resize]
    mine = [x for training, shape, x in student.seen if training]
    its = [x for _, shape, x in teacher.seen if len(x) == 4]
    assert len(mine) == len(its) == 3
    for own, other in zip(mine, its, strict=True):
        assert own.shape == (4, 3, 12, 12)
        colours = own * 0.125 + 0.25
        assert (colours.clamp(0, 1) - colours).abs().max() < 1e-6
        resized = nn.functional.interpolate((colours - 0.5) / 0.5, (16, 16), mode="bilinear", antialias=True)
        torch.testing.assert_close(other, resized, rtol=1e-4, atol=1e-5)
    told = "\n".join(result.choices)
    assert "The teacher sees them normalised by mean 0.5, 0.5, 0.5 and deviation 0.5, 0.5, 0.5 (Renormalize)." in told
    assert "The teacher sees them scaled from 12 x 12 to 16 x 16 (Resize)." in told


def test_the_form_is_the_student_s_then_the_teacher_s_then_that_of_imagenet():
    mine, its = net(statistics=QUARTERS, size=(12, 12)), net(statistics=HALVES, size=(16, 16))
    found = {whose: form_of(*pair) for whose, pair in {"m": (mine, its), "t": (net(), its), "n": (net(), None)}.items()}
    assert (found["m"].statistics, found["m"].size) == (QUARTERS, (12, 12))
    assert (found["t"].statistics, found["t"].size) == (HALVES, (16, 16))
    assert (found["n"].statistics[0], found["n"].size) == ([0.485, 0.456, 0.406], (224, 224))
    assert "neither network tells" in found["n"].told


def test_a_folder_without_classes_is_distilled_without_labels(photos):
    result = distill(net(5), net(5, seed=1), photos / "train" / "0", photos / "val" / "0", **QUIET)
    assert list(result.metrics) == ["agreement"]
    assert result.module.task_loss is None
    assert any("How the teacher's images were normalised is not known" in line for line in result.choices)


WRAPPED = {
    "as it is": lambda data: data,
    "subset": lambda data: Subset(data, range(12)),
    "loader": lambda data: DataLoader(Subset(data, range(12)), batch_size=4),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_images_in_a_form_of_ones_own_keep_it_and_held_out_ones_get_it(kind, photos):
    own = {"size": 8, "mean": [0.25] * 3, "std": [0.125] * 3}
    data = ImageFolder(photos / "train", **own)
    student, teacher = net(), net(seed=1, statistics=HALVES, size=(8, 8))
    result = distill(student, teacher, WRAPPED[kind](data), photos / "val", **QUIET)
    images = {value for training, _, x in student.seen if training for value in x[:, 0, 0, 0].tolist()}
    assert images == {image[0, 0, 0].item() for image, _ in data}
    held_out = {value for training, _, x in student.seen[-2:] for value in x[:, 0, 0, 0].tolist()}
    assert held_out == {image[0, 0, 0].item() for image, _ in ImageFolder(photos / "val", **own)}
    view = result.module.teacher_view.options()
    assert view == {"mean": [0.25] * 3, "std": [0.125] * 3, "to_mean": [0.5] * 3, "to_std": [0.5] * 3}


def test_a_view_of_ones_own_is_used_and_nothing_else_is_chosen(photos):
    teacher = net(seed=1, statistics=HALVES, size=(16, 16))
    view = Resize(10)
    result = distill(net(), teacher, photos / "train", teacher_inputs=view, **QUIET)
    assert result.module.teacher_view is view
    assert teacher.seen[-1][1][2:] == (10, 10)
    assert not any("The teacher sees" in line for line in result.choices)


def test_the_teacher_s_classes_are_found_by_their_names(photos):
    teacher = net(seed=1, names=["10", "two, 2", "0"], statistics=HALVES, size=(8, 8))
    result = distill(net(), teacher, photos / "train", photos / "val", **QUIET)
    assert result.module.output_options.teacher_classes == [2, 1, 0]
    assert "Classes of the teacher, found by name: '0' = 2, '2' = 1, '10' = 0." in result.choices
    same = net(seed=1, names=["0", "2", "10"])
    assert distill(net(), same, photos / "train", **QUIET).module.output_options.teacher_classes is None
    more = net(5, seed=1, names=["10", "x", "2", "0", "y"])  # a student of one's own may score all of these
    assert distill(net(5), more, photos / "train", **QUIET).module.output_options.teacher_classes is None
    other = net(seed=1, names=["a", "b", "c"])
    told = distill(net(), other, photos / "train", **QUIET).choices
    assert any("The teacher calls its classes ['a', 'b'] ..., the data ['0', '2'] ..." in line for line in told)


def test_the_same_call_twice_gives_the_same_student(photos):
    one, same, other = (distill(net(), net(seed=1), photos / "train", seed=seed, **QUIET).student for seed in (1, 1, 2))
    support.assert_same_weights(one, same)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_a_student_of_other_classes_than_the_folder_is_told(photos):
    with pytest.raises(ValueError, match="the student scores 2 classes, but the data has 3"):
        distill(net(2), net(2), photos / "train", **QUIET)
    told = distill(net(4), net(4), photos / "train", **QUIET).choices
    assert "The student scores 4 classes, and the data has 3; the others do not occur." in told


def test_what_a_network_cannot_take_is_told_with_the_remedy(photos):
    with pytest.raises(ValueError, match=r"does not take images of shape \(3, 20, 24\): .*ImageFolder\(folder, "):
        distill(Net(colours=1), net(), photos / "train", **QUIET)
    teacher = net(statistics=([0.5], [0.5]), size=(8, 8))
    data = ImageFolder(photos / "train", size=8)
    with pytest.raises(ValueError, match="the images have 3 colour channels, and the teacher wants 1"):
        distill(net(), teacher, data, **QUIET)


def test_folders_of_other_classes_are_refused(photos):
    (photos / "val" / "2").rename(photos / "val" / "3")
    with pytest.raises(ValueError, match="has the classes '3', which the training data lacks"):
        distill(net(), net(), photos / "train", photos / "val", **QUIET)
    with pytest.raises(ValueError, match=r"Give train='.*train' and val='.*val'"):
        distill(net(), net(), photos, **QUIET)


def test_images_of_one_size_keep_it_where_no_network_tells_another(photos):
    result = distill(net(), net(seed=1), photos / "train", **QUIET)
    assert "Images: 20 x 24, the middle part" in "\n".join(result.choices)
    Image.new("RGB", (30, 30)).save(photos / "train" / "0" / "larger.png")
    assert ImageFolder(photos / "train").files.size is None


def test_large_images_of_one_size_are_read_in_that_of_imagenet(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (300, 230)).save(tmp_path / name / "0.png")
    images = ImageFolder(tmp_path)
    assert images.files.size == (230, 300)
    assert form_of(net(), net(), images).size == (224, 224)
