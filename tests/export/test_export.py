"""The student as a file of its own: the same outputs as in training, and nothing of the distillation."""

import copy
import dataclasses
import sys
from collections import OrderedDict, namedtuple
from functools import partial

import onnxruntime
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import Batch, DistillationCallback, DistillationModule, export_student
from lightning_kd.export.program import standalone
from lightning_kd.export.student import choose_format
from lightning_kd.losses import KDLoss
from tests import support
from tests.support import processes

DOORS = ["module", "callback"]
FORMATS = {"pt": "state_dict", "safetensors": "safetensors", "pt2": "torch.export", "onnx": "onnx"}
X = support.data().tensors[0]


def flat(output):
    """The tensors of an output, by name."""
    if isinstance(output, torch.Tensor):
        return {"output": output}
    if dataclasses.is_dataclass(output):
        output = dataclasses.asdict(output)
    if isinstance(output, dict):
        found = {name: inner for name, value in output.items() for inner in [flat(value)]}
    else:
        found = {f"output_{i}": flat(value) for i, value in enumerate(output)}
    return {
        name if list(inner) == ["output"] else f"{name}_{key.removeprefix('output_')}": value
        for name, inner in found.items()
        for key, value in inner.items()
    }


def run_file(path, plain, *args, **kwargs):
    """What a user gets of an exported file, without this package: the output tensors by name."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        given = dict(zip(names, args, strict=False)) | kwargs
        outputs = session.run(None, {name: given[name].numpy() for name in names})
        return dict(zip([o.name for o in session.get_outputs()], map(torch.from_numpy, outputs), strict=True))
    if path.suffix == ".pt2":
        return flat(torch.export.load(path).module()(*args, **kwargs))
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    plain.load_state_dict(state, strict=True)
    return flat(plain.eval()(*args, **kwargs))


def expected_of(net, *args, **kwargs):
    """What the student gives in eval mode, as it trains."""
    with torch.no_grad():
        return flat(copy.deepcopy(net).eval()(*args, **kwargs))


def assert_same_outputs(path, plain, net, *args, **kwargs):
    with torch.no_grad():
        got, expected = run_file(path, plain, *args, **kwargs), expected_of(net, *args, **kwargs)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if path.suffix == ".onnx":
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)
        elif path.suffix == ".pt2":  # on some processors a program that was traced rounds otherwise
            torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(got[name], value)


def modes_and_hooks(net):
    return [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in net.modules()]


class ExportMidFit(Callback):
    """Exports after the second step, in the middle of the epoch, and from within validation."""

    def __init__(self, folder, door):
        self.folder, self.door, self.snapshots = folder, door, {}

    def export(self, trainer, pl_module, name):
        exporter = (
            pl_module
            if self.door == "module"
            else next(c for c in trainer.callbacks if isinstance(c, DistillationCallback))
        )
        net = pl_module.student if self.door == "module" else pl_module.net
        self.snapshots[name] = copy.deepcopy(net)
        before = modes_and_hooks(net), torch.get_rng_state()
        for suffix in FORMATS:
            exporter.export(self.folder / f"{name}.{suffix}")
        assert modes_and_hooks(net) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 2:
            self.export(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer, pl_module):
        self.export(trainer, pl_module, "val")


@pytest.mark.parametrize("door", DOORS)
def test_the_student_leaves_from_an_evaluation_too(door, tmp_path):
    made, callbacks = support.through(door)
    support.fit(made, callbacks=callbacks, max_epochs=1)
    midway = ExportMidFit(tmp_path, door)
    with torch.inference_mode():
        support.trainer(callbacks=[*callbacks, midway]).validate(made, support.loader(), verbose=False)
        midway.export(support.trainer(callbacks=callbacks), made, "inference")
    for name, state in midway.snapshots.items():
        for suffix in FORMATS:
            assert_same_outputs(tmp_path / f"{name}.{suffix}", support.ConvNet(3), state, X)


@pytest.mark.parametrize("door", DOORS)
def test_the_exported_student_gives_the_same_outputs_at_any_time(door, tmp_path):
    alone, callbacks = support.through(door, support.student(0.5))
    support.fit(alone, callbacks=callbacks, max_epochs=1)

    made, callbacks = support.through(door, support.student(0.5))
    midway = ExportMidFit(tmp_path, door)
    support.fit(made, callbacks=[*callbacks, midway], max_epochs=1)
    support.assert_same_weights(alone, made)  # exporting has changed nothing
    exporter, net = (made, made.student) if door == "module" else (callbacks[0], made.net)
    for suffix in FORMATS:
        exporter.export(tmp_path / f"end.{suffix}")
    for name, state in {**midway.snapshots, "end": net}.items():
        for suffix in FORMATS:
            assert_same_outputs(tmp_path / f"{name}.{suffix}", support.ConvNet(3), state, X)
    assert not torch.equal(midway.snapshots["train"].head.weight, net.head.weight)
    assert {path.suffix for path in tmp_path.iterdir()} == {f".{suffix}" for suffix in FORMATS}


def test_there_is_nothing_of_the_distillation_in_the_files(tmp_path):
    made = support.module()
    made.run.step.attach()
    for suffix in FORMATS:
        made.export(tmp_path / f"a.{suffix}", example=X)
    plain = support.ConvNet(3)
    keys = plain.state_dict().keys()
    assert load_file(tmp_path / "a.safetensors").keys() == keys
    assert list(torch.load(tmp_path / "a.pt", weights_only=True)) == list(keys)
    program = torch.export.load(tmp_path / "a.pt2")
    assert program.state_dict.keys() == keys
    assert program.graph_signature.user_outputs == torch.export.export(plain.eval(), (X,)).graph_signature.user_outputs
    assert b"lightning_kd" not in (tmp_path / "a.onnx").read_bytes()


@pytest.mark.parametrize("examples", [1, 2, 5])
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_program_takes_any_batch_size(suffix, examples, tmp_path):
    path = tmp_path / f"a.{suffix}"
    export_student(support.student(), path, example=X[:examples])
    for size in (1, 2, 3, 24):
        assert_same_outputs(path, None, support.student(), X[:size])


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_program_of_one_batch_size(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    export_student(support.student(), path, example=X[:3], dynamic_batch=False)
    assert_same_outputs(path, None, support.student(), X[:3])
    with pytest.raises(Exception, match=r"(?i)guard failed|invalid dimensions"):
        run_file(path, None, X[:4])


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x.reshape(6, 4))


def test_a_student_that_fixes_the_batch_size_is_told_what_to_do(tmp_path):
    path, x = tmp_path / "a.pt2", torch.ones(6, 4)
    with pytest.raises(
        ValueError, match=r"(?s)FixedBatch cannot be made a program .*float32\[6, 4\].*dynamic_batch=False"
    ):
        export_student(FixedBatch(), path, example=x)
    net = FixedBatch()
    export_student(net, path, example=x, dynamic_batch=False)
    assert_same_outputs(path, None, net, x)
    assert list(tmp_path.iterdir()) == [path]


# Formats


@pytest.mark.parametrize(("name", "asked"), [("a", "onnx"), ("a.bin", "state_dict"), ("v1.2", "torch.export")])
def test_a_path_without_a_known_ending_is_taken_as_it_is(name, asked, tmp_path):
    export_student(support.student(), tmp_path / name, asked, example=X)
    (found,) = tmp_path.iterdir()
    assert found.name == name
    ending = {value: key for key, value in FORMATS.items()}[asked]
    found.rename(tmp_path / f"a.{ending}")
    assert_same_outputs(tmp_path / f"a.{ending}", support.ConvNet(3), support.student(), X)


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        (
            "a",
            None,
            r"Cannot tell the format of '.*a'; end it in .pt, .pth, .safetensors, .pt2 or .onnx, or pass format",
        ),
        ("a.bin", None, "Cannot tell the format"),
        ("a.pt", "onnx", r"ends as a file of the format state_dict, but format is 'onnx'; end it in .onnx"),
        ("a.onnx", "state_dict", r"end it in .pt or .pth"),
        ("a.pt2", "safetensors", r"end it in .safetensors"),
        ("a.pt", "pickle", r"Expected format to be one of state_dict, safetensors, torch.export, onnx, got 'pickle'"),
    ],
)
def test_a_format_that_is_not_told_or_contradicts_the_ending(name, asked, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_student(support.student(), tmp_path / name, asked, example=X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_both_endings_of_a_state_dict(ending, tmp_path):
    assert choose_format(tmp_path / f"a{ending}", None) == choose_format(tmp_path / f"a{ending}", "state_dict")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_onnx_the_error_names_the_extra(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "lightning_kd\[onnx\]"'):
        export_student(support.student(), tmp_path / "a.onnx", example=X)
    assert not list(tmp_path.iterdir())


# Data types


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "pt2"])
def test_weights_and_the_inputs_of_a_program_are_cast(suffix, named, dtype, tmp_path):
    path = tmp_path / f"a.{suffix}"
    export_student(support.student(), path, dtype=str(dtype).removeprefix("torch.") if named else dtype, example=X)
    assert_same_outputs(path, support.ConvNet(3).to(dtype), support.student().to(dtype), X.to(dtype))
    assert support.student().head.weight.dtype == torch.float32
    if suffix != "pt2":
        state = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
        assert {value.dtype for value in state.values()} == {dtype, torch.int64}  # BatchNorm counts its batches


def test_onnx_in_half_precision(tmp_path):
    path = tmp_path / "a.onnx"
    export_student(support.student(), path, dtype="float16", example=X)
    (got,) = run_file(path, None, X.half()).values()
    (expected,) = expected_of(support.student(), X).values()
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "pt2"])
def test_a_student_of_another_format_keeps_it(suffix, tmp_path):
    net, path = support.student().bfloat16(), tmp_path / f"a.{suffix}"
    export_student(net, path, example=X)  # the example is cast
    assert_same_outputs(path, support.ConvNet(3).bfloat16(), net, X.bfloat16())


def test_a_dtype_that_is_none(tmp_path):
    for wrong in ("int8", torch.int8, "fp16"):
        with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
            export_student(support.student(), tmp_path / "a.pt", dtype=wrong)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_a_student_that_trains_in_another_precision(precision, tmp_path):
    made = support.module()
    support.fit(made, precision=precision, max_epochs=1)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    for suffix in ("pt", "pt2"):
        path = tmp_path / f"a.{suffix}"
        made.export(path)
        assert_same_outputs(path, support.ConvNet(3).to(dtype), made.student, X.to(dtype))


# Students


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_the_students_modes_are_left_as_they_are(mode, tmp_path):
    net = support.student(0.5).train(mode != "eval")
    if mode == "mixed":
        net.features[1].eval()
    before = modes_and_hooks(net)
    for suffix in FORMATS:
        export_student(net, tmp_path / f"a.{suffix}", example=X)
        assert_same_outputs(tmp_path / f"a.{suffix}", support.ConvNet(3), net, X)
    assert modes_and_hooks(net) == before


@pytest.mark.parametrize("how", ["wrapped", "in place", "child", "child in place"])
def test_a_compiled_student_leaves_as_a_plain_one(how, tmp_path):
    torch.compiler.reset()
    net, options = support.student(), {"backend": "aot_eager"}
    if how == "wrapped":
        net = torch.compile(net, **options)
    elif how == "in place":
        net.compile(**options)
    elif how == "child":
        net.features = torch.compile(net.features, **options)
    else:
        net.head.compile(**options)
    made = support.module(net)
    support.fit(made, train=support.loader(), max_epochs=1)
    plain = support.ConvNet(3)
    state = {name.replace("_orig_mod.", ""): value for name, value in made.student.state_dict().items()}
    plain.load_state_dict(state)
    for suffix in FORMATS:
        made.export(tmp_path / f"a.{suffix}")
        assert_same_outputs(tmp_path / f"a.{suffix}", support.ConvNet(3), plain, X)
    assert b"_orig_mod" not in (tmp_path / "a.pt2").read_bytes() + (tmp_path / "a.onnx").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_autocast_around_an_export_changes_nothing(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        export_student(support.student(), path, example=X)
    assert_same_outputs(path, support.ConvNet(3), support.student(), X)


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x + 0 * torch.randn(3))


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_export_draws_no_random_numbers_of_the_run(suffix, tmp_path):
    net = Noisy()
    before = torch.get_rng_state()
    export_student(net, tmp_path / f"a.{suffix}", example=torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def scale(factor, module, args, output):
    return factor * output


double = partial(scale, 2)


def add_one(module, args, kwargs):
    return (args[0] + 1,), kwargs


def test_hooks_of_ones_own_stay_and_those_of_the_distillation_go():
    net = support.student()
    net.register_forward_pre_hook(add_one, with_kwargs=True)
    net.features.register_forward_hook(double)
    made = support.module(net)
    made.run.step.attach()
    assert len(net.features._forward_hooks) == 2
    copied = standalone(net)
    hooks = [h for part in copied.modules() for h in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]
    assert [getattr(hook, "func", hook) for hook in hooks] == [add_one, scale]
    assert not any(part._forward_hooks_with_kwargs for part in copied.modules())
    assert [len(part._forward_pre_hooks_with_kwargs) for part in copied.modules()].count(1) == 1


def test_hooks_of_ones_own_are_part_of_the_program(tmp_path):
    net = support.student()
    net.features.register_forward_hook(double)
    export_student(net, tmp_path / "a.pt2", example=X)
    assert_same_outputs(tmp_path / "a.pt2", None, net, X)


class Unusual(nn.Module):
    """Tied weights, one of them transposed in memory, and a buffer that is in no state dict."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(4, 3).t())
        self.part = nn.Parameter(torch.randn(100_000)[:3])
        self.register_buffer("offset", torch.full((3,), 0.5), persistent=False)
        self.last = None

    def forward(self, x):
        self.last = self.tied(self.first(x))  # with its graph, which cannot be copied
        return self.last @ self.turned.t() + self.part + self.offset


@pytest.mark.filterwarnings("ignore:The tensor attribute self.last was assigned during export:UserWarning")
@pytest.mark.parametrize("suffix", FORMATS)
def test_tied_transposed_and_partial_weights_and_buffers_that_are_not_saved(suffix, tmp_path):
    net, x = support.seeded(Unusual, 1), torch.randn(5, 4)
    net(x).sum().backward()
    path = tmp_path / f"a.{suffix}"
    export_student(net, path, example=x)
    net.last = None
    assert_same_outputs(path, Unusual(), net, x)
    assert path.stat().st_size < 50_000  # not the whole memory that a part is of


def test_tied_weights_stay_tied_where_the_format_knows_that(tmp_path):
    export_student(Unusual(), tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["first.weight"].data_ptr() == state["tied.weight"].data_ptr()


Pair = namedtuple("Pair", ["logits", "hidden"])


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class ModelOutput(OrderedDict):
    """As other libraries return it: a dictionary with attributes."""

    def __getattr__(self, name):
        return self[name]


OUTPUTS = {
    "tuple": lambda y, h: (y, h),
    "list": lambda y, h: [y, h],
    "dict": lambda y, h: {"logits": y, "hidden": (h, h)},
    "named tuple": Pair,
    "dataclass": Output,
    "dataclass with none": lambda y, h: Output(y),
    "model output": lambda y, h: ModelOutput(logits=y, hidden=h, loss=None),
}


class Talkative(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.layer, self.form = nn.Linear(3, 2), form

    def forward(self, x):
        return OUTPUTS[self.form](self.layer(x), x * 2)


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("form", OUTPUTS)
def test_a_student_may_return_more_than_a_tensor(form, suffix, tmp_path):
    net, x, path = Talkative(form), torch.randn(4, 3), tmp_path / f"a.{suffix}"
    export_student(net, path, example=x)
    with torch.no_grad():
        got, output = run_file(path, None, x[:3]), net.eval()(x[:3])
    output = dataclasses.asdict(output) if dataclasses.is_dataclass(output) else output
    expected = flat({k: v for k, v in output.items() if v is not None} if isinstance(output, dict) else tuple(output))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


class Reader(nn.Module):
    """Takes token ids, a mask and a switch, by name or place."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, support.CLASSES)

    def forward(self, ids, mask=None, *, scale=None, doubled=False):
        hidden = self.embed(ids)
        hidden = hidden if mask is None else hidden * mask[..., None]
        hidden = hidden if scale is None else hidden * scale["by"]
        return self.head(hidden.sum(1)) * (2 if doubled else 1)


IDS = torch.arange(10).view(2, 5) % 7
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        ((IDS, MASK), (IDS, MASK), {}),
        ({"ids": IDS, "mask": MASK}, (), {"ids": IDS, "mask": MASK}),
        (Batch(args=(IDS,), kwargs={"mask": MASK}), (IDS,), {"mask": MASK}),
        (IDS, (IDS,), {}),
    ],
    ids=["tuple", "dictionary", "batch", "tensor"],
)
def test_a_student_may_take_several_inputs(example, args, kwargs, suffix, tmp_path):
    net, path = support.seeded(Reader, 3), tmp_path / f"a.{suffix}"
    export_student(net, path, example=example)
    args = tuple(torch.cat([one, one.flip(1), one]) for one in args)
    kwargs = {name: torch.cat([one, one.flip(1), one]) for name, one in kwargs.items()}
    assert_same_outputs(path, None, net, *args, **kwargs)


def test_inputs_may_be_nested_and_plain_data(tmp_path):
    net, path = support.seeded(Reader, 3), tmp_path / "a.pt2"
    kwargs = {"scale": {"by": torch.tensor(3.0)}, "doubled": True}
    export_student(net, path, example=Batch(args=(IDS,), kwargs=kwargs))
    ids = torch.cat([IDS, IDS.flip(1)])
    assert_same_outputs(path, None, net, ids, **kwargs)


class NamedBatches(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        return {"ids": IDS[i % 2], "mask": MASK[i % 2], "labels": torch.tensor(i % support.CLASSES)}


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_named_inputs_are_remembered_from_the_training_data(suffix, tmp_path):
    made = support.module(support.seeded(Reader, 3), teacher=support.seeded(Reader, 4), losses=[KDLoss()])
    rows = DataLoader(NamedBatches(), batch_size=8)
    support.fit(made, train=rows, val=rows, max_epochs=1)
    made.export(tmp_path / f"a.{suffix}")
    ids, mask = torch.cat([IDS, IDS.flip(1)]), torch.cat([MASK, MASK])
    assert_same_outputs(tmp_path / f"a.{suffix}", None, made.student, ids=ids, mask=mask)


def test_the_file_holds_no_training_data(tmp_path):
    made = support.module()
    support.fit(made, max_epochs=1)
    made.export(tmp_path / "a.pt2")
    (inputs, named) = torch.export.load(tmp_path / "a.pt2").example_inputs
    assert [tensor.shape for tensor in inputs] == [(2, 1, 4, 4)]
    assert not inputs[0].any()
    assert not named


@pytest.mark.parametrize("door", DOORS)
def test_sizes_come_back_with_a_checkpoint(door, tmp_path):
    made, callbacks = support.through(door)
    trainer = support.fit(made, callbacks=callbacks, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["lightning_kd"]["inputs"]
    assert saved == {"args": [{"shape": [2, 1, 4, 4], "dtype": "float32"}], "kwargs": {}}
    if door == "module":
        parts = {"student": support.student(), "teacher": support.teacher()}
        loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt", **parts)
        loaded.export(tmp_path / "a.pt2")
        assert_same_outputs(tmp_path / "a.pt2", None, made.student, X)


def test_example_input_array_comes_first(tmp_path):
    made = support.module()
    made.example_input_array = torch.ones(3, 1, 4, 4)
    made.export(tmp_path / "a.pt2")
    ((kept,), _) = torch.export.load(tmp_path / "a.pt2").example_inputs
    assert torch.equal(kept, made.example_input_array)


class Whole(support.UserModule):
    """A module that is itself the network."""

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), batch[1])


def test_a_module_that_is_itself_the_student(tmp_path):
    made = Whole(support.student())
    callback = DistillationCallback(support.teacher(), support.default_losses()[:1], student="")

    class Midway(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for suffix in FORMATS:
                callback.export(tmp_path / f"a.{suffix}")
            assert "_kd" in pl_module._modules

    support.fit(made, callbacks=[callback, Midway()], max_epochs=1)
    plain = Whole(support.ConvNet(3))
    for suffix in FORMATS:
        assert_same_outputs(tmp_path / f"a.{suffix}", plain, made.net, X)
    assert load_file(tmp_path / "a.safetensors").keys() == plain.state_dict().keys()


class ExtraState(nn.Linear):
    def __init__(self, extra):
        super().__init__(2, 1)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_extra_state_that_is_plain_data_is_kept(tmp_path):
    export_student(ExtraState({"seen": [1, 2]}), tmp_path / "a.pt")
    plain = ExtraState(None)
    plain.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert plain.extra == {"seen": [1, 2]}


def test_extra_state_that_a_format_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"'_extra_state' is no tensor, which safetensors cannot hold; write"):
        export_student(ExtraState({"seen": 1}), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'_extra_state' is not plain data.*get_extra_state"):
        export_student(ExtraState(partial(print)), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda: nn.LazyLinear(3), lambda: nn.Linear(3, 3, device="meta")])
def test_weights_without_values(make, tmp_path):
    with pytest.raises(ValueError, match="'weight' has no values yet"):
        export_student(make(), tmp_path / "a.pt")


# What goes wrong


def test_a_program_takes_inputs_to_make(tmp_path):
    with pytest.raises(ValueError, match=r"without inputs of the student: pass example="):
        export_student(support.student(), tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"without inputs of the student: pass example="):
        support.module().export(tmp_path / "a.onnx")


@pytest.mark.parametrize("example", [torch.ones(2, 3), (X, X), {"y": X}])
def test_an_example_that_does_not_fit_is_shown(example, tmp_path):
    with pytest.raises(ValueError, match=r"ConvNet does not take the example of \((y=)?float32\[.*pass example="):
        export_student(support.student(), tmp_path / "a.pt2", example=example)


def test_an_example_of_another_kind(tmp_path):
    with pytest.raises(TypeError, match="an example that is a str"):
        export_student(support.student(), tmp_path / "a.pt2", example="x")


def test_the_callback_exports_once_it_was_set_up(tmp_path):
    with pytest.raises(RuntimeError, match="no run yet"):
        DistillationCallback(support.teacher(), [KDLoss()]).export(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failure_leaves_the_former_file(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    export_student(support.student(), path, example=X)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        export_student(support.teacher(), path, example=X)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path):
    export_student(support.student(), tmp_path / "new" / "deeper" / "a.pt")
    assert (tmp_path / "new" / "deeper" / "a.pt").is_file()


@pytest.mark.slow
def test_of_two_processes_the_first_writes_and_the_other_waits(tmp_path):
    (tmp_path / "file").touch()
    processes.program("programs.distributed_export", tmp_path, limit=300)
    first, second = (torch.load(tmp_path / f"seen{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1)
    for seen in (first, second):
        assert seen["pt"]  # the file was there when the call came back
        assert seen["pt2"]
    assert {path.name for path in tmp_path.glob("*.p*")} == {
        "both.pt",
        "both.pt2",
        "alone.pt",
        "again0.pt",
        "seen0.pt",
        "seen1.pt",
    }
    net = support.ConvNet(3)
    net.load_state_dict(first["state"])
    for name in ("both.pt", "both.pt2", "alone.pt", "again0.pt"):
        assert_same_outputs(tmp_path / name, support.ConvNet(3), net, X)
    assert "file" in first["error"]
    assert second["error"].startswith("RuntimeError: The first process could not export the student.")
    assert first["error"] in second["error"]
