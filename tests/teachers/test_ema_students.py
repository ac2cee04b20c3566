"""The average of another student begins anew, so that folds and seeds do not depend on those before."""

import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import EMATeacher
from tests import support


def fitted(mean_teacher, student):
    module = DistillationModule(student, None, [KDLoss()], task_loss=nn.CrossEntropyLoss(), optimizer=sgd)
    support.fit(module, callbacks=[mean_teacher])
    return student


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def test_another_student_is_followed_from_its_first_step():
    mean_teacher = EMATeacher(0.999)
    torch.manual_seed(0)
    first, second = support.student(), support.student()
    second.load_state_dict(first.state_dict())
    fitted(mean_teacher, first)
    steps = mean_teacher.steps
    fitted(mean_teacher, second)
    assert mean_teacher.steps == steps > 0
    support.assert_same_weights(first, second)
    fitted(mean_teacher, second)
    assert mean_teacher.steps == 2 * steps
