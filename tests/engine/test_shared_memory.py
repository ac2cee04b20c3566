"""A teacher that has its numbers in the student's memory would learn along, so it is refused."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss


def nets():
    return (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in range(2))


def share_data(student, teacher):
    teacher[0].weight.data = student[0].weight.data


def share_a_part(student, teacher):
    teacher[2].bias.data = student[0].weight.data.flatten()[5:8]


def share_a_buffer(student, teacher):
    teacher[1].running_mean = student[1].running_mean


def share_through_numpy(student, teacher):
    teacher[0].bias.data = torch.from_numpy(student[0].bias.detach().numpy())


@pytest.mark.parametrize("share", [share_data, share_a_part, share_a_buffer, share_through_numpy])
def test_memory_of_the_student_is_refused(share):
    student, teacher = nets()
    share(student, teacher)
    with pytest.raises(ValueError, match=r"The student's '.*' and the teacher's '.*' lie in the same memory.*deepcopy"):
        DistillationModule(student, teacher, [KDLoss()])


def test_neighbours_in_one_memory_are_allowed():
    student, teacher = nets()
    both = torch.randn(2, 4)
    student[0].bias.data, teacher[0].bias.data = both[0], both[1]
    DistillationModule(student, teacher, [KDLoss()])


def test_what_has_no_memory_yet_is_allowed():
    with torch.device("meta"):
        teacher = nn.Linear(4, 3)
    DistillationModule(nn.LazyLinear(3), teacher, [KDLoss()])
