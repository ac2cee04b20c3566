"""FSDP2: teachers that no process holds whole, and runs that are split, saved, resumed, compiled and refused."""

import os

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file

from lightning_kd import DistillationCallback
from lightning_kd.distributed.sharding import blocks, check_clips
from lightning_kd.losses import KDLoss, OFDLoss
from lightning_kd.teachers import BornAgain, EMATeacher
from tests import support
from tests.programs.distributed_fit import ShardedModule
from tests.programs.sharded_fit import SCENARIOS, student, teacher
from tests.support import processes

RESUMED = [f"{door} resumed from {kind}" for door in ("module", "callback") for kind in ("a folder", "one file")]

META = ["teacher on meta", "teacher on meta, callback", "student on meta"]
BIT_FOR_BIT = ["callback", "offloaded", *META, *RESUMED]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    save_file(teacher().state_dict(), folder / "teacher.safetensors")
    save_file(student().state_dict(), folder / "student.safetensors")
    processes.program("programs.sharded_fit", folder, *SCENARIOS, *RESUMED, limit=600)
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in (*SCENARIOS, *RESUMED)}


@pytest.fixture
def one_process_group():
    """Leave no process group, and no place in one, to the next test."""
    before = dict(os.environ)
    yield
    processes.leave_group()
    os.environ.clear()
    os.environ.update(before)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("scenario", BIT_FOR_BIT)
def test_trains_bit_for_bit_what_the_plain_run_trains(scenario, facts):
    assert_same(facts[scenario]["student"], facts["module"]["student"])
    assert facts[scenario]["split"]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "own format"])
def test_the_teacher_stays_as_it_was(scenario, facts):
    assert_same(facts[scenario]["teacher"], teacher().state_dict())


@pytest.mark.slow
def test_a_teacher_in_its_own_format_is_split_in_that_format(facts):
    assert facts["own format"]["split"]
    assert facts["own format"]["dtype"] == "torch.bfloat16"
    assert facts["module"]["dtype"] == "torch.float32"


@pytest.mark.slow
def test_a_hook_may_leave_the_teacher_whole(facts):
    assert not facts["replicated"]["split"]
    for name, expected in facts["module"]["student"].items():
        torch.testing.assert_close(facts["replicated"]["student"][name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_weights_of_the_tasks_loss_are_split_and_train(facts):
    found = facts["weights in the task's loss"]
    assert found["task split"]  # the strategy averages the gradients of what is split, and of nothing else
    assert found["task"]["bias"].abs().min() > 0


@pytest.mark.slow
def test_compiled_blocks_train_alike(facts):
    for name, expected in facts["module"]["student"].items():
        torch.testing.assert_close(facts["compiled"]["student"][name], expected, rtol=1e-5, atol=1e-6)


def test_blocks_that_share_parameters_stay_with_the_rest():
    network = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 3), "middle": torch.nn.Linear(3, 3)})
    network["head"] = torch.nn.Linear(3, 4, bias=False)
    network["head"].weight = network["embedding"].weight
    assert blocks(network) == [network["middle"]]


def fit(made, callbacks=(), data_parallel_size=1, **options):
    strategy = ModelParallelStrategy(data_parallel_size, 1, **options)
    support.fit(made, strategy=strategy, devices=1, callbacks=list(callbacks))


@pytest.mark.parametrize("algorithm", [None, "norm"])
def test_a_strategy_that_cannot_clip_by_norm_is_told_at_set_up(algorithm):
    trainer = support.trainer(gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)
    check_clips(trainer)
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})  # the strategy itself wants a GPU
    with pytest.raises(MisconfigurationException, match=r"FSDPStrategy cannot clip.*ModelParallelStrategy.*'value'"):
        check_clips(trainer)
    trainer.gradient_clip_algorithm = "value"
    check_clips(trainer)


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.filterwarnings("ignore:.*self.log.'user_val'.*sync_dist:UserWarning")  # the user's own
@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_teacher_on_meta_is_there_for_an_evaluation_alone(door, tmp_path):
    file = tmp_path / "teacher.safetensors"
    save_file(support.teacher().state_dict(), file)
    options = {"teacher_weights": str(file)}
    made, callbacks = support.module(teacher=support.teacher().to("meta"), **options), []
    if door == "callback":
        made = ShardedModule(support.student())
        callbacks = [DistillationCallback(support.teacher().to("meta"), support.default_losses(), **options)]
    (expected,) = support.trainer().validate(support.module(), support.loader(), verbose=False)
    sharded = support.trainer(callbacks=callbacks, strategy=ModelParallelStrategy(1, 1), devices=1)
    (found,) = sharded.validate(made, support.loader(), verbose=False)
    for name in ("val/agreement", "val/teacher_accuracy"):
        assert found[name] == pytest.approx(expected[name])


@pytest.mark.usefixtures("one_process_group")
class TestRefused:
    @pytest.mark.parametrize("role", ["student", "teacher"])
    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_network_that_is_compiled_as_one_graph(self, role, in_place):
        networks = {"student": support.student(), "teacher": support.teacher()}
        if in_place:
            networks[role].compile(fullgraph=True, backend="aot_eager")
        else:
            networks[role] = torch.compile(networks[role], fullgraph=True, backend="aot_eager")
        made = support.module(networks["student"], teacher=networks["teacher"])
        remedy = rf"The {role} is compiled with fullgraph=True.*for block in {role}.children\(\)"
        with pytest.raises(MisconfigurationException, match=remedy):
            fit(made)

    def test_generations(self):
        with pytest.raises(MisconfigurationException, match=r"BornAgain copies and resets whole networks.*DDP"):
            fit(support.module(teacher=None), [BornAgain(generations=2)])

    def test_a_student_without_weights(self):
        with pytest.raises(ValueError, match=r"student .*on the meta device.*shard_student.*materialize"):
            fit(support.module(support.student().to("meta")))

    def test_a_mean_teacher_of_a_student_that_is_split_already(self):
        made, callbacks = ShardedModule(support.student()), [DistillationCallback(None, [KDLoss()]), EMATeacher()]
        with pytest.raises(MisconfigurationException, match=r"EMATeacher copies the student.*DistillationModule"):
            fit(made, callbacks)

    def test_a_loss_that_reads_the_weights_of_a_teacher_without_any(self):
        guide, losses = support.teacher().to("meta"), [OFDLoss("features.1", "features.1")]
        made = support.module(teacher=guide, losses=losses, teacher_weights="unread.safetensors")
        with pytest.raises(ValueError, match=r"'ofd' reads the weights of the teacher's layers.*meta"):
            fit(made)
