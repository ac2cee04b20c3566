"""A store knows its teacher by what it answers: equal weights do not make two teachers one."""

import copy
import json
import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_kd import cache
from lightning_kd.capture.call import Call
from lightning_kd.files.store.manifest import PLAN, read_plain, write_plain
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import CachedTeacher, Ensemble
from lightning_kd.teachers.frozen import FrozenTeacher
from tests import support


def rows(count=24, width=6):
    return support.seeded(lambda: torch.randn(count, width), 0)


def net(between=None, eps=1e-5):
    body = support.seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.BatchNorm1d(3)), 1)
    body[3].eps = eps
    if between is not None:
        body[1] = between
    return body


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = net(), scale

    def forward(self, x):
        return self.net(x) * self.scale


def pair():
    return [support.seeded(lambda: nn.Linear(6, 3), seed) for seed in (1, 2)]


TEACHERS = {
    "average": (lambda: Ensemble(pair()), lambda: Ensemble(pair(), "vote")),
    "weights": (lambda: Ensemble(pair(), weights=[1.0, 2.0]), lambda: Ensemble(pair(), weights=[2.0, 1.0])),
    "activation": (net, lambda: net(nn.GELU())),
    "slope": (lambda: net(nn.LeakyReLU(0.1)), lambda: net(nn.LeakyReLU(0.9))),
    "eps": (net, lambda: net(eps=1.0)),
    "attribute": (lambda: Scaled(1.0), lambda: Scaled(3.0)),
}


def write(teacher, folder, dataset=None, **options):
    defaults = {"losses": [KDLoss()], "dtype": "float32", "batch_size": 8, "shard_rows": 8}
    dataset = TensorDataset(rows()) if dataset is None else dataset
    return cache.write(teacher, dataset, folder, **(defaults | options))


class Stops(TensorDataset):
    """Cannot be read from a row on, until it is repaired."""

    broken_at = 20

    def __getitem__(self, row):
        if self.broken_at is not None and row == self.broken_at:
            raise RuntimeError("cut")
        return super().__getitem__(row)

    __getitems__ = None


def left_unfinished(teacher, folder, **options):
    dataset = Stops(rows())
    with pytest.raises(RuntimeError, match="cut"):
        write(teacher, folder, dataset, **options)
    dataset.broken_at = None
    return dataset


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in sorted(TEACHERS) for dtype in ("float32", "float16")] + [("slope", "bfloat16")],
)
def test_another_teacher_of_the_same_weights_is_refused(tmp_path, name, dtype):
    one, other = TEACHERS[name]
    write(one(), tmp_path, dtype=dtype)
    write(one(), tmp_path, dtype=dtype, batch_size=5)
    with pytest.raises(ValueError, match=r"answers of another teacher, though its weights are the same.*Give another"):
        write(other(), tmp_path, dtype=dtype)


def test_another_function_that_makes_the_inputs_is_refused(tmp_path):
    write(net(), tmp_path, teacher_inputs=lambda a, k: ((a[0] * 2,), k))
    with pytest.raises(ValueError, match="a function that makes the teacher's inputs"):
        write(net(), tmp_path, teacher_inputs=lambda a, k: ((a[0] * 3,), k))


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_a_writer_does_not_go_on_with_another_teacher(tmp_path, name):
    one, other = TEACHERS[name]
    dataset = left_unfinished(one(), tmp_path)
    with pytest.raises(ValueError, match="answers of another teacher"):
        write(other(), tmp_path, dataset)
    write(one(), tmp_path, dataset)
    write(one(), tmp_path / "whole")
    assert torch.equal(stored(tmp_path), stored(tmp_path / "whole"))


def stored(folder):
    return CachedTeacher(folder).answer(None, Call(args=(rows(),))).output


def test_a_second_process_with_another_teacher_is_refused_before_the_first_shard_is_there(tmp_path):
    write(net(), tmp_path, rank=1, world_size=2)  # which has the second of three shards
    assert not (tmp_path / "shard-00000.safetensors").exists()
    with pytest.raises(ValueError, match="answers of another teacher"):
        write(net(nn.GELU()), tmp_path, rank=0, world_size=2)
    write(net(), tmp_path, rank=0, world_size=2)
    assert len(stored(tmp_path)) == 24


@pytest.mark.parametrize("share", [1e-4, 5e-3])
def test_a_small_movement_of_a_teacher_is_told_and_a_large_one_refused(tmp_path, share, monkeypatch, caplog):
    losses = [KDLoss(), HintLoss("0", "0")]
    write(net(), tmp_path, losses=losses)
    monkeypatch.setattr(FrozenTeacher, "answer", times(1 + share))
    if share > 1e-3:
        with pytest.raises(ValueError, match="logits differs by"):
            write(net(), tmp_path, losses=losses)
        return
    with caplog.at_level(logging.INFO), torch.no_grad():
        write(net(), tmp_path, losses=losses)
        off = float((net().eval()(rows()[:8]) * share).abs().max())
    assert f"logits by at most {off:.2g}, layer:0 by at most 0." in caplog.text


class WithSide(nn.Module):
    """Has a layer that its logits do not show."""

    def __init__(self, slope):
        super().__init__()
        self.net, self.side = net(), nn.LeakyReLU(slope)

    def forward(self, x):
        self.side(x)
        return self.net(x)


def test_a_layer_alone_tells_two_teachers_apart(tmp_path):
    write(WithSide(0.1), tmp_path, losses=[KDLoss(), HintLoss("side", "side")])
    with pytest.raises(ValueError, match="layer:side differs"):
        write(WithSide(0.5), tmp_path, losses=[KDLoss(), HintLoss("side", "side")])


class Words(nn.Module):
    """Logits (B, T, V) of tokens; the scale is no weight."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.table = support.seeded(lambda: nn.Embedding(30, 30), 3)
        self.scale = scale

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids) * self.scale


def texts():
    return [torch.arange(1, 1 + n) + n for n in (3, 7, 5, 2, 6, 4)]


def padded(texts, side="right"):
    longest = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest, dtype=torch.long)
    for i, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(longest - len(text), longest)
        ids[i, place], mask[i, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kept", [{}, {"top_k": 4}, {"draws": 4}], ids=["all", "top_k", "draws"])
@pytest.mark.parametrize("finished", [True, False])
def test_answers_of_tokens_tell_the_teacher_too(tmp_path, kept, finished):
    part = {} if finished else {"rank": 1, "world_size": 2}
    options = {"batch_size": 3, "shard_rows": 2, "collate_fn": padded, **kept}
    write(Words(), tmp_path, texts(), **options, **part)
    left = {**options, "batch_size": 4, "collate_fn": lambda texts: padded(texts, "left")}
    with pytest.raises(ValueError, match=r"answers of another teacher.*logits differs"):
        write(Words(1.1), tmp_path, texts(), **left)
    write(Words(), tmp_path, texts(), **left)


def without_answers(path):
    plain = read_plain(path)
    del plain["teacher"]["first_answers"]
    write_plain(path, plain)


def test_a_store_of_an_earlier_version_is_read_and_known_by_its_first_shard(tmp_path):
    write(net(), tmp_path)
    without_answers(tmp_path / "manifest.json")
    assert len(stored(tmp_path)) == 24
    write(net(), tmp_path)
    with pytest.raises(ValueError, match="answers of another teacher"):
        write(net(nn.GELU()), tmp_path)


def test_a_writer_goes_on_with_the_plan_of_an_earlier_version(tmp_path):
    dataset = left_unfinished(net(), tmp_path)
    without_answers(tmp_path / PLAN)
    with pytest.raises(ValueError, match="answers of another teacher"):
        write(net(nn.GELU()), tmp_path, dataset)
    write(net(), tmp_path, dataset)
    assert len(stored(tmp_path)) == 24


def test_a_teacher_of_16_bits_may_move_by_its_own_rounding(tmp_path, monkeypatch):
    guide = net().bfloat16()
    write(guide, tmp_path, TensorDataset(rows().bfloat16()), dtype="bfloat16")
    monkeypatch.setattr(FrozenTeacher, "answer", times(1.04))
    write(copy.deepcopy(guide), tmp_path, TensorDataset(rows().bfloat16()), dtype="bfloat16")


def test_what_is_kept_of_the_first_answers_is_small(tmp_path):
    write(net(), tmp_path, batch_size=24, losses=[KDLoss(), HintLoss("0", "0")])
    kept = json.loads((tmp_path / "manifest.json").read_text())["teacher"]["first_answers"]
    x = net().eval()[0](rows()).detach().double()
    assert [len(of) for of in kept["numbers"].values()] == [24, 24]
    assert kept["numbers"]["layer:0"][5][0] == pytest.approx(float(x[5].norm()), rel=1e-6)
    assert (kept["dtype"], kept["device"]) == ("float32", "cpu")


@pytest.mark.parametrize(("dtype", "device", "allowed"), [("float32", "cuda", 0.03), ("bfloat16", "cpu", 0.1)])
def test_an_accelerator_and_16_bits_may_move_more(tmp_path, dtype, device, allowed):
    write(net(), tmp_path)
    plain = read_plain(tmp_path / "manifest.json")
    plain["made_with"] |= {"dtype": dtype, "device": device}
    plain["teacher"]["first_answers"] |= {"dtype": dtype, "device": device}
    write_plain(tmp_path / "manifest.json", plain)
    for share, refused in ((allowed * 0.9, False), (allowed * 1.1, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FrozenTeacher, "answer", times(1 + share))
            with pytest.raises(ValueError, match=f"up to {allowed:.2g} of that") if refused else nullcontext():
                write(net(), tmp_path)


def times(factor):
    answer = FrozenTeacher.answer

    def moved(self, batch, call):
        lesson = answer(self, batch, call)
        lesson.output = lesson.output * factor
        return lesson

    return moved
