"""`teacher_weights=` fills any teacher, through both doors: or the fit is refused, with the nearest keys."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import from_checkpoint
from tests import support


def seeded(seed, width=5):
    torch.manual_seed(seed)
    return support.ConvNet(width)


TRUE = seeded(11).state_dict()


def write(form, folder):
    if form == "safetensors":
        save_file(TRUE, folder / "t.safetensors")
        return str(folder / "t.safetensors")
    if form == "two files":
        keys = list(TRUE)
        save_file({key: TRUE[key] for key in keys[:3]}, folder / "a.safetensors")
        torch.save({key: TRUE[key] for key in keys[3:]}, folder / "b.pt")
        return [str(folder / "a.safetensors"), str(folder / "b.pt")]
    path = folder / f"t.{form.partition(' ')[0]}"
    prefix = form.partition(" ")[2]
    state = {prefix + key: value for key, value in TRUE.items()}
    torch.save({"state_dict": {**state, "losses.hint.weight": torch.ones(1)}} if "ckpt" in form else state, path)
    return str(path)


FORMS = ["safetensors", "pt", "pth", "two files", "ckpt student.", "ckpt model.", "pt module.", "ckpt net.body."]


def fit(door, teacher, files, **options):
    if door == "module":
        made = DistillationModule(seeded(1, 3), teacher=teacher, losses=[KDLoss()], teacher_weights=files, **options)
        support.fit(made, max_epochs=1)
        return made, []
    callback = DistillationCallback(teacher, [KDLoss()], teacher_weights=files, **options)
    made = support.UserModule(seeded(1, 3))
    support.fit(made, callbacks=[callback], max_epochs=1)
    return made, [callback]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", ["module", "callback"])
def test_an_ordinary_teacher_gets_the_weights_of_the_files(door, form, tmp_path):
    teacher = seeded(2)
    fit(door, teacher, write(form, tmp_path))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, TRUE[key]), key


@pytest.mark.parametrize("form", ["ckpt student.", "pt module."])
def test_a_teacher_on_the_meta_device_gets_them_too(form, tmp_path):
    with torch.device("meta"):
        teacher = support.ConvNet(5)
    fit("module", teacher, write(form, tmp_path))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, TRUE[key]), key


def test_a_format_of_its_own_is_kept(tmp_path):
    teacher = seeded(2)
    fit("callback", teacher, write("pt", tmp_path), teacher_dtype="bfloat16")
    assert torch.equal(teacher.head.weight, TRUE["head.weight"].bfloat16())


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_missing_file_is_refused(door):
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere.pt'"):
        fit(door, seeded(2), "nowhere.pt")


@pytest.mark.parametrize("door", ["module", "callback"])
def test_other_keys_are_refused_with_the_nearest(door, tmp_path):
    state = {key.replace("head.", "heads."): value for key, value in TRUE.items()}
    torch.save(state, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"no weights for \['head.weight', 'head.bias'\].*nearest.*heads.weight"):
        fit(door, seeded(2), str(tmp_path / "t.pt"))
    torch.save({**TRUE, "extra": torch.ones(1)}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"ConvNet has no weights \['extra'\]"):
        fit(door, seeded(2), str(tmp_path / "t.pt"))


def test_another_shape_is_refused(tmp_path):
    torch.save(seeded(3, 4).state_dict(), tmp_path / "t.pt")
    teacher = seeded(2)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    with pytest.raises(ValueError, match=r"'features.0.weight' of shape \(4, .*but ConvNet has the shape \(5,"):
        fit("module", teacher, str(tmp_path / "t.pt"))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_two_networks_in_one_file_are_not_guessed_between(tmp_path):
    both = {f"{role}.{key}": value for role in ("student", "ema") for key, value in TRUE.items()}
    torch.save({"state_dict": both}, tmp_path / "t.ckpt")
    with pytest.raises(ValueError, match=r"'ema\.' and 'student\.' both begin"):
        fit("module", seeded(2), str(tmp_path / "t.ckpt"))


def test_a_part_of_another_network_is_no_teacher(tmp_path):
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    head = {"head.1.weight": torch.ones(4, 16), "head.1.bias": torch.ones(4), "stem.weight": torch.ones(1)}
    torch.save(head, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"no weights for .* of Sequential; nearest .*head.1.weight"):
        fit("module", teacher, str(tmp_path / "t.pt"))


def test_they_are_read_once_and_in_a_loop_of_ones_own_too(tmp_path):
    path = write("pt", tmp_path)
    teacher = seeded(2)
    made, _ = fit("module", teacher, path)
    (tmp_path / "t.pt").unlink()
    support.fit(made, max_epochs=1)
    path = write("pt", tmp_path)
    other = seeded(2)
    module = DistillationModule(seeded(1, 3), teacher=other, losses=[KDLoss()], teacher_weights=path)
    module.prepare((torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])))
    assert torch.equal(other.head.weight, TRUE["head.weight"])


@pytest.mark.parametrize("door", ["module", "callback"])
def test_two_files_of_one_network_each_are_refused(door, tmp_path):
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt")]
    for seed, path in enumerate(paths):
        torch.save(seeded(seed).state_dict(), path)
    with pytest.raises(ValueError, match=r"a.pt' and '.*b.pt' both hold 'features.0.weight'"):
        fit(door, seeded(5), paths)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_files_without_a_teacher_that_would_read_them_are_refused(door, tmp_path):
    with pytest.raises(ValueError, match=r"teacher_weights are of a network, but there is no teacher="):
        fit(door, None, str(tmp_path / "not there.pt"))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(4, 4), nn.Linear(4, 4, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_a_file_that_holds_a_tied_weight_once_fills_both(tmp_path):
    save_model(Tied(1), str(tmp_path / "tied.safetensors"))
    filled = from_checkpoint(Tied(2), tmp_path / "tied.safetensors")
    assert torch.equal(filled.head.weight, Tied(1).head.weight)
    assert filled.head.weight is filled.embedding.weight


@pytest.mark.parametrize("way", ["teacher_weights", "meta", "from_checkpoint"])
def test_whole_numbers_in_the_place_of_weights_are_refused(way, tmp_path):
    state = {name: (100 * value).to(torch.int8) for name, value in support.teacher().state_dict().items()}
    torch.save(state, tmp_path / "int8.pt")
    with torch.device("meta" if way == "meta" else "cpu"):
        guide = support.teacher()
    made = DistillationModule(support.student(), guide, [KDLoss()], teacher_weights=tmp_path / "int8.pt")
    load = (
        partial(from_checkpoint, guide, tmp_path / "int8.pt")
        if way == "from_checkpoint"
        else partial(support.fit, made)
    )
    with pytest.raises(ValueError, match=r"int8\.pt' holds '.*' as int8, but the model has float32.* quantised"):
        load()
