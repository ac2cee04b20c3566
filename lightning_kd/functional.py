"""Every formula in one flat namespace: tensors in, scalar out, student before teacher."""

from lightning_kd.losses.feature import hint_loss as hint_loss
from lightning_kd.losses.response import kd_loss as kd_loss
