"""A step with five losses as people write it without a framework."""

import torch
import torch.nn.functional as F

from lightning_kd.functional import hint_loss, kd_loss

TEMPERATURES = (1.0, 2.0, 4.0)


def recorded(student, teacher, layers):
    """Put hooks on the layers of both networks; return the dictionary that they fill in every step."""
    features = {}
    for network, role in ((student, "student"), (teacher.eval().requires_grad_(False), "teacher")):
        for name in layers:
            layer = network.get_submodule(name)
            layer.register_forward_hook(lambda _, __, out, key=(role, name): features.__setitem__(key, out))
    return features


def whole_loss(student, teacher, projectors, features, batch):
    """Return the loss of a step: the task's, three of the logits, and one of each layer that has a projector."""
    x, y = batch
    logits = student(x)
    with torch.no_grad():
        teacher_logits = teacher(x)
    loss = F.cross_entropy(logits, y)
    for temperature in TEMPERATURES:
        loss = loss + kd_loss(logits, teacher_logits, temperature=temperature)
    layers = [name for role, name in features if role == "student"]
    for name, projector in zip(layers, projectors, strict=True):
        loss = loss + hint_loss(projector(features["student", name]), features["teacher", name])
    return loss
