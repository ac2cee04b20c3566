"""Images of another size than those of set-up: windows and patches are those of the images of each step."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import functional
from lightning_kd.losses import ATLoss, SPLoss
from tests import support

PATCH = 2
SIZES = ((8, 8), (4, 16), (16, 4), (8, 16), (8, 8))


class Windows(nn.Module):
    """A linear layer on windows of 4 x 4 pixels, which stand one after another along the batch axis, as in Swin."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 1)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, support.CLASSES)

    def forward(self, x):
        maps = self.stem(x).movedim(1, -1)
        b, h, w, c = maps.shape
        windows = maps.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        return self.head(self.inner(windows).reshape(b, -1, c).mean(1))


class Patches(nn.Module):
    """Tokens of patches behind a class token, of images of any size, as a ViT with positions for each size."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Conv2d(1, width, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, support.CLASSES)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


class Maps(nn.Module):
    """A convolutional network of any size, whose maps have the resolution of the patches."""

    def __init__(self, width):
        super().__init__()
        self.block = nn.Conv2d(1, width, 3, PATCH, 1)
        self.head = nn.Linear(width, support.CLASSES)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))


def batches(sizes, rows=3):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(rows, 1, *size, generator=generator), torch.arange(rows) % support.CLASSES) for size in sizes]


def losses_of(student, teacher, loss, data):
    """The loss of every batch, with a student that stays as it is."""
    found = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found.append(outputs["loss"].item())

    module = support.module(
        student, teacher=teacher, losses=[loss], task_loss=None, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
    )
    support.fit(module, train=DataLoader(data, batch_size=None), callbacks=[Watch()], max_epochs=1, limit_val_batches=0)
    return found


def value_of(network, layer, images):
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        network(images)
    handle.remove()
    return kept[0]


def nets(kind, other=None):
    return support.seeded(lambda: kind(4), 1), support.seeded(lambda: (other or kind)(6), 2)


def test_windows_are_as_many_as_the_images_of_the_step_have():
    student, teacher = nets(Windows)
    data = batches(SIZES)
    found = losses_of(student, teacher, SPLoss("inner", "inner"), data)
    for (images, _), value in zip(data, found, strict=True):
        ours, theirs = (value_of(one, "inner", images).reshape(len(images), -1) for one in (student, teacher))
        assert value == pytest.approx(functional.similarity_preserving_loss(ours, theirs).item(), rel=1e-5)


@pytest.mark.parametrize("turned", [False, True], ids=["student of patches", "teacher of patches"])
def test_patches_stand_in_the_grid_of_the_images_of_the_step(turned):
    patches, maps = nets(Patches, Maps)
    data = batches(SIZES)
    student, teacher = (maps, patches) if turned else (patches, maps)
    found = losses_of(student, teacher, ATLoss("block", "block"), data)
    for (images, _), value in zip(data, found, strict=True):
        grid = [size // PATCH for size in images.shape[2:]]
        of_patches = value_of(patches, "block", images)[:, 1:].transpose(1, 2).unflatten(2, grid)
        of_maps = value_of(maps, "block", images)
        ours, theirs = (of_maps, of_patches) if turned else (of_patches, of_maps)
        assert value == pytest.approx(functional.attention_transfer_loss(ours, theirs).item(), rel=1e-5)


def test_tokens_that_are_no_patches_of_the_images_are_refused():
    class Pruned(Patches):
        """Drops tokens of large images."""

        def forward(self, x):
            tokens = self.embed(x).flatten(2).transpose(1, 2)[:, :17]
            return self.head(self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])

    student, teacher = nets(Pruned, Maps)
    with pytest.raises(ValueError, match=r"student's layer 'block': its 17 tokens .* images of 8 x 16 have no square"):
        losses_of(student, teacher, ATLoss("block", "block"), batches([(8, 8), (8, 16)]))


def test_rows_that_are_no_windows_of_the_samples_are_refused():
    class Ragged(Windows):
        """Leaves a window out of large batches."""

        def forward(self, x):
            maps = self.stem(x).movedim(1, -1)
            b, h, w, c = maps.shape
            windows = maps.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
            inner = self.inner(windows[: len(windows) - (b > 4)])
            return self.head(inner.mean((0, 1)).expand(b, c))

    student, teacher = nets(Ragged)
    data = batches([(8, 8)]) + batches([(8, 8)], rows=5)
    with pytest.raises(ValueError, match="layer 'inner': its 19 rows are not as many windows for each of 5 samples"):
        losses_of(student, teacher, SPLoss("inner", "inner"), data)
