"""Rows with padding on the left, and rows of several documents: each network answers as to the row alone."""

from functools import partial

import pytest
import torch
import transformers as hf
from lightning.pytorch import LightningModule

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from tests import support
from tests.ecosystem import by_hand, zoo

TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
IDS = torch.tensor([[0, 0, 0, 7, 5, 9], [3, 8, 2, 11, 6, 4]])
MASK = (IDS != 0).long()
LENGTHS = [3, 6]


def gpt2(seed=0, **options):
    torch.manual_seed(seed)
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.3}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, **TOKENS | drops | options))


def llama(seed=0, **options):
    torch.manual_seed(seed)
    config = hf.LlamaConfig(vocab_size=50, **zoo.WIDE | TOKENS | {"initializer_range": 0.3} | options)
    return hf.LlamaForCausalLM(config)


def opt(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 2}
    still = {"dropout": 0.0, "init_std": 0.3, "num_attention_heads": 2}
    return hf.OPTForCausalLM(hf.OPTConfig(vocab_size=50, **sizes | TOKENS | still))


def bert(seed=0, kind="MaskedLM"):
    torch.manual_seed(seed)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    return getattr(hf, f"BertFor{kind}")(hf.BertConfig(vocab_size=50, **zoo.WIDE | dry))


def roberta(seed=0):
    torch.manual_seed(seed)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    return hf.RobertaForMaskedLM(hf.RobertaConfig(vocab_size=50, **zoo.WIDE | dry | {"pad_token_id": 0}))


def alone(net, lengths=LENGTHS):
    """The answers to each row without its padding, one token after another."""
    with torch.no_grad():
        rows = [net.eval()(ids[None, -length:]).logits[0] for ids, length in zip(IDS, lengths, strict=True)]
    return torch.cat(rows)


def last(output):
    return output.logits[:, -1]


class Answers(DistillationModule):
    """Compares what comes after the last token of each row."""

    def logits_of(self, output):
        return last(output)


class TheirAnswers(DistillationCallback):
    def logits_of(self, output):
        return last(output)


class Theirs(LightningModule):
    def __init__(self, net, **more):
        super().__init__()
        self.net, self.more = net, more

    def training_step(self, batch, batch_idx):
        return self.net(**batch, **self.more).logits.mean()

    def validation_step(self, batch, batch_idx): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def kd_of(door, student, teacher, batch, **more):
    data = support.batches(batch)
    if door == "module":
        still = partial(torch.optim.SGD, lr=0.0)
        net, callbacks = Answers(student, teacher, [KDLoss()], optimizer=still), []
    else:
        net, callbacks = Theirs(student, **more), [TheirAnswers(teacher, [KDLoss()])]
    trainer = support.trainer(max_epochs=1, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(net, data, data)
    return trainer.callback_metrics["train/kd"].double()


def after_each(net, rows):
    """What comes after the last token of rows that are called one by one."""
    with torch.no_grad():
        return torch.cat([net.eval()(row[None]).logits[:, -1] for row in rows])


@pytest.mark.parametrize("make", [gpt2, llama, opt, bert, roberta])
def test_left_padding_does_not_change_an_answer(make):
    student, teacher = make(0), make(1)
    module = DistillationModule(student, teacher, [KDLoss()])
    batch = {"input_ids": IDS, "attention_mask": MASK}
    told = module.run.step.positions
    told.student.settle((), batch)
    told.teacher.settle((), batch)
    for net, positions in ((student, told.student), (teacher, told.teacher)):
        assert positions.how == {gpt2: "add", bert: "add"}.get(make, "as it is")
        with torch.no_grad():
            found = net.eval()(**positions((), batch)).logits[MASK.bool()]
        torch.testing.assert_close(found, alone(net), rtol=1e-3, atol=1e-4)
    right = {"input_ids": IDS, "attention_mask": torch.ones_like(MASK)}
    assert told.student((), right) is right


def test_an_answer_that_reads_the_padding_is_refused():
    """A classifier of BERT reads the first position, which is padding then."""
    batch = {"input_ids": IDS, "attention_mask": MASK}
    data = support.batches(batch)
    module = DistillationModule(bert(0, "SequenceClassification"), bert(1, "SequenceClassification"), [KDLoss()])
    with pytest.raises(ValueError, match=r"it reads the padding. Pad on the right \(tokenizer.padding_side"):
        support.trainer(max_epochs=1).fit(module, data, data)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_left_padding_through_the_doors(door):
    rows = [IDS[0, 3:], IDS[1]]
    student, teacher = llama(0), gpt2(1)
    expected = by_hand.kl(after_each(student, rows), after_each(teacher, rows), 4.0)
    value = kd_of(door, student.train(), teacher, {"input_ids": IDS, "attention_mask": MASK})
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0.0)


def test_the_module_adds_positions_for_the_student_too(caplog):
    rows = [IDS[0, 3:], IDS[1]]
    student, teacher = gpt2(0), llama(1)
    expected = by_hand.kl(after_each(student, rows), after_each(teacher, rows), 4.0)
    with caplog.at_level("INFO"):
        value = kd_of("module", student.train(), teacher, {"input_ids": IDS, "attention_mask": MASK})
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0.0)
    assert caplog.text.count("The student gets position_ids, since rows are padded on the left.") == 1


def test_a_step_of_the_users_own_is_told_what_to_give():
    with pytest.raises(ValueError, match=r"student GPT2LMHeadModel .* counts the padding as positions.*position_ids"):
        kd_of("callback", gpt2(0), llama(1), {"input_ids": IDS, "attention_mask": MASK})
    batch = {"input_ids": IDS, "attention_mask": MASK, "position_ids": (MASK.cumsum(-1) - 1).clamp(min=0)}
    rows = [IDS[0, 3:], IDS[1]]
    student, teacher = gpt2(0), llama(1)
    expected = by_hand.kl(after_each(student, rows), after_each(teacher, rows), 4.0)
    torch.testing.assert_close(kd_of("callback", student.train(), teacher, batch), expected, rtol=1e-3, atol=0.0)


def test_padding_on_the_right_is_called_as_before():
    seen = []
    student = gpt2(0)
    student.transformer.wpe.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[0]))
    kd_of("module", student, gpt2(1), {"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1)})
    assert seen[-1] == 1  # the positions that the model makes itself


def xlnet(seed=0):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16, "initializer_range": 0.3}
    sizes |= {"dropout": 0.0, "summary_last_dropout": 0.0}
    return hf.XLNetForSequenceClassification(hf.XLNetConfig(vocab_size=50, num_labels=3, **sizes | TOKENS))


def kd_of_classes(student, teacher, batch):
    module = DistillationModule(student, teacher, [KDLoss()], optimizer=partial(torch.optim.SGD, lr=0.0))
    fitted = support.fit(module, train=support.batches(batch), max_epochs=1, limit_val_batches=0)
    return fitted.callback_metrics["train/kd"].double()


def test_a_classifier_by_the_last_token_is_warned_of_where_that_is_padding():
    """XLNet's own tokenizer pads on the left."""
    with pytest.warns(UserWarning, match="XLNetForSequenceClassification gives a row that is padded on the right"):
        kd_of_classes(xlnet(0), xlnet(1), {"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1)})


def test_it_is_right_where_the_padding_is_on_the_left():
    nets = [xlnet(0), xlnet(1)]  # without dropout, so that their modes do not matter
    with torch.no_grad():
        student, teacher = ([net(IDS[:1, 3:]).logits, net(IDS[1:]).logits] for net in nets)
    expected = by_hand.kl(torch.cat(student), torch.cat(teacher), 4.0)
    found = kd_of_classes(*nets, {"input_ids": IDS, "attention_mask": MASK})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


PACKED = {
    "input_ids": torch.tensor([[7, 5, 9, 3, 8], [3, 8, 2, 11, 6]]),
    "position_ids": torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]),
}
DOCUMENTS = [torch.tensor([3, 8]), torch.tensor([2, 11, 6])]


@pytest.mark.parametrize("mask", [{}, {"attention_mask": torch.ones(2, 5, dtype=torch.long)}])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_documents_in_a_row_do_not_see_each_other(make, mask):
    student, teacher = make(0), make(1)
    expected = by_hand.kl(after_each(student, DOCUMENTS), after_each(teacher, DOCUMENTS), 4.0)
    value = kd_of("module", student.train(), teacher, PACKED | mask)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0.0)


def test_documents_through_the_callback():
    student, teacher = llama(0), gpt2(1)
    expected = by_hand.kl(after_each(student, DOCUMENTS), after_each(teacher, DOCUMENTS), 4.0)
    value = kd_of("callback", student.train(), teacher, PACKED, use_cache=False)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0.0)
    with pytest.raises(ValueError, match=r"student LlamaForCausalLM .*one by one.*Call it with use_cache=False"):
        kd_of("callback", llama(0), gpt2(1), PACKED)


def test_documents_that_a_network_cannot_keep_apart_are_refused():
    with pytest.raises(ValueError, match=r"student BertForMaskedLM .*documents one by one.*give one document a row"):
        kd_of("module", bert(0), bert(1), PACKED)


def bloom(seed=0):
    torch.manual_seed(seed)
    return hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
    )


def test_a_step_that_passes_labels_is_told_what_to_give():
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}
    with pytest.raises(ValueError, match=r"student GPT2LMHeadModel .* counts the padding as positions.*position_ids"):
        kd_of("callback", gpt2(0), llama(1), batch)


ENDS = {
    "input_ids": torch.tensor([[7, 5, 9, 3, 0], [3, 8, 2, 11, 6]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    "position_ids": torch.tensor([[0, 1, 2, 0, 0], [0, 1, 0, 1, 2]]),
}


@pytest.mark.parametrize("first", [PACKED, ENDS], ids=["without a mask", "padded at the end"])
@pytest.mark.parametrize("then", [PACKED, ENDS], ids=["without a mask", "padded at the end"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_documents_stay_apart_in_later_batches_too(make, first, then):
    positions = DistillationModule(make(0), make(1), [KDLoss()]).run.step.positions.student
    positions.settle((), first)
    with torch.no_grad():
        found = positions.network.eval()(**positions((), then)).logits[1]
        alone = [positions.network(ids[None]).logits[0] for ids in DOCUMENTS]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:No network takes the column")
def test_a_network_without_positions_is_refused_documents():
    with pytest.raises(ValueError, match=r"teacher BloomForCausalLM .*It takes no position_ids.*one document a row"):
        kd_of("module", llama(0), bloom(1), PACKED)


def test_embeddings_are_padded_on_the_left_too():
    student = gpt2(0).eval()
    positions = DistillationModule(student, gpt2(1), [KDLoss()]).run.step.positions.student
    values = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    batch = {"inputs_embeds": values, "attention_mask": MASK}
    positions.settle((), batch)
    with torch.no_grad():
        found = student(**positions((), batch)).logits[0, 3:]
        torch.testing.assert_close(found, student(inputs_embeds=values[:1, 3:]).logits[0], rtol=1e-3, atol=1e-4)
