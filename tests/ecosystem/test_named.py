"""Networks of timm, torchvision and transformers by name, out of the libraries' own caches and folders."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers as hf
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from torch import nn
from torchvision import transforms

from lightning_kd import DistillationModule, distill
from lightning_kd.data import ImageFolder
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.named import fresh, pretrained
from lightning_kd.named.wanted import classes_of, wanted_by
from lightning_kd.teachers import Renormalize, Resize
from lightning_kd.teachers.normalisation import PROCESSOR
from tests import support
from tests.ecosystem import zoo

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 1, "batch_size": 6}
SHUFFLED = QUIET | {"batch_size": 2}

# their teachers are small networks that were never trained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:None of the teacher's")
NAMES = ["0", "2", "10"]
HALVES = ([0.5] * 3, [0.5] * 3)
SMALL = "timm:test_resnet"
VIT = {**zoo.WIDE, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Weights as the libraries keep them: a folder of timm, torch's hub folder, and folders of transformers."""
    root = tmp_path_factory.mktemp("store")
    torch.manual_seed(0)
    config = {"num_classes": 3, "input_size": (3, 32, 32), "mean": HALVES[0], "std": HALVES[1]}
    net = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=config)
    timm.models.save_for_hf(net, root / "timm", model_config={"num_classes": 3, "pretrained_cfg": config})
    hub = root / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    file = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url.rpartition("/")[2]
    torch.save(torchvision.models.squeezenet1_1().state_dict(), hub / file)
    of_names = {"id2label": dict(enumerate(["10", "2", "0"])), "label2id": {"10": 0, "2": 1, "0": 2}}
    vit = hf.ViTForImageClassification(hf.ViTConfig(**VIT, **of_names))
    vit.save_pretrained(root / "vit")
    (root / "vit" / PROCESSOR).write_text(json.dumps({"image_mean": HALVES[0], "image_std": HALVES[1]}))
    hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]).save_pretrained(root / "config")
    rng = np.random.default_rng(0)
    for part, name in ((part, name) for part in ("train", "val") for name in NAMES):
        (root / "photos" / part / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / part / name / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def _offline(store, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(store / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def refuse(*_, **__):
    raise OSError("Name or service not known")


def same_weights(ours, theirs):
    theirs = theirs.state_dict()
    return ours.state_dict().keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.state_dict().items()
    )


def test_pretrained_networks_have_the_stored_weights_and_tell_what_they_want(store):
    made = pretrained(f"timm:local-dir:{store / 'timm'}")
    assert same_weights(made, timm.create_model(f"local-dir:{store / 'timm'}", pretrained=True))
    assert (wanted_by(made), classes_of(made), made.training) == ((HALVES, (32, 32), False), 3, False)

    made = pretrained("torchvision:squeezenet1_1")
    assert same_weights(made, torchvision.models.squeezenet1_1(weights="DEFAULT"))
    preset = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    assert (wanted_by(made), classes_of(made)) == (((preset.mean, preset.std), (224, 224), False), 1000)
    assert made.pretrained_cfg["label_names"][1] == "goldfish"

    made = pretrained(f"hf:{store / 'vit'}")
    assert same_weights(made, hf.ViTForImageClassification.from_pretrained(store / "vit"))
    assert (wanted_by(made), classes_of(made), made.training) == ((HALVES, (32, 32), False), 3, False)


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:resnet18", "hf:config", "hf:vit"])
def test_fresh_networks_have_the_classes_that_are_asked_for(name, store):
    library, _, rest = name.partition(":")
    name = f"hf:{store / rest}" if library == "hf" else name
    made = [support.seeded(lambda: fresh(name, 5, list("abcde")), seed) for seed in (0, 0, 1)]
    assert same_weights(made[0], made[1])
    assert not same_weights(made[0], made[2])
    assert (classes_of(made[0]), made[0].training) == (5, True)
    output = made[0].eval()(torch.zeros(1, 3, *(wanted_by(made[0]).size or (32, 32))))
    assert getattr(output, "logits", output).shape == (1, 5)


@pytest.mark.parametrize(
    ("told", "factor"),
    [({}, 1.0), ({"do_rescale": False}, 255.0), ({"rescale_factor": 1 / 127.5}, 2.0)],
    ids=["usual", "bytes", "twice"],
)
def test_the_image_processor_is_followed(told, factor, store, tmp_path):
    """Compared with what transformers' own processor makes of an image."""
    shutil.copytree(store / "vit", tmp_path / "vit")
    entries = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "do_resize": False, **told}
    kind = {"image_processor_type": "ViTImageProcessor"}
    (tmp_path / "vit" / PROCESSOR).write_text(json.dumps(entries | kind))
    mean, std = wanted_by(pretrained(f"hf:{tmp_path / 'vit'}")).statistics
    assert mean == pytest.approx([value / factor for value in entries["image_mean"]])
    pixels = torch.randint(0, 255, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = hf.AutoImageProcessor.from_pretrained(tmp_path / "vit")
        expected = processor(pixels, return_tensors="pt")["pixel_values"][0]
    ours = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


PAIRS = {
    "timm <- timm": (SMALL, "timm:local-dir:{}/timm"),
    "hf <- hf": ("hf:{}/config", "hf:{}/vit"),
    "torchvision <- hf": ("torchvision:shufflenet_v2_x0_5", "hf:{}/vit"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_three_lines_of_names_and_folders(pair, store, caplog):
    student, teacher = (name.format(store) for name in PAIRS[pair])
    folders = store / "photos" / "train", store / "photos" / "val"
    state = torch.get_rng_state()
    with caplog.at_level("INFO"):
        result = distill(student, teacher, *folders, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(result.metrics) == ["accuracy", "teacher_accuracy", "agreement"]
    assert all(line in caplog.text for line in result.choices)
    assert caplog.messages.index(f"Looking up {student} ...") < caplog.messages.index(
        f"Loading the teacher {teacher} with its pretrained weights ..."
    )
    again = distill(student, teacher, *folders, **QUIET)
    assert same_weights(result.student, again.student)
    assert again.metrics == result.metrics


def test_the_student_is_that_of_networks_made_by_hand(store):
    """The class order of the teacher, its normalisation and its size are chosen as one would write them."""
    train = ImageFolder(store / "photos" / "train", size=48, mean=[0.4] * 3, std=[0.2] * 3)
    name = "torchvision:shufflenet_v2_x0_5"
    result = distill(name, f"hf:{store / 'vit'}", train, seed=3, **SHUFFLED)
    student = support.seeded(lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=3), 3)
    teacher = hf.ViTForImageClassification.from_pretrained(store / "vit")

    def view(args, kwargs):
        image = (args[0] * 0.2 + 0.4 - 0.5) / 0.5
        return (nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True),), {}

    expected = distill(
        student, teacher, train, teacher_classes=[2, 1, 0], teacher_inputs=view, seed=3, **SHUFFLED
    ).student
    for ours, theirs in zip(result.student.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert result.module.output_options.teacher_classes == [2, 1, 0]


def test_a_folder_of_images_is_read_as_torchvision_reads_it(store):
    data = ImageFolder(store / "photos" / "train", size=24)
    usual = transforms.Compose(
        [
            transforms.Resize(24),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    theirs = torchvision.datasets.ImageFolder(store / "photos" / "train", usual)
    by_path = {path: usual(theirs.loader(path)) for path, _ in theirs.samples}
    for path, (image, _) in zip(data.files.paths, data, strict=True):
        torch.testing.assert_close(image, by_path[str(path)])


def test_a_teacher_of_other_classes_is_refused_with_both_numbers_and_what_helps(store):
    train = ImageFolder(store / "photos" / "train", size=32)
    names = "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"
    words = r"the teacher has 1000 classes, the data 3, .*losses=\[HintLoss\(\)\].*teacher_classes.*\[0, 2, 10\].*train"
    with pytest.raises(ValueError, match=words):
        distill(*names, train, **QUIET)
    with pytest.raises(ValueError, match="the teacher has 1000 classes, the data 3"):
        distill(*names, train, losses=[KDLoss()], **QUIET)
    x, y = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    with pytest.raises(ValueError, match=r"1000 classes, the data 3.* lightning_kd.named.fresh\(NAME, classes=1000\)"):
        distill(*names, (x, y), **QUIET)
    with pytest.raises(ValueError, match="the teacher has 1000 classes, the student 3, so their answers"):
        distill(fresh(names[0], 3), names[1], (x, y), **QUIET)
    with pytest.raises(ValueError, match="teacher_classes names 2 classes, but the data has 3"):
        distill(*names, train, teacher_classes=[4, 5], **QUIET)
    named = distill(*names, train, teacher_classes=[4, 5, 6], **QUIET)
    hint = distill(*names, train, losses=[HintLoss()], **QUIET)
    assert classes_of(named.student) == classes_of(hint.student) == 3


def test_some_of_a_teacher_s_classes_are_found_by_name(store, tmp_path):
    places = {"goldfish": 1, "golden_retriever": 207, "tench": 0}
    for place, name in zip(NAMES, places, strict=True):
        shutil.copytree(store / "photos" / "train" / place, tmp_path / name)
    names = "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"
    result = distill(*names, ImageFolder(tmp_path, size=32), **QUIET)
    assert result.module.output_options.teacher_classes == [207, 1, 0]
    assert classes_of(result.student) == 3


def test_a_teacher_without_a_head_teaches_by_its_layers_alone(store, tmp_path):
    config = {"num_classes": 0, "input_size": (3, 32, 32)}
    net = timm.create_model("test_resnet", num_classes=0, pretrained_cfg_overlay=config)
    timm.models.save_for_hf(net, tmp_path, model_config={"num_classes": 0, "pretrained_cfg": config})
    name, train = f"timm:local-dir:{tmp_path}", ImageFolder(store / "photos" / "train", size=32)
    with pytest.raises(ValueError, match=r"the teacher has no head for classes.* Give losses=\[...\]"):
        distill(SMALL, name, train, **QUIET)
    assert classes_of(distill(SMALL, name, train, losses=[HintLoss()], **QUIET).student) == 3


class Rows(torch.utils.data.Dataset):
    """Labelled images that do not tell how many classes there are."""

    def __len__(self):
        return 6

    def __getitem__(self, row):
        return torch.randn(3, 32, 32), row % 3


def test_classes_that_cannot_be_told_are_asked_for_and_others_are_taken_over(store):
    words = r"how many classes 'timm:test_resnet' is to have cannot be told.*fresh\('timm:test_resnet', classes=...\)"
    with pytest.raises(ValueError, match=words):
        distill(SMALL, "torchvision:squeezenet1_1", Rows(), **QUIET)
    with pytest.raises(ValueError, match=words):
        distill(SMALL, "torchvision:squeezenet1_1", Rows(), losses=[HintLoss()], **QUIET)
    assert classes_of(distill(SMALL, f"hf:{store / 'vit'}", Rows(), **QUIET).student) == 3
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    assert classes_of(distill(SMALL, own, torch.randn(6, 3, 32, 32), **QUIET).student) == 7
    found = distill(SMALL, "torchvision:squeezenet1_1", torch.randn(6, 3, 64, 64), **QUIET)
    assert classes_of(found.student) == 1000


def test_how_images_of_the_user_are_taken_is_said(store):
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    rows = torch.randn(6, 3, 48, 48), torch.tensor([0, 1, 2, 0, 1, 2])
    teacher = f"hf:{store / 'vit'}"
    told = distill(own, teacher, rows, **QUIET)
    assert any("taken as the teacher wants them: mean 0.5, 0.5, 0.5" in line for line in told.choices)
    assert "Chain([Renormalize(mean, std, to_mean, to_std), Resize([32, 32])])" in "\n".join(told.choices)
    assert isinstance(told.module.teacher_view, Resize)
    student = fresh("torchvision:shufflenet_v2_x0_5", 3)
    assert wanted_by(student).statistics[0] == [0.485, 0.456, 0.406]
    told = distill(student, teacher, rows, **QUIET)
    assert any("taken as the student wants them: mean 0.485, 0.456, 0.406," in line for line in told.choices)
    assert [type(part) for part in told.module.teacher_view.parts] == [Renormalize, Resize]
    bright = torch.rand(6, 3, 32, 32) * 0.9 + 0.05
    words = r"values from 0.* so they seem not to be normalised.*Renormalize\(\[0, 0, 0\], \[1, 1, 1\], \[0.5"
    with pytest.warns(UserWarning, match=words):
        distill(own, teacher, bright, **QUIET)
    with pytest.warns(UserWarning, match=r"\[1 / 255, 1 / 255, 1 / 255\]"):
        distill(own, teacher, bright * 255, **QUIET)
    with pytest.raises(ValueError, match="the images have 1 colour channels, and the teacher wants 3"):
        distill(own, teacher, bright[:, :1], **QUIET)


def test_networks_of_ones_own_are_shown_the_size_that_they_were_made_for(store):
    """timm keeps the size of the weights in ``pretrained_cfg``, also of a network that is made for another."""
    made = timm.create_model("test_vit", img_size=64, num_classes=3)
    assert wanted_by(made)[1:] == ((64, 64), True)
    train = ImageFolder(store / "photos" / "train", size=32)
    told = distill(fresh(SMALL, 3), made, train, **QUIET).choices
    assert any("scaled from 32 x 32 to 64 x 64 (Resize)" in line for line in told)
    trained_further = timm.create_model("test_resnet", num_classes=3)
    told = distill(fresh(SMALL, 3), trained_further, train, **QUIET).choices
    assert not any("Resize" in line for line in told)


def test_a_size_that_a_student_does_not_take_is_told(store):
    words = r"ViTForImageClassification does not take images of shape \(3, 24, 24\): .*build a network for these"
    with pytest.raises(ValueError, match=words):
        distill(f"hf:{store / 'vit'}", f"hf:{store / 'vit'}", torch.randn(6, 3, 24, 24), **QUIET)


UNKNOWN = {
    "timm:resnet19": "has no network 'resnet19'. Did you mean 'resnet18'",
    "timm:resnet18.a1_in1kk": "has no weights 'resnet18.a1_in1kk'. Did you mean 'resnet18.a1_in1k'",
    "torchvision:resnet51": "'resnet51' is none of its networks. Did you mean 'resnet50'",
    "torchvision:deeplabv3_resnet50": "is not for classes of images; build it",
    "hf:{}/vitt": "there is no such folder. Did you mean 'vit'?",
    "hf:{}/photos": "the folder has no config.json",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_told_with_the_nearest_before_anything_is_loaded(name, store):
    own = nn.Linear(4, 3)
    for pair in ((name, "torchvision:squeezenet1_1"), (own, name)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
            distill(*(one.format(store) if isinstance(one, str) else one for one in pair), torch.zeros(4, 4), **QUIET)
        assert UNKNOWN[name].format(store) in str(caught.value)
        assert len(str(caught.value)) < 500


NOT_LOADED = {
    "timm:resnet18": r'python -c "import timm; timm.create_model\(\'resnet18\', pretrained=True\)". .*HF_HOME',
    "torchvision:resnet18": r"Name or service not known. Where there is a connection, run: python -c .*TORCH_HOME",
    "hf:someone/network": r"There is no folder 'someone/network' here\. Where .*snapshot_download\('someone/network'\)",
}


@pytest.mark.parametrize("name", NOT_LOADED)
def test_weights_that_cannot_be_fetched_are_told_in_a_line(name):
    with pytest.raises(RuntimeError, match=NOT_LOADED[name]) as caught:
        pretrained(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_folder_beside_is_shown_where_a_name_might_be_one_of_the_hub(store, monkeypatch):
    monkeypatch.chdir(store)
    with pytest.raises(RuntimeError, match=r"There is no folder 'vitt' here. Did you mean 'vit'\?"):
        fresh("hf:vitt", 3)


def test_a_network_that_has_learnt_nothing_is_no_teacher(store):
    with pytest.raises(ValueError, match=r"has no weights for 'coatnet_0_224', .* cannot teach"):
        pretrained("timm:coatnet_0_224")
    with pytest.raises(ValueError, match=r"names no class under architectures .* lightning_kd.hf.from_pretrained"):
        pretrained(f"hf:{store / 'config'}")


class Harm:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_file_that_would_run_code_is_not_read(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    path = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save({"weight": Harm()}, path)
    with pytest.raises(RuntimeError, match="If its file is broken, delete it in"):
        pretrained("torchvision:squeezenet1_1")
    assert not Path("harm").exists()


def test_names_in_a_configuration_file(store):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(DistillationModule, "model")
    model = {
        "student": {"class_path": "lightning_kd.named.fresh", "init_args": {"name": SMALL, "classes": 1000}},
        "teacher": {
            "class_path": "lightning_kd.named.pretrained",
            "init_args": {"name": "torchvision:squeezenet1_1"},
        },
        "teacher_inputs": "lightning_kd.teachers.Renormalize",
        "losses": ["lightning_kd.losses.KDLoss"],
    }
    module = parser.instantiate_classes(parser.parse_object({"model": model})).model
    assert type(module.run.teacher.module).__name__ == "SqueezeNet"
    module.teacher_inputs(None, (torch.zeros(1, 3, 8, 8),), {})
    assert isinstance(module.teacher_view, Renormalize)
    assert module.teacher_view.ready


def test_texts_by_name(tmp_path):
    sizes = {"vocab_size": 50, **zoo.WIDE, "num_hidden_layers": 1, "bos_token_id": None, "eos_token_id": None}
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes)).save_pretrained(tmp_path / "llama")
    ids = torch.randint(0, 50, (6, 7))
    rows = [{"input_ids": row, "labels": row} for row in ids]

    class Texts(Rows):
        def __getitem__(self, row):
            return rows[row]

    name = f"hf:{tmp_path / 'llama'}"
    result = distill(name, name, Texts(), **QUIET)
    assert type(result.student).__name__ == "LlamaForCausalLM"
    assert [type(loss).__name__ for loss in result.module.run.objective.components] == ["TokenKDLoss"]
