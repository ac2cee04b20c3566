"""``lightning-kd check``: what it shows of a fit, and what it warns of."""

import re
import warnings

import pytest
import torch

from lightning_kd.data.networks.digits import DigitsConvNet

from .conftest import FIT

TASK = ("  optimizer:", "  task_loss: torch.nn.CrossEntropyLoss\n  optimizer:")
LONG = ("fast_dev_run: true", "max_epochs: 3")


@pytest.fixture
def checked(call, tmp_path):
    """Check the configuration, changed by pairs of old and new text."""

    def run(*words, change=()):
        text = FIT
        for old, new in (LONG, *change):
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "fit.yaml").write_text(text)
        return call("check", "--config", f"{tmp_path}/fit.yaml", "--batches=4", *words)

    return run


def test_an_untrained_teacher_is_warned_of_and_the_parts_are_shown(checked):
    code, out, _ = checked("--fit_steps=0", "--strict=true", change=[TASK])
    assert code == 1  # which strict asks for
    assert "student 496 parameters, teacher 1,009 (2.0x)" in out
    assert "before the fit, on 256 training samples:" in out
    assert re.search(r"^  teacher accuracy +\d+\.\d%$", out, re.MULTILINE)
    assert re.search(r"^  teacher entropy at T=5 +\d+\.\d%", out, re.MULTILINE)
    shares = [float(share) for share in re.findall(r"^  (?:task|kd|hint) .* (\d+\.\d)% ", out, re.MULTILINE)]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert "WARNING: None of the teacher's 3 batch normalisation(s) has seen a batch" in out
    assert "one batch by heart" not in out


def test_a_teacher_of_the_students_size_and_a_student_that_cannot_learn_are_hinted_at(checked):
    frozen = ("init_args: {width: 3}", "init_args: {width: 2}")
    out = checked("--fit_steps=1", change=[TASK, frozen])[1]
    assert "hint: The student has 496 parameters, no fewer than the teacher (496)." in out
    assert re.search(r"hint: The student gets \d+ of 64 samples right after 1 steps on these alone", out)


def test_a_healthy_student_learns_a_batch_by_heart(checked):
    out = checked("--fit_steps=80", change=[TASK, ("width: 2", "width: 8")])[1]
    right = int(re.search(r"one batch by heart +(\d+) of 64 samples", out).group(1))
    assert right > 50
    assert "on these alone" not in out


def test_nothing_is_written_and_the_callbacks_of_lightning_do_not_run(checked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = ("trainer: {logger: false", "trainer: {callbacks: [ModelCheckpoint, LearningRateMonitor], logger: true")
    assert checked("--fit_steps=0", change=[callbacks])[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]


def test_what_is_refused_at_set_up_is_told_in_a_line(checked):
    wrong = ("- HintLoss", "- {class_path: HintLoss, init_args: {student: stage9, teacher: stage1}}")
    code, _, err = checked(change=[wrong])
    assert code == 2
    assert "stage9" in err
    assert "Traceback" not in err


def test_numbers_out_of_range_are_refused(call):
    code, _, err = call("check", "--config=a.yaml", "--batches=0")
    assert code == 2
    assert "expected --batches >= 1" in err


class Narrow(DigitsConvNet):
    """A network that has seen smaller numbers in training, as its statistics tell."""

    def __init__(self, width=3):
        super().__init__(width)
        for norm in self.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.num_batches_tracked.fill_(1)
                norm.running_var.fill_(1e-8)


def test_a_teacher_that_was_trained_at_another_scale_is_warned_of(checked):
    narrow = ("teacher: {class_path: DigitsConvNet", f"teacher: {{class_path: {__name__}.Narrow")
    with pytest.warns(UserWarning, match="first batch normalisation"):
        out = checked("--fit_steps=0", change=[narrow])[1]
    assert "WARNING: The teacher's first batch normalisation" in out
    assert "has seen a batch" not in out


def test_a_fit_has_a_doctor_that_can_be_switched_off(fit_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the fit leaves its configuration
    short = [
        LONG,
        ("trainer: {", "trainer: {limit_val_batches: 0, enable_checkpointing: false, log_every_n_steps: 1, "),
    ]

    def warned(*words):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            code, _, _ = fit_with("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", *words, change=short)
        assert code == 0
        return [str(one.message) for one in caught if "has seen a batch" in str(one.message)]

    (said,) = warned()
    assert "Doctor(batches=0) looks no more" in said
    assert warned("--doctor.batches=0") == []
