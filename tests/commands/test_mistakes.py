"""Every mistake is answered in one line that names it, with the nearest names, and with exit code 2."""

from pathlib import Path

import pytest

from .conftest import FIT


def the_line(answer):
    """The one line that says what is wrong, of an answer that ends in exit code 2 and fits on a screen."""
    code, out, err = answer
    assert (code, out) == (2, "")
    line, *rest = [line for line in err.splitlines() if not line.startswith("Seed set")]
    assert len(rest) <= 1
    assert len(line) < 500
    assert line.startswith("lightning-kd")
    assert "Traceback" not in err
    assert "Union subtypes" not in err
    return line


TYPOS_IN_YAML = {
    "option of the module": ("losses:", "loses:", "'model.loses'", "'model.losses'"),
    "option of the trainer": ("fast_dev_run", "fast_dev_rum", "'trainer.fast_dev_rum'", "'trainer.fast_dev_run'"),
    "group": ("trainer:", "trianer:", "'trianer.", "'trainer."),
    "option with a class in it": ("student:", "studnt:", "'model.studnt.", "'model.student'"),
    "option without a group": ("data:", "dta:", "'dta'", "'data'"),
    "option of a loss": ("temperature", "temprature", "'temprature'", "'temperature'"),
    "option of a network": ("width", "wiidth", "DigitsConvNet: Option 'wiidth'", "'width'"),
    "loss": ("HintLoss", "HintLos", "no class 'HintLos'", "'HintLoss'"),
    "loss with options": ("- HintLoss", "- {HintLos: {weight: 2}}", "no class 'HintLos'", "'HintLoss'"),
    "strategy": ("HintLoss", "RESPONS_BASED", "no class 'RESPONS_BASED'", "'RESPONSE_BASED'"),
    "network": ("DigitsConvNet", "DigitsConvNets", "no class 'DigitsConvNets'", "'DigitsConvNet'"),
    "data module": ("DigitsDataModule", "DigitDataModul", "no class 'DigitDataModul'", "'DigitsDataModule'"),
    "path of a class": ("torch.optim.SGD", "torch.optim.SDG", "no attribute 'SDG'", "'torch.optim.SGD'"),
    "module of a class": ("torch.optim.SGD", "torcch.optim.SGD", "No module named 'torcch'", "'torch'"),
    "key of a class": (
        "{class_path: KDLoss",
        "{class_pth: KDLoss",
        "line 6, column 8: there is no key",
        "'class_path'",
    ),
    "key of a class's options": ("init_args: {temp", "init_arg: {temp", "line 6, column 28", "'init_args'"),
    "class in a class": ("5.0", "{class_path: CosineSchedul}", '"temperature": ', "'CosineSchedule'"),
    "option of a class in a class": (
        "5.0",
        "{class_path: CosineSchedule, init_args: {strt: 1}}",
        "CosineSchedule: Option 'strt'",
        "'start'?",
    ),
    "loss in a loss": ("HintLoss", "{hybrid: {losses: [KDLoss, ATLos]}}", "no class 'ATLos'", "'ATLoss'"),
    "callback": ("trainer: {", "trainer: {callbacks: [EarlyStoping], ", "no class 'EarlyStoping'", "'EarlyStopping'"),
}


@pytest.mark.parametrize(("right", "wrong", "named", "nearest"), TYPOS_IN_YAML.values(), ids=TYPOS_IN_YAML)
def test_a_typing_error_in_yaml_is_answered_with_the_nearest_name(right, wrong, named, nearest, fit_with):
    line = the_line(fit_with(change=[(right, wrong)]))
    assert named in line
    assert line.count("Did you mean") == 1
    assert line.partition("Did you mean ")[2].startswith(nearest)


TYPOS_IN_WORDS = {
    "option": (["--model.task_wieght=2"], "'--model.task_weight'"),
    "shortened option": (["--trainer.max_epoch", "2"], "'--trainer.max_epochs'"),
    "Lightning's own place of an option": (["--optimizer", "AdamW"], "'--model.optimizer'"),
    "option without its group": (["--max_epochs=3"], "'--trainer.max_epochs'"),
    "part of an option": (["--epochs", "3"], "'--trainer.m"),
    "option of the module without its group": (["--losses=[kd]"], "'--model.losses'"),
    "option of the default optimizer": (["--lr=0.1"], "'--model.optimizer.lr'"),
    "a file without its option": (["README.md"], "'--config README.md'"),
    "loss": (["--model.losses", "[attention_based, KDLos]"], "'KDLoss'"),
    "strategy": (["--model.losses=ATENTION_BASED"], "'ATTENTION_BASED'"),
    "loss that is appended": (["--model.losses+=HintLos"], "'HintLoss'"),
    "option of a loss": (["--model.losses.kd.temprature=2"], "'temperature'"),
    "loss of an option": (["--model.losses.kdd.temperature=2"], "'--model.losses.kd.temperature'"),
    "option of a data module": (["--data", "DigitsDataModule", "--data.batch_sise=3"], "'batch_size'"),
    "choice": (["--model.lr_interval", "epok"], "'epoch'"),
    "function": (
        ["--model.teacher", "lightning_kd.teachers.from_checkpont"],
        "'lightning_kd.teachers.from_checkpoint'",
    ),
    "class whose help is wanted": (["--model.losses.help=KDLos"], "'KDLoss'"),
    "strategy whose help is wanted": (["--model.losses.help", "HYBRIT"], "'HYBRID'"),
}


@pytest.mark.parametrize(("words", "nearest"), TYPOS_IN_WORDS.values(), ids=TYPOS_IN_WORDS)
def test_a_typing_error_on_the_command_line_is_answered_with_the_nearest_name(words, nearest, fit_with, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert the_line(fit_with(*words)).partition("Did you mean ")[2].startswith(nearest)


def test_a_typing_error_of_export_is_answered_with_the_nearest_name(call):
    assert "Did you mean '--checkpoint'?" in the_line(call("export", "--checkpont", "a.ckpt", "--output", "a.pt"))


WRONG_FILES = {
    "missing": (None, "File does not exist: '"),
    "a folder": ("folder", "Path is not a file: '"),
    "no text": (bytes(range(256)), "cannot be read as a text of UTF-8"),
    "empty": (b"", "fit.yaml': expected options such as `model: ...`, got nothing"),
    "no options": (b"just words", "got 'just words'"),
    "a list": (b"[1, 2]", "got a list"),
    "no YAML": (b"model: [1\ntrainer: 2", "fit.yaml' cannot be read as YAML: line 2, column 8: "),
    "a key twice": (b"model: {}\ndata: x\nmodel: {}", "line 3, column 1: the key 'model' stands here and in line 1"),
    "a key twice in a class": (b"model: {student: {class_path: A, class_path: B}}", "the key 'class_path' stands"),
    "an anchor that contains itself": (b"model: &all {student: *all}", "line 1, column 8: this anchor contains itself"),
    "NUL": (b'trainer: {default_root_dir: "\\0"}', "line 1, column 29: this text contains the character NUL"),
    "an object of Python": (b"model: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a number of 5000 digits": (b"seed_everything: " + b"9" * 5000, "5000 digits"),
    "brackets in brackets": (b"[" * 20000 + b"]" * 20000, "cannot be read as YAML: "),
    "a misplaced option": (b"data: {class_path: A, batch_size: 2}", "'batch_size' stands beside class_path"),
    "options that are none": (b"model: {losses: {kd: 3}}", "expected the options of kd as {OPTION: VALUE, ...}, got 3"),
}


@pytest.mark.parametrize(("content", "words"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_is_no_configuration_is_named_with_the_place(content, words, call, tmp_path):
    file = tmp_path / "fit.yaml"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    assert words in the_line(call("fit", "--config", str(file)))


def test_aliases_that_expand_without_measure_are_refused_before_they_do(call, tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (tmp_path / "fit.yaml").write_text("\n".join(lines))
    line = the_line(call("fit", "--config", f"{tmp_path}/fit.yaml"))
    assert "line 5, column 5: its aliases expand to more than 100,000 values" in line


def test_a_merged_mapping_and_keys_of_other_mappings_are_no_double_keys(fit_with):
    merged = "model: &all\n  <<: {task_weight: 1.0}\n  student:"
    code, out, err = fit_with("--print_config", change=[("model:\n  student:", merged)])
    assert (code, err) == (0, "")
    assert "task_weight: 1.0" in out


def test_a_key_twice_in_a_word_is_named_with_its_option(fit_with):
    words = "--model.student={class_path: DigitsConvNet, init_args: {width: 1, width: 2}}"
    assert "--model.student: the value, line 1, column 51: the key 'width' stands" in the_line(fit_with(words))


def test_a_text_in_brackets_is_still_text(fit_with):
    code, out, err = fit_with("--trainer.default_root_dir=[a", "--print_config")
    assert (code, err) == (0, "")
    assert "default_root_dir: '[a'" in out


def test_what_is_missing_is_named_by_its_options(call):
    where = "on the command line or in a YAML file by --config."
    assert the_line(call("fit")) == f"lightning-kd fit: error: expected --data, {where}"
    said = the_line(call("fit", "--data", "DigitsDataModule"))
    assert said == f"lightning-kd fit: error: expected --model.student, {where}"
    assert the_line(call("export")) == "lightning-kd export: error: expected --checkpoint and --output."
    assert "expected one argument" in the_line(call("fit", "--config"))
    assert "expected a value" in the_line(call("fit", "--model.losses.kd.temperature"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "FILE", "fit"], "Put the command first: `lightning-kd fit --config FILE`."),
        (["--config", "FILE"], "put a command first: `lightning-kd fit --config FILE`."),
        (["--config", "FILE", "fti"], "Did you mean 'fit'?"),
        (["--confg", "FILE", "fit"], "there is no option before the command '--confg'. Did you mean '--config'"),
        (["--config", "FILE", "layers"], "Put the command first: `lightning-kd layers --config FILE`."),
        (["--output", "DIR", "init"], "Put the command first: `lightning-kd init --output DIR`."),
        (["--config=FILE", "export"], "Put the command first: `lightning-kd export --config=FILE`."),
        (["--confg=FILE", "fit"], "there is no option before the command '--confg'. Did you mean '--config'"),
    ],
)
def test_words_in_the_wrong_order_are_put_right(words, said, call, tmp_path):
    (tmp_path / "fit.yaml").write_text(FIT)
    file = f"{tmp_path}/fit.yaml"
    assert said in the_line(call(*(word.replace("FILE", file) for word in words))).replace(file, "FILE")


def test_a_value_of_another_type_is_named_with_what_is_expected(fit_with):
    assert the_line(fit_with("--trainer.max_epochs=two")).endswith('"trainer.max_epochs": Expected int; got two')
    assert '"width": Expected int, got six' in the_line(fit_with(change=[("width: 2", "width: six")]))
    assert 'max_epochs": Expected int, got inf' in the_line(fit_with("--trainer.max_epochs=1e999"))
    assert "os.system" in the_line(fit_with("--model.student=os.system", "--model.student.command=ls"))
