"""Straight transcriptions of the published formulas, as their papers or authors write them, to measure ours against.

The functions that begin with ``our_`` are ours, with the arguments that a row does not vary.
"""

import math

import torch
import torch.nn.functional as F

from lightning_kd.functional import dkd_loss, ofd_loss, tfkd_loss, vid_loss


def _target(student):
    return torch.arange(len(student)) * 13


def nst(student, teacher):
    """All pairs of channels, as vectors."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def mean(x, y):
        return (x.unsqueeze(2) * y.unsqueeze(1)).sum(-1).square().mean()

    return mean(t, t).detach() + mean(s, s) - 2 * mean(s, t)


def fsp(student_bottom, student_top, teacher_bottom, teacher_top):
    """Every product of two channels at every position."""
    matrices = [
        (top.unsqueeze(2) * bottom.unsqueeze(1)).mean((3, 4))
        for bottom, top in ((student_bottom, student_top), (teacher_bottom, teacher_top))
    ]
    return (matrices[0] - matrices[1].detach()).square().mean()


def attention(student, teacher):
    maps = [F.normalize(x.abs().pow(2).mean(1).flatten(1), dim=1) for x in (student, teacher.detach())]
    return (maps[0] - maps[1]).pow(2).mean()


def similarity(student, teacher):
    grams = [F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (student, teacher.detach())]
    return (grams[0] - grams[1]).pow(2).sum() / len(student) ** 2


def pkt(student, teacher):
    probabilities = []
    for x in (student, teacher.detach()):
        unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-7)
        kernel = (unit @ unit.T + 1) / 2
        probabilities.append(kernel / kernel.sum(1, keepdim=True))
    s, t = probabilities
    return (t * torch.log((t + 1e-7) / (s + 1e-7))).mean()


def our_ofd(student, teacher):
    return ofd_loss(student, teacher, torch.full((teacher.shape[1],), -0.8))


def ofd(student, teacher):
    margin = torch.full((1, teacher.shape[1], 1, 1), -0.8)
    loss = (student - margin) ** 2 * ((student > margin) & (teacher <= margin)).float()
    loss = loss + (student - teacher) ** 2 * ((student > teacher) & (teacher > margin) & (teacher <= 0)).float()
    loss = loss + (student - teacher) ** 2 * (teacher > 0).float()
    return loss.abs().mean(0).sum()


def boundary(student, teacher):
    loss = (student + 1) ** 2 * ((student > -1) & (teacher <= 0)).float()
    loss = loss + (student - 1) ** 2 * ((student <= 1) & (teacher > 0)).float()
    return loss.abs().sum() / len(student) / 1000 * 3


def review(student, teacher):
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for level in (4, 2, 1):
        if level < student.shape[2]:
            weight, total = weight / 2, total + weight / 2
            pooled = [F.adaptive_avg_pool2d(x, (level, level)) for x in (student, teacher)]
            loss = loss + weight * F.mse_loss(*pooled)
    return loss / total


def our_vid(prediction, target):
    return vid_loss(prediction, target, torch.ones(prediction.shape[1], requires_grad=True))


def vid(prediction, target):
    log_scale = torch.ones(prediction.shape[1], requires_grad=True)
    variance = (torch.log(1 + torch.exp(log_scale)) + 1e-5).view(1, -1, 1, 1)
    return (0.5 * ((prediction - target.detach()) ** 2 / variance + torch.log(variance))).mean()


def factor(student, teacher):
    directions = [F.normalize(x.flatten(1), dim=1) for x in (student, teacher.detach())]
    return (directions[0] - directions[1]).abs().mean()


def kd(student, teacher):
    t, s = F.softmax(teacher.detach() / 4, dim=1), F.log_softmax(student / 4, dim=1)
    return F.kl_div(s, t, reduction="batchmean") * 16


def our_dkd(student, teacher):
    return dkd_loss(student, teacher, _target(student))


def dkd(student, teacher):
    """The target's probability by masks, the others' by a thousand less for the target."""
    teacher, hot = teacher.detach() / 4, F.one_hot(_target(student), student.shape[1]).bool()
    student = student / 4
    probabilities = (student.softmax(1), teacher.softmax(1))
    binary = [torch.stack([(p * hot).sum(1), (p * ~hot).sum(1)], dim=1) for p in probabilities]
    of_target = F.kl_div(binary[0].log(), binary[1], reduction="batchmean")
    of_others = F.kl_div(
        F.log_softmax(student - 1000 * hot, dim=1), F.softmax(teacher - 1000 * hot, dim=1), reduction="batchmean"
    )
    return 16 * (of_target + 8 * of_others)


def dist(student, teacher):
    p, q = student.softmax(1), teacher.detach().softmax(1)
    value = 0.0
    for x, y in ((p, q), (p.T, q.T)):
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        value = value + 1 - F.cosine_similarity(x, y, dim=1, eps=1e-8).mean()
    return value


def our_tfkd(student, _):
    return tfkd_loss(student, _target(student))


def tfkd(student, _):
    classes = student.shape[1]
    teacher = torch.full_like(student, 0.01 / (classes - 1)).scatter(1, _target(student).unsqueeze(1), 0.99)
    return F.kl_div(F.log_softmax(student, dim=1), F.softmax(teacher / 20, dim=1), reduction="batchmean")


def rkd(student, teacher):
    """Every difference of two samples, as a vector."""
    with torch.no_grad():
        its_distances, its_angles = _scaled_distances(teacher), _angles(teacher)
    return 25 * F.smooth_l1_loss(_scaled_distances(student), its_distances) + 50 * F.smooth_l1_loss(
        _angles(student), its_angles
    )


def _scaled_distances(rows):
    squares = rows.pow(2).sum(1)
    distances = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.T).clamp(min=1e-12).sqrt()
    distances = distances * (1 - torch.eye(len(rows)))
    return distances / distances[distances > 0].mean()


def _angles(rows):
    ways = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2)
    return torch.bmm(ways, ways.transpose(1, 2))


def correlation(student, teacher):
    kernels = []
    for x in (student, teacher.detach()):
        cosines = F.normalize(x) @ F.normalize(x).T
        terms = [math.exp(-0.8) * 0.8**p / math.factorial(p) * cosines.pow(p) for p in range(3)]
        kernels.append(sum(terms))
    return (kernels[0] - kernels[1]).pow(2).mean()


def ickd(student, teacher):
    maps = (student.flatten(2), teacher.detach().flatten(2))
    grams = [F.normalize(torch.bmm(x, x.permute(0, 2, 1)), dim=2) for x in maps]
    return (grams[0] - grams[1]).pow(2).sum() / (student.shape[0] * student.shape[1])


def mmd(student, teacher):
    """Every difference of two samples, as a vector."""
    teacher = teacher.detach()

    def squares(x, y):
        return (x.unsqueeze(1) - y.unsqueeze(0)).pow(2).sum(2)

    cross = squares(student, teacher)
    variance = cross.detach().mean()
    own, other, cross = (
        torch.exp(-d / (2 * variance)).mean() for d in (squares(student, student), squares(teacher, teacher), cross)
    )
    return own + other - 2 * cross


def moments(student, teacher):
    means, covariances = [], []
    for x in (student, teacher.detach()):
        means.append(x.mean(0))
        covariances.append((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    return (means[0] - means[1]).pow(2).mean() + (covariances[0] - covariances[1]).pow(2).mean()


def info_nce(student, teacher):
    scores = F.normalize(student) @ F.normalize(teacher).T / 0.07
    return F.cross_entropy(scores, torch.arange(len(student)))


def triplet(student, teacher):
    """Every difference of two samples, as a vector."""
    s, t = F.normalize(student), F.normalize(teacher)
    squares = (s.unsqueeze(1) - t.unsqueeze(0)).pow(2).sum(2)
    other = squares.masked_fill(torch.eye(len(s), dtype=torch.bool), float("inf"))
    return F.relu(squares.diagonal() - other.min(1).values + 0.2).mean()
