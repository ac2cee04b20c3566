"""Student and teacher with tokenizers of their own: each reads its columns of the batch, ULDLoss the labels of both."""

from functools import partial

import pytest
import torch
import transformers as hf
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.functional import uld_loss
from lightning_kd.losses import TokenKDLoss, ULDLoss
from lightning_kd.teachers import OwnColumns
from tests import support
from tests.ecosystem import zoo
from tests.losses.tokens.test_in_fit import UsersModule

MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SIZES = zoo.WIDE | {"num_hidden_layers": 2}


def llama(vocabulary: int = 50) -> hf.LlamaForCausalLM:
    config = hf.LlamaConfig(vocab_size=vocabulary, initializer_range=0.3, **SIZES, **MARKS)
    return support.seeded(lambda: hf.LlamaForCausalLM(config), 1)


def gpt2(vocabulary: int = 61) -> hf.GPT2LMHeadModel:
    config = hf.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, **MARKS)
    return support.seeded(lambda: hf.GPT2LMHeadModel(config), 2)


def t5() -> hf.T5ForConditionalGeneration:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    config = hf.T5Config(vocab_size=61, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2, **sizes)
    return support.seeded(lambda: hf.T5ForConditionalGeneration(config), 3)


def side(length: int, vocabulary: int, prompt: list[int], answer: list[int], *, left: bool) -> list[Tensor]:
    """Token ids, mask and labels of two texts, padded on a side."""
    ids, mask, labels = torch.zeros(2, length).long(), torch.zeros(2, length).long(), torch.full((2, length), -100)
    generator = torch.Generator().manual_seed(vocabulary)
    for row in range(2):
        size = prompt[row] + answer[row]
        at = slice(length - size, length) if left else slice(0, size)
        ids[row, at] = torch.randint(1, vocabulary, (size,), generator=generator)
        mask[row, at] = 1
        labels[row, at][prompt[row] :] = ids[row, at][prompt[row] :]
    return [ids, mask, labels]


def batch(*, vocabulary: int = 61, length: int = 9, left: bool = False) -> dict[str, Tensor]:
    ours = side(7, 50, [2, 3], [5, 2], left=False)
    theirs = side(length, vocabulary, [3, 2], [4, 5], left=left)
    names = ("input_ids", "attention_mask", "labels")
    return dict(zip(names, ours, strict=True)) | {
        f"teacher_{name}": value for name, value in zip(names, theirs, strict=True)
    }


def logits(network: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """What a network says of each text by itself, without padding."""
    found = torch.zeros(*ids.shape, network.config.vocab_size)
    for row, real in enumerate(mask.bool()):
        with torch.no_grad():
            found[row, real] = network.eval()(input_ids=ids[row : row + 1, real]).logits[0]
    network.train()
    return found


def expected(data: dict[str, Tensor], student: torch.nn.Module, teacher: torch.nn.Module) -> float:
    ours = logits(student, data["input_ids"], data["attention_mask"])
    theirs = logits(teacher, data["teacher_input_ids"], data["teacher_attention_mask"])
    return uld_loss(ours, theirs, data["labels"], data["teacher_labels"]).item()


def fit(module: DistillationModule, *batches: dict[str, Tensor], **options: object) -> dict[str, float]:
    loader = DataLoader(batches, batch_size=None)
    trainer = support.trainer(max_epochs=1, **options)
    trainer.fit(module, loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def made(student: torch.nn.Module, teacher: torch.nn.Module, *losses: object) -> DistillationModule:
    still = partial(torch.optim.SGD, lr=0.0)
    return DistillationModule(student, teacher, list(losses), optimizer=still, teacher_inputs=OwnColumns())


@pytest.mark.parametrize("left", [False, True])
def test_each_network_reads_its_own_tokens_and_labels(left: bool) -> None:
    student, teacher, data = llama(), gpt2(), batch(left=left)
    seen: list[dict[str, Tensor]] = []
    teacher.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    found = fit(made(student, teacher, ULDLoss()), data)
    value = expected(data, student, teacher)
    assert found["train/uld"] == pytest.approx(value, rel=1e-4)
    assert found["val/uld"] == found["val/loss"] == pytest.approx(value, rel=1e-4)
    scores, labels = logits(student, data["input_ids"], data["attention_mask"])[:, :-1], data["labels"][:, 1:]
    entropy = torch.nn.functional.cross_entropy(scores[labels != -100], labels[labels != -100])
    assert found["val/perplexity"] == pytest.approx(entropy.exp().item(), rel=1e-4)
    assert not {"val/teacher_perplexity", "val/teacher_accuracy", "val/agreement"} & set(found)
    assert all("labels" not in kwargs for kwargs in seen)
    assert torch.equal(seen[-3]["input_ids"], data["teacher_input_ids"])


def test_a_teacher_that_makes_its_decoders_inputs_of_the_labels() -> None:
    student, teacher, data = llama(), t5(), batch()
    found = fit(made(student, teacher, ULDLoss()), data)
    names = ("input_ids", "attention_mask", "labels")
    with torch.no_grad():
        theirs = teacher.eval()(**{name: data[f"teacher_{name}"] for name in names}).logits
    ours = logits(student, data["input_ids"], data["attention_mask"])
    # its logits stand at the token that they predict
    before, labels = torch.nn.functional.pad(theirs, (0, 0, 0, 1)), data["teacher_labels"]
    moved = torch.nn.functional.pad(labels, (1, 0), value=-100)
    wanted = uld_loss(ours, before, data["labels"], moved).item()
    assert found["train/uld"] == pytest.approx(wanted, rel=1e-4)
    assert found["val/uld"] == pytest.approx(wanted, rel=1e-4)


def test_the_callback_does_the_same() -> None:
    student, teacher, data = llama(), gpt2(), batch()
    door = DistillationCallback(teacher, [ULDLoss()], teacher_inputs=OwnColumns())
    loader = DataLoader([data], batch_size=None)
    trainer = support.trainer(max_epochs=1, callbacks=[door], limit_val_batches=0)
    value = expected(data, student, teacher)
    trainer.fit(UsersModule(student), loader, loader)
    assert float(trainer.callback_metrics["train/uld"]) == pytest.approx(value, rel=1e-4)


def test_it_trains_and_goes_on_from_a_checkpoint(tmp_path) -> None:
    def module() -> DistillationModule:
        step = partial(torch.optim.SGD, lr=0.1)
        return DistillationModule(llama(), gpt2(), [ULDLoss()], optimizer=step, teacher_inputs=OwnColumns())

    loader = DataLoader([batch(), batch(left=True)], batch_size=None)
    whole, first, second = module(), module(), module()
    for one, epochs, path in ((whole, 2, None), (first, 1, None), (second, 2, tmp_path / "first.ckpt")):
        trainer = support.trainer(max_epochs=epochs, limit_val_batches=0)
        trainer.fit(one, loader, loader, ckpt_path=path)
        if one is first:
            trainer.save_checkpoint(tmp_path / "first.ckpt")
    start = llama().state_dict()
    weights = whole.student.state_dict()
    assert any(not torch.equal(weights[name], value) for name, value in start.items())
    for name, value in second.student.state_dict().items():
        assert torch.equal(weights[name], value)


def test_in_yaml(tmp_path) -> None:
    (tmp_path / "fit.yaml").write_text("""
model:
  student: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 2}}
  teacher: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 3}}
  losses: [{class_path: lightning_kd.losses.ULDLoss}]
  teacher_inputs: {class_path: lightning_kd.teachers.OwnColumns}
""")
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(DistillationModule, "model")
    module = parser.instantiate_classes(parser.parse_path(str(tmp_path / "fit.yaml"))).model
    assert isinstance(module.teacher_view, OwnColumns)


def test_what_cannot_be_is_refused_at_set_up() -> None:
    data = batch()
    unlabelled = {name: value for name, value in data.items() if name != "teacher_labels"}
    with pytest.raises(ValueError, match="ULDLoss needs the labels of these too"):
        fit(made(llama(), gpt2(), ULDLoss()), unlabelled)
    with pytest.raises(ValueError, match="for different tokenizers use ULDLoss"):
        fit(made(llama(), gpt2(), TokenKDLoss()), data)
    alike = batch(vocabulary=50, length=7)  # of one shape, but of other tokens
    with pytest.raises(ValueError, match="TokenKDLoss compares both networks token by token, but the teacher reads"):
        fit(made(llama(), gpt2(50), TokenKDLoss()), alike)
    own = {name: value for name, value in data.items() if not name.startswith("teacher_")}
    with pytest.raises(ValueError, match="no column of the batch begins with 'teacher_'"):
        fit(made(llama(), gpt2(), ULDLoss()), own)


def test_one_tokenizer_after_all_is_no_reason_to_refuse() -> None:
    data = batch()
    same = {name: value for name, value in data.items() if not name.startswith("teacher_")}
    same |= {f"teacher_{name}": value for name, value in same.items()}
    assert fit(made(llama(), gpt2(50), TokenKDLoss()), same)["train/token_kd"] > 0
