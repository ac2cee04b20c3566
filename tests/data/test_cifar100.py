"""CIFAR-100 on fake data of the same shape: what is served, and the laws of the augmentation."""

import sys
from collections import Counter

import pytest
import torch
from torch import nn

from lightning_kd.data import CIFAR100DataModule
from lightning_kd.data.cifar100 import crop_and_mirror
from tests import support
from tests.data.fake_torchvision import CIFAR100, HELD_OUT, TRAIN, fake_torchvision  # noqa: F401

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

pytestmark = pytest.mark.usefixtures("fake_torchvision")


def ready(**options):
    data = CIFAR100DataModule(**options)
    data.setup()
    return data


def seen_in_a_fit(data):
    """Return the images of the training batches and of the validation batches of one epoch."""
    seen = {"train": [], "val": []}

    class Look(support.UserModule):
        def training_step(self, batch, batch_idx):
            seen["train"].append(batch)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen["val"].append(batch)

    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))
    support.trainer(max_epochs=1).fit(Look(net), datamodule=data)
    return seen


def by_hand(train):
    """Normalise the stand-in's bytes colour by colour."""
    images = CIFAR100("", train).data.astype("float64") / 255
    colours = [(images[..., colour] - MEAN[colour]) / STD[colour] for colour in range(3)]
    return torch.stack([torch.as_tensor(colour) for colour in colours], dim=1).float()


def test_held_out_images_are_normalised_in_their_order_and_never_augmented():
    batches = seen_in_a_fit(ready(batch_size=4))["val"]
    assert [len(images) for images, _ in batches] == [4, 2]
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), by_hand(train=False))
    assert torch.cat([target for _, target in batches]).tolist() == CIFAR100("", train=False).targets


def test_without_augmentation_every_training_image_is_served_once_at_random_with_its_class():
    batches = seen_in_a_fit(ready(batch_size=5, augment=False, with_index=True))["train"]
    assert [len(images) for images, _, _ in batches] == [5, 5, 5, 1]  # the last batch is not dropped
    images, target, index = (torch.cat(column) for column in zip(*batches, strict=True))
    assert sorted(index.tolist()) == list(range(TRAIN))
    assert index.tolist() != list(range(TRAIN))
    torch.testing.assert_close(images, by_hand(train=True)[index])
    assert target.tolist() == [CIFAR100("", train=True).targets[row] for row in index]


def test_training_images_are_crops_padded_with_black():
    batches = seen_in_a_fit(ready(batch_size=TRAIN, with_index=True))["train"]
    images, _, index = batches[0]
    assert images.shape == (TRAIN, 3, 32, 32)
    assert images.dtype == torch.float32
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    padded = black.view(3, 1, 1).repeat(TRAIN, 1, 40, 40)
    padded[:, :, 4:36, 4:36] = by_hand(train=True)
    for image, row in zip(images, index, strict=True):
        views = [padded[row, :, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
        near = [min((image - view).abs().max(), (image.flip(2) - view).abs().max()) for view in views]
        assert min(near) < 1e-5


def test_every_crop_is_equally_likely_and_each_image_drawn_by_itself():
    image = torch.arange(1, 10).view(1, 1, 3, 3)
    draws = 18_000
    torch.manual_seed(0)
    served = crop_and_mirror(image.expand(draws, -1, -1, -1), padding=1)
    assert served.dtype == image.dtype
    padded = nn.functional.pad(image, (1, 1, 1, 1))
    crops = [padded[..., top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    expected = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(3))}
    counts = Counter(tuple(one.flatten().tolist()) for one in served)
    assert len(expected) == 18
    assert counts.keys() == expected
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())


def test_the_default_is_four_pixels_on_every_side():
    image = torch.arange(1, 1025).view(1, 1, 32, 32)
    torch.manual_seed(0)
    served = crop_and_mirror(image.expand(4000, -1, -1, -1))
    assert len({tuple(one.flatten().tolist()) for one in served}) == 9 * 9 * 2


def test_the_same_seed_gives_the_same_images():
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(crop_and_mirror(images))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_images_stay_bytes_until_their_batch_is_on_its_device():
    images, target = next(iter(ready(batch_size=4).train_dataloader()))
    assert (images.shape, images.dtype, target.dtype) == ((4, 3, 32, 32), torch.uint8, torch.int64)


def test_the_data_is_fetched_only_where_that_is_asked_for(fake_torchvision):  # noqa: F811
    CIFAR100DataModule(root="there").prepare_data()
    assert not fake_torchvision
    data = CIFAR100DataModule(root="there", download=True)
    data.prepare_data()
    data.setup()
    assert {call["root"] for call in fake_torchvision} == {"there"}
    assert [(call["train"], call["download"]) for call in fake_torchvision] == [
        (True, True),
        (True, False),
        (False, False),
    ]


def test_a_second_setup_reads_nothing(fake_torchvision):  # noqa: F811
    ready().setup("validate")
    assert len(fake_torchvision) == 2
    assert len(ready().held_out_set) == HELD_OUT


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch_size": 0}, "batch_size >= 1, got 0"), ({"num_workers": -1}, "num_workers >= 0, got -1")],
)
def test_a_number_out_of_range_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        CIFAR100DataModule(**options)


def test_without_torchvision_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "lightning_kd\[cifar\]"'):
        ready()
