"""What an arm is: its losses, the full task loss of the student alone, and nothing else that differs."""

import copy

import pytest

from lightning_kd.comparison.arms import STUDENT_ALONE, arms_named, configuration_of, for_evaluation, losses_of, quiet
from lightning_kd.losses import strategies

KD = {"class_path": "lightning_kd.losses.KDLoss", "init_args": {"temperature": 5.0, "weight": 0.3}}
HINT = {"class_path": "lightning_kd.losses.HintLoss", "init_args": {"student": "a", "teacher": "b"}}
BASE = {
    "seed_everything": 7,
    "model": {
        "teacher": "net",
        "losses": [KD, HINT],
        "task_weight": 0.1,
        "optimizer": {"class_path": "torch.optim.SGD"},
    },
    "trainer": {
        "max_epochs": 3,
        "callbacks": [
            {"class_path": "lightning_kd.EMATeacher"},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "elsewhere"}},
            {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        ],
    },
    "data": {"class_path": "lightning_kd.data.DigitsDataModule"},
}


def without(configuration, *places):
    made = copy.deepcopy(configuration)
    for place in places:
        *above, last = place.split(".")
        inner = made
        for key in above:
            inner = inner[key]
        inner.pop(last)
    return made


def test_two_arms_differ_by_their_losses_alone():
    one = configuration_of(BASE, "response_based", 2, [0.5])
    two = configuration_of(BASE, "feature_based", 2, [7.0])
    assert without(one, "model.losses") == without(two, "model.losses")
    assert one["model"]["losses"][0]["init_args"] == {"temperature": 5.0, "weight": 0.5}
    assert two["model"]["losses"][0]["init_args"] == {"student": "a", "teacher": "b", "weight": 7.0}
    assert (one["seed_everything"], one["model"]["task_weight"]) == (2, 1.0)


@pytest.mark.parametrize("weights", [[], None])
def test_the_student_alone_has_the_full_task_loss_and_no_teacher_of_any_kind(weights):
    made = configuration_of(BASE, STUDENT_ALONE, 1, weights)
    assert (made["model"]["task_weight"], made["model"]["teacher"], made["model"]["losses"]) == (1.0, None, None)
    paths = [callback["class_path"] for callback in made["trainer"]["callbacks"]]
    assert paths == [
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning_kd.comparison.SameDraws",
    ]


def test_configured_weights_stay():
    made = configuration_of(BASE, "response_based", 1, None)
    assert made["model"]["losses"] == [KD]
    assert made["model"]["task_weight"] == 0.1


def test_the_configuration_itself_stays_as_it_was():
    before = copy.deepcopy(BASE)
    quiet(configuration_of(BASE, "hybrid", 1, [1.0, 2.0]), "folder")
    for_evaluation(BASE)
    assert before == BASE


def test_hybrid_takes_the_losses_of_the_configuration():
    assert losses_of("hybrid", [KD, HINT]) == [KD, HINT]
    assert [loss["class_path"][20:] for loss in losses_of("hybrid", [KD])] == ["KDLoss", "HintLoss"]


@pytest.mark.parametrize("strategy", strategies.DistillationStrategyType)
def test_every_strategy_has_losses(strategy):
    (first, *_) = losses_of(strategy.name.lower(), None)
    component = "KDLoss" if strategy.name == "HYBRID" else strategy.component.__name__
    assert first["class_path"] == f"lightning_kd.losses.{component}"
    assert first["init_args"] == strategy.defaults({})


def test_losses_with_a_memory_get_rows():
    rows = {arm: configuration_of(BASE, arm, 1, [1.0])["data"]["init_args"] for arm in arms_named("all")[1:-1]}
    assert [arm for arm, options in rows.items() if options["with_index"]] == ["contrastive_based"]


def test_a_quiet_fit_writes_into_its_folder_alone():
    made = quiet(configuration_of(BASE, STUDENT_ALONE, 1, []), "folder")["trainer"]
    assert made["default_root_dir"] == made["logger"]["init_args"]["save_dir"] == "folder"
    assert not made["enable_checkpointing"]
    assert "ModelCheckpoint" not in str(made["callbacks"])


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"'respons_based'\. Did you mean 'response_based'"):
        arms_named("respons_based")
    with pytest.raises(ValueError, match="at least one"):
        arms_named(",")
