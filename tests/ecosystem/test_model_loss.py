"""The loss that a model of Hugging Face computes itself is the task's, by ``task_loss="model"``."""

import copy
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.engine.model_loss import ModelLoss
from lightning_kd.functional import kd_loss
from lightning_kd.losses import KDLoss, TokenKDLoss
from tests import support
from tests.ecosystem import zoo

pytestmark = pytest.mark.filterwarnings("ignore:val/.*is left out")  # of the last token alone
TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=50, initializer_range=0.3, **zoo.WIDE, **TOKENS))


class LastToken(DistillationModule):
    def logits_of(self, output):
        return output.logits[:, -1]


def sentences(first=7):
    ids = torch.tensor([[first, 5, 9, 3], [3, 8, 2, 11], [6, 4, 1, 2]])
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def token_means(student, batch):
    """The cross-entropy of each token given those before it, by hand."""
    with torch.no_grad():
        scores = student.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    student.train()
    return -torch.stack(
        [
            scores[b, i - 1].double().log_softmax(0)[batch["labels"][b, i]]
            for b in range(len(scores))
            for i in range(1, scores.shape[1])
            if batch["labels"][b, i] != -100
        ]
    )


def fit(module, *batches):
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, support.batches(batches[0]), support.batches(*batches))
    return trainer.callback_metrics


def test_it_is_the_mean_over_the_tokens():
    torch.manual_seed(0)
    student = llama()
    first, second = sentences(), sentences()
    second["labels"][1:] = -100
    still = partial(torch.optim.SGD, lr=0.0)
    module = LastToken(student, llama(), [KDLoss()], task_loss="model", optimizer=still)
    found = fit(module, first, second)
    means = token_means(student, first)
    torch.testing.assert_close(found["train/task"].double(), means.mean(), rtol=1e-4, atol=0.0)
    every = torch.cat([means, token_means(student, second)])
    assert len(every) == 9 + 3
    torch.testing.assert_close(found["val/loss"].double(), every.mean(), rtol=1e-4, atol=0.0)


def test_the_teacher_is_not_given_the_labels():
    seen = []
    teacher = llama()
    teacher.register_forward_pre_hook(lambda _, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True)
    fit(LastToken(llama(), teacher, [KDLoss()], task_loss="model"), sentences())
    assert seen
    assert all("labels" not in names for names in seen)


def test_a_row_that_is_padded_on_the_left_is_told_once():
    module = LastToken(llama(), llama(), [KDLoss()], task_loss="model")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, sentences(first=0))
    assert (
        len([w for w in caught if "counts the first token of a row that is padded on the left" in str(w.message)]) == 1
    )


def test_no_such_word_where_that_token_has_no_label():
    batch = sentences(first=0)
    batch["labels"][0, 1] = -100
    fit(LastToken(llama(), llama(), [KDLoss()], task_loss="model"), batch)


def test_a_question_has_no_other_target():
    net = partial(hf.BertForQuestionAnswering, hf.BertConfig(vocab_size=50, hidden_dropout_prob=0.0, **zoo.WIDE))

    class Starts(DistillationModule):
        def logits_of(self, output):
            return output.start_logits

    ids = torch.randint(1, 40, (4, 9))
    batch = {"input_ids": ids, "start_positions": torch.arange(4), "end_positions": torch.arange(4) + 2}
    module = Starts(net(), net(), [KDLoss()], task_loss="model")
    found = fit(module, batch)
    assert found["train/task"] > 1
    assert found["val/loss"] > 1


def test_a_model_without_a_loss_is_told():
    module = support.module(task_loss="model")
    with pytest.raises(ValueError, match=r"the output of ConvNet holds none. Give batches with the labels"):
        support.fit(module)
    with pytest.raises(ValueError, match="expected task_loss to be a module or 'model', got 'modl'"):
        support.module(task_loss="modl")


def test_in_yaml(tmp_path):
    (tmp_path / "fit.yaml").write_text("""
model:
  student: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 2}}
  task_loss: model
""")
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(DistillationModule, "model")
    module = parser.instantiate_classes(parser.parse_path(str(tmp_path / "fit.yaml"))).model
    assert module.task_loss == "model"
    module.task_loss = nn.CrossEntropyLoss()
    assert isinstance(module.task_loss, nn.CrossEntropyLoss)


def gpt2():
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.3}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, **still, **TOKENS))


def mixtral(**options):
    experts = {"num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True, **options}
    return hf.MixtralForCausalLM(
        hf.MixtralConfig(
            vocab_size=50, initializer_range=0.3, **zoo.WIDE | {"num_hidden_layers": 2}, **experts, **TOKENS
        )
    )


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_evaluation_is_the_mean_over_all_tokens_whatever_the_batches(make, size):
    torch.manual_seed(0)
    student = make()
    batch = sentences()
    batch["labels"][0, 1:] = -100  # of its own first label no mean takes account
    batch["labels"][2, 2] = -100
    parts = [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, 3, size)]
    module = DistillationModule(student, task_loss="model", optimizer=partial(torch.optim.SGD, lr=0.0))
    found = fit(module, batch, *parts)
    every = torch.cat([token_means(student, part) for part in (batch, *parts) if (part["labels"][:, 1:] != -100).any()])
    torch.testing.assert_close(found["val/loss"].double(), every.mean(), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found["val/perplexity"].double(), every.mean().exp(), rtol=1e-4, atol=0.0)
    assert found["train/loss"].isfinite()


def test_a_batch_without_a_label_weighs_nothing():
    torch.manual_seed(0)
    student, empty = llama(), sentences()
    empty["labels"][:] = -100
    module = DistillationModule(student, task_loss="model", optimizer=partial(torch.optim.SGD, lr=0.1))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = fit(module, empty, sentences())
    assert found["train/loss"] == 0
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    torch.testing.assert_close(
        found["val/loss"].double(), token_means(student, sentences()).mean(), rtol=1e-4, atol=0.0
    )


def test_the_loss_of_a_router_is_logged_apart(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_kd.fit.token_means.rank_zero_info", said.append)
    torch.manual_seed(0)
    student, first, second = mixtral(), sentences(), sentences()
    second["labels"][1:] = -100
    module = DistillationModule(student, task_loss="model", optimizer=partial(torch.optim.SGD, lr=0.0))
    found = fit(module, first, second)
    student.eval()
    with torch.no_grad():
        own = student(**first)
    every = torch.cat([token_means(student, first), token_means(student, second)])
    torch.testing.assert_close(found["val/loss"].double(), every.mean(), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found["val/router"].float(), student.config.router_aux_loss_coef * own.aux_loss)
    torch.testing.assert_close(found["train/loss"], own.loss, rtol=1e-4, atol=0.0)  # with the router's, once
    assert len([line for line in said if "router" in line]) == 1


def test_the_factor_of_a_router_is_found_where_models_keep_it():
    output = {"aux_loss": torch.tensor(3.0)}
    plain = torch.nn.Linear(1, 1)
    assert ModelLoss(plain).router(output) is None
    plain.config = SimpleNamespace(text_config=SimpleNamespace(router_aux_loss_coef=0.5))
    assert ModelLoss(plain).router(output) == 1.5
    plain.aux_loss_coef = 2.0
    assert ModelLoss(plain).router(output) == 6.0


@pytest.mark.parametrize("options", [{"losses": [TokenKDLoss(cross_entropy=1.0)]}, {"task_loss": "model"}])
def test_a_router_whose_loss_does_not_train_is_told(options, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_kd.engine.model_loss.rank_zero_info", said.append)
    teacher = llama() if "losses" in options else None
    module = DistillationModule(mixtral(), teacher, optimizer=partial(torch.optim.SGD, lr=0.0), **options)
    fit(module, sentences())
    assert len([line for line in said if "router" in line]) == ("losses" in options)


def test_a_model_that_records_its_own_hidden_states_reads_them_as_outside_a_fit():
    sizes = {"depths": [1, 1], "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
    sizes |= {"hidden_sizes": [8, 8], "num_attention_heads": [1, 2], "decoder_hidden_size": 8, "num_labels": 4}
    config = hf.SegformerConfig(num_encoder_blocks=2, classifier_dropout_prob=0.0, drop_path_rate=0.0, **sizes)
    student, teacher = (support.seeded(partial(hf.SegformerForSemanticSegmentation, config), seed) for seed in (1, 2))
    support.seeded(lambda: [nn.init.normal_(p, std=0.3) for p in teacher.parameters()], 3)
    pixels = support.seeded(lambda: torch.randn(2, 3, 16, 16), 4)
    right = kd_loss(copy.deepcopy(student).train()(pixels).logits, copy.deepcopy(teacher).eval()(pixels).logits)
    module = DistillationModule(student, teacher, [KDLoss()], optimizer=partial(torch.optim.SGD, lr=0.0))
    support.fit(module, train=support.batches({"pixel_values": pixels}), max_epochs=1, limit_val_batches=0)
    assert float(module.trainer.callback_metrics["train/kd"]) == pytest.approx(right.item(), rel=1e-5)
