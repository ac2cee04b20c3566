"""Images of a folder: which are found, which classes they have, and what tensors they become."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_kd.data import ImageFolder, image_files
from lightning_kd.data.indexed import targets_of

Image = pytest.importorskip("PIL.Image")
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def draw(path, pixels=((0, 0), (0, 0)), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert(mode).save(path)


def folder_of(root, classes, count=2):
    for number, name in enumerate(classes):
        for i in range(count):
            draw(root / name / f"{i}.png", np.full((4, 4), 10 * number + i))
    return root


def test_a_folder_for_each_class_gives_images_with_their_class(tmp_path):
    draw(tmp_path / "cat" / "more" / "c.png", np.full((4, 4), 255))
    data = ImageFolder(folder_of(tmp_path, ["dog", "cat"]), size=4, **PLAIN)
    assert data.classes == ["cat", "dog"]
    assert data.targets == [0, 0, 0, 1, 1]
    assert targets_of(data).tolist() == data.targets
    values = [(round(image.mean().item() * 255), image.shape, label) for image, label in data]
    shape = (3, 4, 4)
    assert values == [(10, shape, 0), (11, shape, 0), (255, shape, 0), (0, shape, 1), (1, shape, 1)]


@pytest.mark.parametrize(
    ("names", "order"),
    [(["10", "2", "0", "1"], ["0", "1", "2", "10"]), (["10", "2", "b"], ["10", "2", "b"]), (["02", "1"], ["1", "02"])],
)
def test_names_that_are_all_numbers_are_ordered_by_number_and_the_mapping_is_told(names, order, tmp_path):
    data = ImageFolder(folder_of(tmp_path, names, count=1))
    assert data.classes == order
    assert data.files.told == [
        f"{tmp_path}: {len(names)} images of {len(names)} classes: "
        + ", ".join(f"{i} = {name!r}" for i, name in enumerate(order))
        + "."
    ]


def test_images_in_one_folder_have_no_classes(tmp_path):
    for i in (2, 0, 1):
        draw(tmp_path / f"{i}.png", np.full((4, 4), i))
    (tmp_path / "empty").mkdir()
    data = ImageFolder(tmp_path, size=4, **PLAIN)
    assert (data.classes, data.targets) == (None, None)
    assert [round(image.mean().item() * 255) for image in data] == [0, 1, 2]


def test_hidden_files_and_other_files_are_left_out_and_told(tmp_path):
    root = folder_of(tmp_path, ["a", "b"])
    for path in (".DS_Store", "a/._0.png", ".git/x.png", "__MACOSX/a/0.png", "notes.txt", "b/Thumbs.db"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    data = ImageFolder(root)
    assert (len(data), data.classes) == (4, ["a", "b"])
    told = f"{root}: files are left out, 4 hidden and 2 that do not end as images do, such as 'notes.txt'."
    assert data.files.told[0] == told


def test_other_data_takes_its_numbers_from_the_training_data(tmp_path):
    train = ImageFolder(folder_of(tmp_path / "train", ["0", "1", "10"]))
    val = ImageFolder(folder_of(tmp_path / "val", ["10", "0"]), classes=train.classes)
    assert val.targets == [0, 0, 2, 2]
    assert val.classes == ["0", "1", "10"]
    assert val.files.told[0].endswith("has no images of the classes '1'.")
    folder_of(tmp_path / "val", ["100"])
    with pytest.raises(ValueError, match=r"has the classes '100', which the training data lacks.* is '100' to be '10'"):
        ImageFolder(tmp_path / "val", classes=train.classes)


def no_image(root):
    (root / "a").mkdir()
    (root / "a" / "x.npy").write_bytes(b"1")


def mixed(root):
    folder_of(root, ["a", "b"])
    draw(root / "loose.png")


def an_empty_class(root):
    folder_of(root, ["a", "b"])
    (root / "c").mkdir()


def broken(root):
    folder_of(root, ["a", "b"], count=5)
    for i in range(4):
        (root / "b" / f"{i}.png").write_bytes(b"no image")


REFUSED = {
    "no images": (no_image, ValueError, r"holds no images. Images end in .jpg"),
    "mixed": (mixed, ValueError, r"has 1 images beside the folders 'a', 'b'.* Move 'loose.png'"),
    "one class": (lambda root: folder_of(root, ["only"]), ValueError, r"one class only, 'only'.* give .*only'"),
    "empty class": (an_empty_class, ValueError, r"has the folders 'c' without an image.* Put images in, or take"),
    "parts": (
        lambda root: [folder_of(root / part, ["a", "b"]) for part in ("val", "train")],
        ValueError,
        r"holds 'train', 'val', which are parts .* Give train='.*train' and val='.*val'",
    ),
    "broken": (broken, ValueError, r"4 of 10 images in .* cannot be read: b/0.png, b/1.png, b/2.png and 1 more\. Put"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_cannot_be_served_is_refused_with_the_remedy(kind, tmp_path):
    make, error, words = REFUSED[kind]
    make(tmp_path)
    with pytest.raises(error, match=words) as caught:
        ImageFolder(tmp_path)
    assert len(str(caught.value)) < 600


def test_a_folder_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    folder_of(tmp_path / "photos", ["a", "b"])
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*Did you mean '.*photos'\?"):
        ImageFolder(tmp_path / "fotos")
    with pytest.raises(NotADirectoryError, match=r"is a file\. Give the folder"):
        ImageFolder(tmp_path / "photos" / "a" / "0.png")


def test_an_image_that_breaks_off_is_named_when_it_is_read(tmp_path):
    folder_of(tmp_path, ["a", "b"])
    path = tmp_path / "a" / "1.png"
    draw(path, np.random.default_rng(0).integers(0, 255, (40, 40)))
    path.write_bytes(path.read_bytes()[:900])
    data = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match=rf"The image '{re.escape(str(path))}' cannot be read: .* take it away"):
        data[1]


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    draw_nothing = tmp_path / "a.png"
    draw_nothing.write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'lightning_kd\[images\]'"):
        ImageFolder(tmp_path)


def test_the_middle_part_is_scaled_and_normalised(tmp_path):
    """Columns of an image 4 high and 8 wide are 0, 20, ..., 140; the middle 4 are 40 to 100."""
    draw(tmp_path / "wide.png", np.tile(np.arange(8) * 20, (4, 1)), mode="RGB")
    data = ImageFolder(tmp_path, size=4, mean=[0.5, 0.0, 0.25], std=[0.5, 1.0, 0.25])
    columns = torch.tensor([40.0, 60.0, 80.0, 100.0]) / 255
    expected = torch.stack([(columns - 0.5) / 0.5, columns, (columns - 0.25) / 0.25])[:, None].expand(3, 4, 4)
    torch.testing.assert_close(data[0], expected)
    half = data.seen_as(size=(4, 8), mean=[0.0], std=[1.0], augment="none")
    torch.testing.assert_close(half[0] * 255, torch.arange(8.0).mul(20).expand(1, 4, 8))
    assert data.size == (4, 4)


def test_sixteen_bits_and_turned_images_are_read_as_they_are_meant(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "0.png")
    turned = Image.fromarray(np.asarray([[0] * 8, [255] * 8], dtype=np.uint8).repeat(4, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees: the upper edge of the file is the right edge of the scene
    turned.save(tmp_path / "1.png", exif=exif)
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "2.tif")
    data = ImageFolder(tmp_path, size=8, mean=[0.0], std=[1.0])
    assert data[0].mul(255).round().unique().tolist() == [100.0]
    assert data[1][0, :, 0].tolist() == [1.0] * 8
    assert data[1][0, :, 7].tolist() == [0.0] * 8
    with pytest.raises(ValueError, match="numbers of 32 bits"):
        data[2]


def test_crops_are_drawn_anew_and_within_their_bounds(tmp_path):
    """A pixel holds its column, so that a row of the crop tells where it begins and how wide it is."""
    ramp = np.tile(np.arange(200), (200, 1))
    draw(tmp_path / "ramp.png", ramp)
    data = ImageFolder(tmp_path, size=20, mean=[0.0], std=[1 / 255], augment="crop")
    torch.manual_seed(0)
    rows = torch.stack([data[0][0, 10] for _ in range(200)])
    widths = (rows[:, 18] - rows[:, 1]) / 17 * 20
    low, high = 200 * (0.5 * 0.75) ** 0.5, 200.0
    assert low - 3 < widths.min() < low + 12
    assert high - 12 < widths.max() < high + 3
    assert (rows.diff(dim=1) > 0).all()
    places = rows[:, 0] / (200 - widths).clamp_min(1)
    assert places.quantile(0.1) < 0.2
    assert places.quantile(0.9) > 0.8
    mirrored = data.seen_as(size=20, mean=[0.0], std=[1 / 255], augment="crop_and_mirror")
    falling = sum((mirrored[0][0, 10].diff() < 0).all().item() for _ in range(200))
    assert 70 < falling < 130


def test_a_batch_is_that_of_single_reads_and_the_seed_decides(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        draw(tmp_path / f"{i}.png", rng.integers(0, 255, (30, 40)))
    data = ImageFolder(tmp_path, size=16, augment="crop")
    torch.manual_seed(3)
    singly = torch.stack([data[i] for i in range(6)])
    for _ in range(2):
        torch.manual_seed(3)
        assert torch.equal(torch.stack(data.__getitems__(range(6))), singly)
    torch.manual_seed(3)
    (batch,) = DataLoader(data, batch_size=6, num_workers=0)
    assert batch.shape == singly.shape
    assert not torch.equal(torch.stack(data.__getitems__(range(6))), singly)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "expected size >= 1, got 0"),
        ({"mean": [0.5]}, "as many means as deviations"),
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, "of one or three colours"),
        ({"std": [0.0] * 3}, "deviations > 0"),
        ({"augment": "mirror"}, "expected augment to be one of .*'crop_and_mirror'.*, got 'mirror'"),
    ],
)
def test_options_out_of_their_range_are_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        ImageFolder(folder_of(tmp_path, ["a", "b"]), **options)


def test_a_look_at_many_images_is_announced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_files, "_MANY", 4)
    with caplog.at_level("INFO"):
        ImageFolder(folder_of(tmp_path, ["a", "b"]))
    assert caplog.messages[0] == f"Looking for images in {tmp_path} ..."
    assert "looking at 4 images ..." in caplog.text
