"""Labels stay among the inputs of a model that makes its decoder's inputs of them."""

import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.capture.batch import unpack_batch, with_labels_inside


class EncoderDecoder(nn.Module):
    def forward(self, input_ids=None, decoder_input_ids=None, labels=None):
        return labels


class Needy(nn.Module):
    def forward(self, x, y):
        return y


class Plain(nn.Module):
    def forward(self, input_ids, labels=None):
        return input_ids


def inputs(model, **batch):
    return sorted(with_labels_inside(unpack_batch(batch), batch, model).kwargs)


def test_labels_stay_where_the_model_needs_them():
    ones = torch.ones(2, 3)
    assert inputs(EncoderDecoder(), input_ids=ones, labels=ones) == ["input_ids", "labels"]
    assert inputs(EncoderDecoder(), input_ids=ones, decoder_input_ids=ones, labels=ones) == [
        "decoder_input_ids",
        "input_ids",
    ]
    assert inputs(Needy(), x=ones, y=ones) == ["x", "y"]
    assert inputs(Plain(), input_ids=ones, labels=ones) == ["input_ids"]


def test_they_are_still_the_target():
    labels = torch.zeros(2, 3)
    module = DistillationModule(EncoderDecoder(), task_loss=nn.CrossEntropyLoss())
    assert module.unpack_batch({"input_ids": torch.ones(2, 3), "labels": labels}).target is labels
