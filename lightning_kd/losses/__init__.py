"""The loss components, one file a family; each file holds the formula and the component that uses it."""

from lightning_kd.losses.attention import ATLoss as ATLoss
from lightning_kd.losses.base import DistillationLoss as DistillationLoss
from lightning_kd.losses.base import StepTensors as StepTensors
from lightning_kd.losses.be_your_own_teacher import BYOTLoss as BYOTLoss
from lightning_kd.losses.boundary import ABLoss as ABLoss
from lightning_kd.losses.contrastive import InfoNCELoss as InfoNCELoss
from lightning_kd.losses.contrastive import TripletLoss as TripletLoss
from lightning_kd.losses.crd import CRDLoss as CRDLoss
from lightning_kd.losses.dist import DISTLoss as DISTLoss
from lightning_kd.losses.dkd import DKDLoss as DKDLoss
from lightning_kd.losses.factor import FTLoss as FTLoss
from lightning_kd.losses.feature import HintLoss as HintLoss
from lightning_kd.losses.flow import FSPLoss as FSPLoss
from lightning_kd.losses.hybrid import HybridLoss as HybridLoss
from lightning_kd.losses.mutual import MutualLearning as MutualLearning
from lightning_kd.losses.overhaul import OFDLoss as OFDLoss
from lightning_kd.losses.probabilistic import PKTLoss as PKTLoss
from lightning_kd.losses.relation import RKDLoss as RKDLoss
from lightning_kd.losses.response import KDLoss as KDLoss
from lightning_kd.losses.review import ReviewKDLoss as ReviewKDLoss
from lightning_kd.losses.selectivity import NSTLoss as NSTLoss
from lightning_kd.losses.self_distillation import TfKDLoss as TfKDLoss
from lightning_kd.losses.similarity import SPLoss as SPLoss
from lightning_kd.losses.temperature import AdaptiveTemperature as AdaptiveTemperature
from lightning_kd.losses.variational import VIDLoss as VIDLoss
