"""Teachers: frozen, in eval mode, and out of the checkpoint."""

from lightning_kd.teachers.checkpoint import from_checkpoint as from_checkpoint
from lightning_kd.teachers.frozen import FrozenTeacher as FrozenTeacher
