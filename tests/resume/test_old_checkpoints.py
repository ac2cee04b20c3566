"""Checkpoints that earlier code wrote: they load, go on, and end where the run that wrote them has ended.

``tests/golden/checkpoints`` holds them, and what was trained; this file only reads them.
"""

import functools
import os

import pytest
import torch
from safetensors.torch import load_file

from lightning_kd import DistillationModule
from lightning_kd.losses import CRDLoss
from lightning_kd.teachers import from_checkpoint
from tests.golden.checkpoints.archive import FOLDER, bits, environment, path_of, read
from tests.golden.checkpoints.scenarios import COMMAND_LINE, ROOT, SCENARIOS, User, fit, make

# Lightning warns if a newer Lightning wrote a checkpoint, which does not change what it holds
pytestmark = pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning:UserWarning")

FITS = [(name, door) for name, scenario in SCENARIOS.items() for door in scenario.doors]
POINTS = [(name, door, point) for name, door in FITS for point in SCENARIOS[name].points]
PREFIX = {"module": "student.", "callback": "net.", COMMAND_LINE: "student."}
LAST = [(name, door, SCENARIOS[name].points[-1]) for name, door in FITS]
STUDENT = {"digits": "DigitsConvNet", "digits-generations": "DigitsConvNet"}


@pytest.fixture(scope="module", autouse=True)
def _as_when_they_were_written():
    """With one thread, because sums are split among threads, and where the paths of the command line begin."""
    threads, folder = torch.get_num_threads(), os.getcwd()
    torch.set_num_threads(1)
    os.chdir(ROOT)
    yield
    torch.set_num_threads(threads)
    os.chdir(folder)


@functools.cache
def golden(name):
    return read(path_of(name))


@pytest.fixture(scope="module", autouse=True)
def _crd_draws_as_when_they_were_written():
    """A run of today draws each row once; a checkpoint of before goes on with replacement by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CRDLoss, "_repeats_only_if_it_must", False)
        yield


def test_an_old_checkpoint_tells_by_itself_how_rows_were_drawn(stored):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CRDLoss, "_repeats_only_if_it_must", True)
        module = make("crd", "module", other=True)
        file = stored("crd", "module", "batch-4")
        nets = {"student": module.student, "teacher": module.teacher}
        loss = DistillationModule.load_from_checkpoint(file, **nets).losses["crd"]
    assert "draw_rule" not in loss.state_dict()
    torch.manual_seed(0)
    repeats = [len(row.unique()) < len(row) for row in loss.draw(torch.zeros(50, dtype=torch.long))[:, 1:]]
    assert any(repeats)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a function that gives the path of a checkpoint that earlier code wrote."""

    @functools.cache
    def path(name, door, point):
        file = tmp_path_factory.mktemp("stored") / f"{point}.ckpt"
        file.write_bytes(golden(name).checkpoints[door, point])
        return file

    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function that fits without interruption, once, and gives the run and the folder of its checkpoints."""

    @functools.cache
    def run(name, door):
        folder = tmp_path_factory.mktemp("whole")
        return fit(name, door, folder), folder

    return run


def same_numbers(name):
    """Whether this machine and this torch compute exactly what those have computed that wrote a scenario's file."""
    return environment().items() <= golden(name).written.items()


def check_same(run, expected, *, lines=0, but=None):
    """See that two runs have ended with the same bits, and logged the same ones after a number of lines.

    Args:
        run: What a fit has come to.
        expected: What it must have come to.
        lines: How many lines were logged before it went on.
        but: What begins the names of weights that are left out.
    """
    assert run.end.keys() == expected.end.keys()
    names = [name for name in run.end if but is None or not name.startswith(but)]
    different = [name for name in names if bits(run.end[name]) != bits(expected.end[name])]
    assert not different, different
    assert run.curve == expected.curve[lines:]


def check_close(run, expected, tolerance, *, lines=0, but=None):
    """See that two runs have ended alike, in another arithmetic; the other arguments are those of check_same."""
    options = {"rtol": tolerance, "atol": tolerance}
    assert run.end.keys() == expected.end.keys()
    for name, value in run.end.items():
        if but is None or not name.startswith(but):
            torch.testing.assert_close(value, expected.end[name], msg=lambda m, name=name: f"{name}: {m}", **options)
    # another Lightning logs the values of a step in another order
    got, rest = ([(step, sorted(values.items())) for step, values in c] for c in (run.curve, expected.curve[lines:]))
    assert [(step, [name for name, _ in values]) for step, values in got] == [
        (step, [name for name, _ in values]) for step, values in rest
    ]
    numbers, stored = ([float.fromhex(v) for _, values in curve for _, v in values] for curve in (got, rest))
    assert numbers == pytest.approx(stored, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(("name", "door"), FITS)
def test_the_uninterrupted_run_ends_where_it_ended(name, door, whole):
    run, expected = whole(name, door)[0], golden(name).runs[door]
    if same_numbers(name):
        check_same(run, expected)
    else:
        check_close(run, expected, SCENARIOS[name].tolerance)
    assert run.lines == expected.lines


@pytest.mark.parametrize(("name", "door", "point"), POINTS)
def test_a_run_goes_on_and_ends_where_it_ended(name, door, point, stored, whole, tmp_path):
    expected = golden(name).runs[door]
    rest = {"lines": expected.lines[point], "but": SCENARIOS[name].not_saved.get(door)}
    run = fit(name, door, tmp_path, stored(name, door, point))
    if same_numbers(name):
        check_same(run, expected, **rest)
        return
    check_close(run, expected, SCENARIOS[name].tolerance, **rest)
    # the first part was computed elsewhere: that every bit is brought back shows with a checkpoint of this machine
    here, folder = whole(name, door)
    check_same(fit(name, door, tmp_path, folder / f"{point}.ckpt"), here, **rest)


def weights(path, prefix):
    """Weights in a checkpoint whose names begin with a prefix, which is cut off; read with torch alone."""
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def check_holds(module, expected):
    found = module.state_dict()
    assert found.keys() == expected.keys()
    # what was trained in 16 bits is read into a network in 32
    assert [name for name in found if bits(found[name]) != bits(expected[name].to(found[name].dtype))] == []


@pytest.mark.parametrize(("name", "door", "point"), [last for last in LAST if last[1] == "module"])
def test_the_module_is_made_of_a_checkpoint(name, door, point, stored):
    file, first, second = stored(name, door, point), make(name, door, other=True), make(name, door, other=True)
    nets = {"student": first.student, "teacher": first.teacher}
    given = {} if SCENARIOS[name].described else {"losses": list(first.losses.values())}
    loaded = DistillationModule.load_from_checkpoint(file, **nets, **given)
    check_holds(loaded.student, weights(file, "student."))
    check_holds(loaded.losses, weights(file, "losses."))
    # what the checkpoint describes is what the scenario constructs
    nets, parts = {"student": second.student, "teacher": second.teacher}, list(second.losses.values())
    constructed = DistillationModule.load_from_checkpoint(file, **nets, losses=parts)
    assert repr(loaded.losses) == repr(constructed.losses)
    assert repr(loaded.task_weight) == repr(second.module.task_weight)
    assert loaded.lr_interval == second.module.lr_interval
    if loaded.teacher is not None:
        assert {p.dtype for p in loaded.teacher.parameters()} == {p.dtype for p in second.teacher.parameters()}


@pytest.mark.parametrize(("name", "door", "point"), [last for last in LAST if last[1] == "callback"])
def test_the_users_module_is_made_of_a_checkpoint_without_the_callback(name, door, point, stored):
    file, made = stored(name, door, point), make(name, door, other=True)
    loaded = User.load_from_checkpoint(file, net=made.student, scenario=SCENARIOS[name])
    check_holds(loaded.net, weights(file, "net."))


@pytest.mark.parametrize(("name", "door", "point"), [last for last in LAST if last[1] == COMMAND_LINE])
def test_the_module_is_made_of_a_checkpoint_of_the_command_line_alone(name, door, point, stored):
    file = stored(name, door, point)
    loaded = DistillationModule.load_from_checkpoint(file)
    assert type(loaded.student).__name__ == STUDENT[name]
    check_holds(loaded.student, weights(file, "student."))
    check_holds(loaded.losses, weights(file, "losses."))


@pytest.mark.parametrize(("name", "door", "point"), LAST)
def test_the_student_is_read_and_exported(name, door, point, stored, tmp_path):
    from lightning_kd.commands.export import export  # the only name here that may move

    file, prefix = stored(name, door, point), PREFIX[door]
    expected = weights(file, prefix)
    if door != COMMAND_LINE:
        check_holds(from_checkpoint(make(name, door, other=True).student, file, prefix), expected)
    export([f"--checkpoint={file}", f"--output={tmp_path}/student.safetensors", f"--prefix={prefix}"])
    exported = load_file(tmp_path / "student.safetensors")
    assert {key: bits(value) for key, value in exported.items()} == {key: bits(v) for key, v in expected.items()}


def test_a_program_is_exported_from_a_checkpoint_of_the_command_line_alone(stored, tmp_path):
    from lightning_kd.commands.export import export

    file = stored("digits", COMMAND_LINE, "batch-5")
    export([f"--checkpoint={file}", f"--output={tmp_path}/student.pt2"])
    student = DistillationModule.load_from_checkpoint(file).student.eval()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(torch.export.load(tmp_path / "student.pt2").module()(images), student(images))


def test_every_scenario_has_its_file_and_every_file_its_scenario():
    assert {path.name for path in FOLDER.glob("*.tar.xz")} == {path_of(name).name for name in SCENARIOS}
    for name, door, point in POINTS:
        assert (door, point) in golden(name).checkpoints
