"""The command `lightning-kd export`: from a checkpoint to a file, with nothing else at hand."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from lightning_kd.commands.export import export
from lightning_kd.commands.fit import run
from lightning_kd.data import DigitsConvNet
from lightning_kd.teachers import from_checkpoint
from tests import support
from tests.support import processes

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "digits" / "response.yaml"
WIDTH = 4  # not the one of the configuration
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A student that the command line has trained, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=2"]
    options += ["--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cli = run(["fit", f"--config={CONFIG}", *options, f"--model.student.init_args.width={WIDTH}"])
    cli.trainer.save_checkpoint(folder / "last.ckpt")
    return cli.model.student, folder / "last.ckpt"


def output_of(path):
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])
    with torch.no_grad():
        if path.suffix == ".pt2":
            return torch.export.load(path).module()(X)
        return from_checkpoint(DigitsConvNet(WIDTH), path).eval()(X)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors", "pt2", "onnx"])
def test_every_format_leaves_a_checkpoint(suffix, trained, tmp_path):
    student, checkpoint = trained
    export([f"--checkpoint={checkpoint}", f"--output={tmp_path}/student.{suffix}"])
    with torch.no_grad():
        expected = student.eval()(X)
    got = output_of(tmp_path / f"student.{suffix}")
    torch.testing.assert_close(got, expected, **({"rtol": 1e-5, "atol": 1e-5} if suffix == "onnx" else EXACT))


EXACT = {"rtol": 0, "atol": 0}


def test_the_command_runs_by_itself_and_where_the_teacher_is_not(trained, tmp_path):
    _, checkpoint = trained
    options = [f"--checkpoint={checkpoint}", "--output=student", "--format=torch.export", "--dtype=bfloat16"]
    command = [sys.executable, "-m", "lightning_kd", "export", *options]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    processes.run([command], cwd=tmp_path, environment=environment, limit=120)
    (tmp_path / "student").rename(tmp_path / "student.pt2")
    with torch.no_grad():
        got = torch.export.load(tmp_path / "student.pt2").module()(X.bfloat16())
        expected = from_checkpoint(DigitsConvNet(WIDTH), checkpoint, "student.").eval().bfloat16()(X.bfloat16())
    assert torch.equal(got, expected)


def test_weights_are_cast(trained, tmp_path):
    _, checkpoint = trained
    export([f"--checkpoint={checkpoint}", f"--output={tmp_path}/a.safetensors", "--dtype=float16"])
    assert load_file(tmp_path / "a.safetensors")["head.weight"].dtype == torch.float16


def python_checkpoint(folder, net=None):
    """A checkpoint that was written from Python, which does not say how its student is made."""
    made = support.module(net)
    support.fit(made, max_epochs=1).save_checkpoint(folder / "python.ckpt")
    return made, folder / "python.ckpt"


CONFIGURATION = "model: {student: {class_path: tests.support.ConvNet, init_args: {width: 3}}}"


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("suffix", ["pt2", "safetensors"])
def test_a_configuration_says_how_a_student_of_ones_own_is_made(suffix, compiled, tmp_path):
    net = torch.compile(support.student(), backend="eager") if compiled else None
    made, checkpoint = python_checkpoint(tmp_path, net)
    (tmp_path / "fit.yaml").write_text(CONFIGURATION)
    path = tmp_path / f"a.{suffix}"
    export([f"--checkpoint={checkpoint}", f"--output={path}", f"--config={tmp_path}/fit.yaml"])
    x = support.data().tensors[0]
    plain = support.ConvNet(3)
    plain.load_state_dict({name.replace("_orig_mod.", ""): v for name, v in made.student.state_dict().items()})
    with torch.no_grad():
        if suffix == "pt2":
            got = torch.export.load(path).module()(x)
        else:
            got = from_checkpoint(support.ConvNet(3), path).eval()(x)
        assert torch.equal(got, plain.eval()(x))


def test_the_student_of_a_module_of_ones_own_is_named_by_its_prefix(tmp_path):
    made, callbacks = support.through("callback")
    support.fit(made, callbacks=callbacks, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    export([f"--checkpoint={tmp_path}/last.ckpt", f"--output={tmp_path}/a.pt", "--prefix=net."])
    support.assert_same_weights(from_checkpoint(support.ConvNet(3), tmp_path / "a.pt"), made.net)


def test_what_is_missing_is_told_with_what_to_do(tmp_path):
    _, checkpoint = python_checkpoint(tmp_path)
    to = [f"--checkpoint={checkpoint}", f"--output={tmp_path}/a.pt2"]
    with pytest.raises(ValueError, match=r"not say how its student is made; give the YAML file of its fit by --config"):
        export(to)
    (tmp_path / "other.yaml").write_text("data: DigitsDataModule")
    with pytest.raises(ValueError, match=r"other.yaml' has no model.student"):
        export([*to, f"--config={tmp_path}/other.yaml"])
    with pytest.raises(FileNotFoundError, match=r"There is no file 'none.yaml'"):
        export([*to, "--config=none.yaml"])
    (tmp_path / "twice.yaml").write_text("model: {}\nmodel: {}")
    with pytest.raises(ValueError, match=r"twice.yaml', line 2, column 1: the key 'model' stands here and in line 1"):
        export([*to, f"--config={tmp_path}/twice.yaml"])
    (tmp_path / "typo.yaml").write_text("model: {student: {class_path: torch.nn.Linear, init_args: {in_feature: 3}}}")
    with pytest.raises(ValueError, match=r"The student cannot be built: .*in_feature.* Did you mean 'in_features'"):
        export([*to, f"--config={tmp_path}/typo.yaml"])
    (tmp_path / "wide.yaml").write_text(CONFIGURATION.replace("3", "5"))
    with pytest.raises(ValueError, match=r"python.ckpt' do not fit ConvNet"):
        export([*to, f"--config={tmp_path}/wide.yaml"])
    torch.save({"state_dict": {"student.weight": torch.ones(1)}}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"bare.ckpt' does not say what its student is called with"):
        export([f"--checkpoint={tmp_path}/bare.ckpt", f"--output={tmp_path}/a.onnx"])
    with pytest.raises(ValueError, match=r"No weight in .* begins with 'net.'"):
        export([f"--checkpoint={checkpoint}", f"--output={tmp_path}/a.pt", "--prefix=net."])
    with pytest.raises(FileNotFoundError, match=r"no file 'missing.ckpt'"):
        export(["--checkpoint=missing.ckpt", f"--output={tmp_path}/a.pt"])
    assert not list(tmp_path.glob("a.*"))


def test_a_checkpoint_cannot_import_the_student_that_it_names(tmp_path, monkeypatch):
    _, checkpoint = python_checkpoint(tmp_path)
    (tmp_path / "strange_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(checkpoint, weights_only=True)
    for described in ("strange_module.Net", {"class_path": "strange_module.Net"}):
        torch.save({**content, "hyper_parameters": {"student": described}}, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=r"bad.ckpt' names 'strange_module.Net', of a module that is not imported"):
            export([f"--checkpoint={tmp_path}/bad.ckpt", f"--output={tmp_path}/a.pt2"])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen"])
def test_neither_checkpoint_nor_configuration_makes_anything_but_a_network(path, tmp_path):
    _, checkpoint = python_checkpoint(tmp_path)
    described = {"class_path": path, "init_args": {"command": f"touch {tmp_path}/canary"}}
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "hyper_parameters": {"student": described}}, tmp_path / "bad.ckpt")
    (tmp_path / "bad.yaml").write_text(f"model: {{student: {described}}}")
    tagged = f"model: {{student: !!python/object/apply:os.system ['touch {tmp_path}/canary']}}"
    (tmp_path / "tagged.yaml").write_text(tagged)
    to = f"--output={tmp_path}/a.pt2"
    with pytest.raises(Exception, match=path):
        export([f"--checkpoint={tmp_path}/bad.ckpt", to])
    with pytest.raises(Exception, match=path):
        export([f"--checkpoint={checkpoint}", to, f"--config={tmp_path}/bad.yaml"])
    with pytest.raises(Exception, match=r"os\.system"):
        export([f"--checkpoint={checkpoint}", to, f"--config={tmp_path}/tagged.yaml"])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [("--format=pickle", "pickle"), ("--dtype=int8", "int8"), ("--wrong=1", "wrong")],
)
def test_a_wrong_option_is_named(option, words, capsys):
    with pytest.raises(SystemExit) as stop:
        export(["--checkpoint=a", "--output=b.pt", option])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_help_says_how_a_student_is_built(capsys):
    with pytest.raises(SystemExit) as stop:
        export(["--help"])
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--config",
        "as the checkpoint says",
        "state_dict (.pt, .pth), safetensors, torch.export (.pt2) or onnx",
    ):
        assert words in text
