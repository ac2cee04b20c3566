"""The losses, one file a method: the formula as a function, and the component that uses it.

May import ``capture``, ``distributed``, ``projectors``, ``schedules`` and ``configurable``.
Begin with ``logits/kd.py``.
``logits`` compares outputs, ``features`` layers, ``samples`` the samples of a batch with one another, ``tokens`` what
language models and transformers compute of each token.
To add a loss, follow the four steps in ``README.md`` here.
"""

from lightning_kd.losses.base import DistillationLoss as DistillationLoss
from lightning_kd.losses.base import StepTensors as StepTensors
from lightning_kd.losses.features.ab import ABLoss as ABLoss
from lightning_kd.losses.features.at import ATLoss as ATLoss
from lightning_kd.losses.features.byot import BYOTLoss as BYOTLoss
from lightning_kd.losses.features.cwd import CWDLoss as CWDLoss
from lightning_kd.losses.features.embedding import EmbeddingLoss as EmbeddingLoss
from lightning_kd.losses.features.fsp import FSPLoss as FSPLoss
from lightning_kd.losses.features.ft import FTLoss as FTLoss
from lightning_kd.losses.features.hint import HintLoss as HintLoss
from lightning_kd.losses.features.kdsvd import KDSVDLoss as KDSVDLoss
from lightning_kd.losses.features.mgd import MGDLoss as MGDLoss
from lightning_kd.losses.features.nst import NSTLoss as NSTLoss
from lightning_kd.losses.features.ofd import OFDLoss as OFDLoss
from lightning_kd.losses.features.pkd import PKDLoss as PKDLoss
from lightning_kd.losses.features.reviewkd import ReviewKDLoss as ReviewKDLoss
from lightning_kd.losses.features.srd import SRDLoss as SRDLoss
from lightning_kd.losses.features.vid import VIDLoss as VIDLoss
from lightning_kd.losses.hybrid import HybridLoss as HybridLoss
from lightning_kd.losses.logits.ctkd import CTKDLoss as CTKDLoss
from lightning_kd.losses.logits.dist import DISTLoss as DISTLoss
from lightning_kd.losses.logits.dkd import DKDLoss as DKDLoss
from lightning_kd.losses.logits.kd import KDLoss as KDLoss
from lightning_kd.losses.logits.mlkd import MLKDLoss as MLKDLoss
from lightning_kd.losses.logits.multilabel import MultiLabelKDLoss as MultiLabelKDLoss
from lightning_kd.losses.logits.mutual import MutualLearning as MutualLearning
from lightning_kd.losses.logits.nkd import NKDLoss as NKDLoss
from lightning_kd.losses.logits.regression import RegressionKDLoss as RegressionKDLoss
from lightning_kd.losses.logits.temperature import AdaptiveTemperature as AdaptiveTemperature
from lightning_kd.losses.logits.tfkd import TfKDLoss as TfKDLoss
from lightning_kd.losses.logits.wsld import WSLDLoss as WSLDLoss
from lightning_kd.losses.samples.cc import CCLoss as CCLoss
from lightning_kd.losses.samples.contrastive import InfoNCELoss as InfoNCELoss
from lightning_kd.losses.samples.contrastive import TripletLoss as TripletLoss
from lightning_kd.losses.samples.crd import CRDLoss as CRDLoss
from lightning_kd.losses.samples.ickd import ICKDLoss as ICKDLoss
from lightning_kd.losses.samples.pkt import PKTLoss as PKTLoss
from lightning_kd.losses.samples.rkd import RKDLoss as RKDLoss
from lightning_kd.losses.samples.sp import SPLoss as SPLoss
from lightning_kd.losses.tokens.attention import AttentionMatrixLoss as AttentionMatrixLoss
from lightning_kd.losses.tokens.hidden import HiddenStateLoss as HiddenStateLoss
from lightning_kd.losses.tokens.qkv import QKVRelationLoss as QKVRelationLoss
from lightning_kd.losses.tokens.sparse import SparseLogits as SparseLogits
from lightning_kd.losses.tokens.token_kd import TokenKDLoss as TokenKDLoss
from lightning_kd.losses.tokens.uld import ULDLoss as ULDLoss
