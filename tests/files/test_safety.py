"""Files of strangers: reading them runs nothing, imports nothing, and the error names the file and the class."""

import ast
import functools
import http.server
import io
import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import lightning_kd
from lightning_kd import DistillationModule
from lightning_kd.commands.fit import run
from lightning_kd.files.reading import load_plain
from lightning_kd.teachers import from_checkpoint
from tests import support

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits" / "response.yaml"
CALLED = os.system.__module__ + ".system"  # posix.system, or that of the platform


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path):
    """A file that exists as soon as something hostile has run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of ours, and a way to write it again with something else in it."""
    support.fit(support.module(), max_epochs=1).save_checkpoint(tmp_path / "good.ckpt")

    def write(name="bad.ckpt", **more):
        content = torch.load(tmp_path / "good.ckpt", weights_only=True)
        torch.save({**content, **more}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def strange_module(tmp_path, canary, monkeypatch):
    """A module that can be imported, and does harm when it is."""
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "strange_module.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nimport torch\nNet = torch.nn.Identity\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield "strange_module"
    assert "strange_module" not in sys.modules


def pickled(hostile, path):
    path.write_bytes(pickle.dumps(hostile, protocol=2))


def zipped(hostile, path):
    torch.save({"head.weight": hostile}, path)


def old(hostile, path):
    torch.save({"head.weight": hostile}, path, _use_new_zipfile_serialization=False)


def array(hostile, path):
    file = io.BytesIO()
    np.savez(file, weight=np.array([hostile], dtype=object))
    path.write_bytes(file.getvalue())


FORMS = [
    (zipped, "a.ckpt"),
    (zipped, "a.pt"),
    (zipped, "a.pth"),
    (old, "a.pt"),
    (pickled, "a.pt"),
    (pickled, "a.safetensors"),
    (zipped, "a.safetensors"),
    (zipped, "a.pt2"),
    (array, "a.npz"),
]


NO_DATA = r"(\(\d+ bytes\) cannot be read to its end: it is no checkpoint|holds no checkpoint|holds no state dict)"


def test_the_canary_appears_where_files_are_unpickled(tmp_path):
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Hostile(path), protocol=2))
    path.unlink()
    for write in (zipped, old):
        write(Hostile(path), tmp_path / "a.pt")
        torch.load(tmp_path / "a.pt", weights_only=False)
        path.unlink()


@pytest.mark.parametrize(("write", "name"), FORMS, ids=[f"{write.__name__}-{name}" for write, name in FORMS])
def test_a_file_of_weights_cannot_run_code(write, name, tmp_path, canary):
    write(Hostile(canary), tmp_path / name)
    readable = Path(name).suffix not in (".safetensors", ".npz")
    words = f"holds '{CALLED}', which is neither a tensor nor plain data" if readable else NO_DATA
    with pytest.raises(ValueError, match=f"{name}' {words}"):
        from_checkpoint(support.student(), tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04", b"\xc7\x00\x80" * 20, pickle.dumps([1, 2])])
def test_any_other_file_is_named(content, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt' {NO_DATA}"):
        from_checkpoint(support.student(), tmp_path / "a.pt")


@pytest.mark.parametrize("where", ["path", "text", "file"])
def test_load_from_checkpoint_cannot_run_code(where, checkpoint, canary):
    path = checkpoint(more=Hostile(canary))
    parts = {"student": support.student(), "teacher": support.teacher()}
    with path.open("rb") as file, pytest.raises(ValueError, match=f"holds '{CALLED}'"):
        DistillationModule.load_from_checkpoint({"path": path, "text": str(path), "file": file}[where], **parts)


def test_load_from_checkpoint_reads_an_open_file_from_where_it_stands(checkpoint):
    parts = {"student": support.student(), "teacher": support.teacher()}
    with checkpoint().open("rb") as file:
        loaded = DistillationModule.load_from_checkpoint(file, **parts)
    state = torch.load(checkpoint(), weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("door", "task"),
    [("module", "validate"), ("module", "test"), ("module", "predict"), ("callback", "validate")],
)
def test_evaluation_cannot_run_code_of_a_checkpoint(door, task, checkpoint, canary):
    path = checkpoint(more=Hostile(canary))
    made, callbacks = support.through(door)
    trainer = support.trainer(callbacks=callbacks)
    with pytest.raises(ValueError, match=f"bad.ckpt' holds '{CALLED}'"):
        getattr(trainer, task)(made, support.loader(), ckpt_path=path)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_resumed_fit_cannot_run_code_of_a_checkpoint(door, checkpoint, canary):
    path = checkpoint(more=Hostile(canary))
    made, callbacks = support.through(door)
    with pytest.raises(ValueError, match=f"bad.ckpt' holds '{CALLED}'"):
        support.fit(made, callbacks=callbacks, ckpt_path=path)


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Serve the folder of the test by HTTP."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("door", ["module", "callback"])
def test_the_trainer_cannot_run_code_from_a_url(door, checkpoint, canary, address):
    checkpoint(more=Hostile(canary))
    made, callbacks = support.through(door)
    with pytest.raises(ValueError, match=f"http.*bad.ckpt' holds '{CALLED}'"):
        support.fit(made, callbacks=callbacks, ckpt_path=f"{address}/bad.ckpt")


def test_load_from_checkpoint_cannot_run_code_from_a_url(checkpoint, canary, address):
    checkpoint(more=Hostile(canary))
    with pytest.raises(ValueError, match=f"http.*bad.ckpt' holds '{CALLED}'"):
        DistillationModule.load_from_checkpoint(f"{address}/bad.ckpt", student=support.student())


def test_a_url_that_gives_another_file_the_second_time_runs_nothing(checkpoint, canary, address, monkeypatch):
    checkpoint(more=Hostile(canary))
    monkeypatch.setattr("lightning_kd.module.load_plain", lambda _: {})  # as if the first had been another one
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system|nt\.system"):
        DistillationModule.load_from_checkpoint(f"{address}/bad.ckpt", student=support.student())


def test_who_trusts_a_file_may_unpickle_it(checkpoint, tmp_path):
    path = checkpoint(more=Hostile(tmp_path / "wanted"))
    parts = {"student": support.student(), "teacher": support.teacher()}
    DistillationModule.load_from_checkpoint(path, weights_only=False, **parts)
    assert (tmp_path / "wanted").exists()


INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}


@pytest.mark.parametrize(
    "options",
    [
        {"_instantiator": INSTANTIATOR, "student": {"class_path": "strange_module.Net"}},
        {"_instantiator": INSTANTIATOR, "student": LINEAR, "task_loss": "strange_module.Net"},
        {"_instantiator": INSTANTIATOR, "student": LINEAR, "losses": [{"class_path": "strange_module.Net"}]},
        {"_instantiator": INSTANTIATOR, "student": LINEAR, "optimizer": "strange_module.inner.Net"},
        {"_instantiator": "strange_module.Net", "student": LINEAR},
        {"_instantiator": INSTANTIATOR, "_class_path": "strange_module.Net", "student": LINEAR},
    ],
    ids=lambda o: " ".join(map(str, o.values()))[:60],
)
@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_a_checkpoint_cannot_import_a_module(key, options, checkpoint, strange_module):
    path = (
        checkpoint(hyper_parameters={}, **{key: options}) if key != "hyper_parameters" else checkpoint(**{key: options})
    )
    with pytest.raises(
        ValueError, match=r"bad\.ckpt' names 'strange_module\.[\w.]+', of a module that is not imported"
    ):
        DistillationModule.load_from_checkpoint(path)


def test_a_submodule_of_an_imported_package_is_not_imported_either(checkpoint):
    assert "json.tool" not in sys.modules
    path = checkpoint(hyper_parameters={"student": {"class_path": "json.tool.main"}})
    with pytest.raises(ValueError, match=r"names 'json\.tool\.main'"):
        DistillationModule.load_from_checkpoint(path)
    assert "json.tool" not in sys.modules


def test_options_that_are_given_are_not_looked_for_in_the_checkpoint(checkpoint, strange_module):
    path = checkpoint(hyper_parameters={"student": f"{strange_module}.Net", "lr_interval": "step"})
    loaded = DistillationModule.load_from_checkpoint(
        path, student=support.student(), teacher=support.teacher(), losses=support.default_losses()
    )
    assert loaded.lr_interval == "step"


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval"])
def test_a_checkpoint_makes_nothing_but_what_is_expected(path, checkpoint, canary):
    described = {"class_path": path, "init_args": {"command": f"touch {canary}"}}
    options = {"_instantiator": INSTANTIATOR, "student": described}
    with pytest.raises(Exception, match=path):  # jsonargparse's own
        DistillationModule.load_from_checkpoint(checkpoint(hyper_parameters=options))
    with pytest.raises(ValueError, match=f"'{path}', which is not an imported"):
        DistillationModule.load_from_checkpoint(
            checkpoint(hyper_parameters={"losses": [described]}), student=support.student(), teacher=support.teacher()
        )


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:strange_module.Net"])
def test_a_file_of_options_has_no_tags_that_run_code(tag, checkpoint, strange_module, tmp_path):
    value = "''" if tag.startswith("name") else f"['touch {tmp_path}/canary']"
    (tmp_path / "options.yaml").write_text(f"task_weight: !!python/{tag} {value}\n")
    with pytest.raises(yaml.YAMLError, match=tag.split(":")[1].split(".")[0]):
        DistillationModule.load_from_checkpoint(
            checkpoint(), hparams_file=tmp_path / "options.yaml", student=support.student()
        )


# Configurations


def options(folder):
    quiet = ["--trainer.logger=false", f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    return [f"--config={EXAMPLE}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", *quiet]


CALLABLES = {
    "os.system": "command",
    "subprocess.Popen": "args",
    "subprocess.getoutput": "cmd",
    "builtins.eval": "source",
    "functools.partial": "func",
    "webbrowser.open": "url",
}
PLACES = {
    "model.student": "{model: {student: %s}}",
    "model.teacher": "{model: {teacher: %s}}",
    "model.losses": "{model: {losses: [%s]}}",
    "model.task_loss": "{model: {task_loss: %s}}",
    "model.task_weight": "{model: {task_weight: %s}}",
    "model.optimizer": "{model: {optimizer: %s}}",
    "model.lr_scheduler": "{model: {lr_scheduler: %s}}",
    "data": "{data: %s}",
    "trainer.callbacks": "{trainer: {callbacks: [%s]}}",
    "trainer.logger": "{trainer: {logger: %s}}",
    "trainer.strategy": "{trainer: {strategy: %s}}",
    "trainer.plugins": "{trainer: {plugins: [%s]}}",
    "trainer.profiler": "{trainer: {profiler: %s}}",
}


def refused(config, folder, capsys):
    """Return what the command line says of a configuration before it builds anything."""
    (folder / "bad.yaml").write_text(config)
    with pytest.raises(SystemExit) as stop:
        run(["fit", *options(folder), f"--config={folder}/bad.yaml"])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("place", PLACES)
def test_no_place_in_a_configuration_takes_a_callable_of_another_kind(place, tmp_path, canary, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    described = f"{{class_path: subprocess.Popen, init_args: {{args: touch {canary}, shell: true}}}}"
    message = refused(PLACES[place] % described, tmp_path, capsys)
    assert "subprocess.Popen" in message
    assert f'"{place}' in message


@pytest.mark.parametrize("place", ["model.teacher", "model.optimizer"])
@pytest.mark.parametrize("path", CALLABLES)
def test_a_configuration_makes_nothing_but_what_is_expected(path, place, tmp_path, canary, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for described in (f"{{class_path: {path}, init_args: {{{CALLABLES[path]}: touch {canary}}}}}", path):
        message = refused(PLACES[place] % described, tmp_path, capsys)
        assert path.rpartition(".")[2] in message  # some versions of the parser name the module that defines it
        assert f'"{place}' in message


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch CANARY']", "!!python/object/new:os.system ['touch CANARY']"]
)
def test_a_configuration_has_no_tags_that_run_code(tag, tmp_path, canary, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = f"model:\n  task_weight: {tag.replace('CANARY', str(canary))}\n"
    assert "os.system" in refused(config, tmp_path, capsys)


@pytest.mark.parametrize("task", ["fit", "validate", "test", "predict"])
def test_the_command_line_cannot_run_code_of_a_checkpoint(task, tmp_path, canary, monkeypatch):
    monkeypatch.chdir(ROOT)
    zipped(Hostile(canary), tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=f"bad.ckpt' holds '{CALLED}'"):
        run([task, *options(tmp_path), f"--ckpt_path={tmp_path}/bad.ckpt"])


def test_a_checkpoint_does_not_change_what_the_command_line_builds(tmp_path, strange_module, monkeypatch):
    monkeypatch.chdir(ROOT)
    cli = run(["fit", *options(tmp_path)])
    cli.trainer.save_checkpoint(tmp_path / "good.ckpt")
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    content["hyper_parameters"]["task_loss"] = {"class_path": f"{strange_module}.Net"}
    content["hyper_parameters"]["optimizer"]["init_args"]["lr"] = 99.0
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.warns(UserWarning, match=r"task_weight was 0\.1, is 0\.25"):
        again = run(["fit", *options(tmp_path), f"--ckpt_path={tmp_path}/bad.ckpt", "--model.task_weight=0.25"])
    assert type(again.model.task_loss) is torch.nn.CrossEntropyLoss
    assert again.model.task_weight == 0.25
    assert again.model.configure_optimizers()["optimizer"].defaults["lr"] == 0.05


# The source

FORBIDDEN = {"pickle.load", "pickle.loads", "eval", "exec", "__import__", "importlib.import_module", "yaml.load"}
FORBIDDEN |= {"yaml.unsafe_load", "yaml.full_load", "torch.export.load", "torch.jit.load", "torch.hub.load"}
RESTRICTED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def unsafe_calls(source):
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            option, value = RESTRICTED.get(name, (None, None))
            if name in FORBIDDEN or (option is not None and given.get(option) is not value):
                found.append(ast.unparse(node))
    return found


def test_the_source_calls_nothing_that_runs_what_it_reads():
    paths = list(Path(lightning_kd.__file__).parent.rglob("*.py"))
    assert len(paths) > 60
    assert {str(path): calls for path in paths if (calls := unsafe_calls(path.read_text()))} == {}


def test_the_rule_sees_an_unsafe_call():
    source = "torch.load(f)\ntorch.load(f, weights_only=True)\ntorch.load(f, weights_only=no)\npickle.loads(b)\neval(s)"
    assert unsafe_calls(source) == ["torch.load(f)", "torch.load(f, weights_only=no)", "pickle.loads(b)", "eval(s)"]


def test_tensors_are_read_when_they_are_used(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pt")
    assert load_plain(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2]
