"""Data sets."""

from lightning_kd.data.cifar100 import CIFAR100DataModule as CIFAR100DataModule
from lightning_kd.data.digits import DigitsDataModule as DigitsDataModule
from lightning_kd.data.digits_models import DigitsConvNet as DigitsConvNet
from lightning_kd.data.indexed import Indexed as Indexed
