"""The formulas of the losses as loops over samples, pairs and triples, in float64, and what layers returned."""

import torch
from torch import nn


def returned(net, layers, call):
    """What the named layers return in a call, or are given last, copied, and the output."""
    values, handles = {}, []
    for name in layers:
        if name.startswith("<input of "):
            place = net.get_submodule(name[len("<input of ") : -1])
            hook = place.register_forward_pre_hook(lambda _, given, name=name: values.update({name: kept(given)}))
        else:
            place = net.get_submodule(name)
            hook = place.register_forward_hook(lambda _, __, out, name=name: values.update({name: kept(out)}))
        handles.append(hook)
    with torch.no_grad():
        output = call(net)
    for handle in handles:
        handle.remove()
    return [values[name] for name in layers], output


def kept(output):
    return (output if isinstance(output, torch.Tensor) else output[0]).clone()


def rows(values):
    return values.flatten(1).double()


def kl(student, teacher, temperature=1.0):
    """Mean over the samples of the divergence of softened classes, times the squared temperature."""
    total = 0.0
    for s, t in zip(student.double() / temperature, teacher.double() / temperature, strict=True):
        p, q = s.exp() / s.exp().sum(), t.exp() / t.exp().sum()
        total += (q * (q / p).log()).sum()
    return total / len(student) * temperature**2


def attention(student, teacher):
    """Squared distance of maps (B, H, W, C): each position's energy, as a unit vector over the positions."""
    maps = [one.double().square().sum(-1).flatten(1) for one in (student, teacher)]
    s, t = (one / one.square().sum(1, keepdim=True).sqrt() for one in maps)
    return ((s - t) ** 2).mean()


def relations(student, teacher):
    """Distances of pairs (weight 25) and angles of triples (weight 50)."""
    distances, angles = zip(*(pairs_and_triples(rows(one)) for one in (student, teacher)), strict=True)
    return 25 * huber(distances[0] - distances[1]).mean() + 50 * huber(angles[0] - angles[1]).mean()


def pairs_and_triples(x):
    count = len(x)
    distances, angles = torch.zeros(count, count).double(), torch.zeros(count, count, count).double()
    for i in range(count):
        for j in range(count):
            distances[i, j] = (x[i] - x[j]).norm()
            for k in range(count):
                if i not in (j, k):
                    angles[i, j, k] = torch.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0)
    return distances / (distances.sum() / (count * (count - 1))), angles


def huber(x):
    return torch.where(x.abs() < 1, x.square() / 2, x.abs() - 0.5)


def similarity(student, teacher):
    """Which samples of the batch are alike: rows of the Gram matrix as unit vectors."""
    grams = [rows(one) @ rows(one).T for one in (student, teacher)]
    s, t = (gram / gram.norm(dim=1, keepdim=True) for gram in grams)
    return (s - t).square().sum() / len(student) ** 2


def neighbours(student, teacher):
    """Divergence of the chances that two samples are neighbours (PKT)."""
    chances = []
    for x in map(rows, (student, teacher)):
        alike = torch.stack([torch.cosine_similarity(one.unsqueeze(0), x) for one in x]) / 2 + 0.5
        chances.append(alike / alike.sum(1, keepdim=True))
    s, t = chances
    return (t * (t / s).log()).mean()


def selectivity(student, teacher):
    """Channels as unit vectors over the positions, compared by squared products (NST), maps (B, C, H, W)."""
    total = 0.0
    for s, t in zip(student.double().flatten(2), teacher.double().flatten(2), strict=True):
        s, t = s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
        total += (t @ t.T).square().mean() + (s @ s.T).square().mean() - 2 * (s @ t.T).square().mean()
    return total / len(student)


def flow(bottom, top):
    """Products of the channels of two maps over the positions of the smaller one (FSP)."""
    bottom = nn.functional.adaptive_avg_pool2d(bottom.double(), top.shape[2:]).flatten(2)
    return torch.einsum("bin,bjn->bij", top.double().flatten(2), bottom) / bottom.shape[2]


def information(regressor, log_scale, student, teacher):
    """Negative log-likelihood of the teacher's features, a variance for each channel (VID)."""
    variance = (1 + log_scale.double().exp()).log() + 1e-5
    error = (regressor(student) - teacher).double().square().mean((0, 2, 3))
    return (error / variance + variance.log()).mean() / 2
