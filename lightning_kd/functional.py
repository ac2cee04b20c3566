"""Every formula in one flat namespace: tensors in, scalar out, student before teacher."""

from lightning_kd.losses.attention import attention_transfer_loss as attention_transfer_loss
from lightning_kd.losses.be_your_own_teacher import byot_loss as byot_loss
from lightning_kd.losses.boundary import ab_loss as ab_loss
from lightning_kd.losses.contrastive import info_nce_loss as info_nce_loss
from lightning_kd.losses.contrastive import triplet_loss as triplet_loss
from lightning_kd.losses.crd import crd_loss as crd_loss
from lightning_kd.losses.dist import dist_loss as dist_loss
from lightning_kd.losses.dkd import dkd_loss as dkd_loss
from lightning_kd.losses.factor import factor_transfer_loss as factor_transfer_loss
from lightning_kd.losses.feature import hint_loss as hint_loss
from lightning_kd.losses.flow import fsp_loss as fsp_loss
from lightning_kd.losses.flow import fsp_matrix as fsp_matrix
from lightning_kd.losses.hybrid import hybrid_loss as hybrid_loss
from lightning_kd.losses.mutual import mutual_learning_loss as mutual_learning_loss
from lightning_kd.losses.overhaul import ofd_loss as ofd_loss
from lightning_kd.losses.probabilistic import pkt_loss as pkt_loss
from lightning_kd.losses.relation import rkd_loss as rkd_loss
from lightning_kd.losses.response import kd_loss as kd_loss
from lightning_kd.losses.review import hcl_loss as hcl_loss
from lightning_kd.losses.selectivity import nst_loss as nst_loss
from lightning_kd.losses.self_distillation import tfkd_loss as tfkd_loss
from lightning_kd.losses.similarity import similarity_preserving_loss as similarity_preserving_loss
from lightning_kd.losses.variational import vid_loss as vid_loss
