"""Data modules of the examples, images of folders, and ``Indexed``, which gives each sample its row.

May import nothing of this package but itself. Begin with ``indexed.py``.
To add a data set, derive a data module from ``InMemoryDataModule`` or Lightning's own.
"""

from lightning_kd.data.cifar100 import CIFAR100DataModule as CIFAR100DataModule
from lightning_kd.data.digits import DigitsDataModule as DigitsDataModule
from lightning_kd.data.images import ImageFolder as ImageFolder
from lightning_kd.data.indexed import Indexed as Indexed
from lightning_kd.data.networks.digits import DigitsConvNet as DigitsConvNet
from lightning_kd.data.replayed import Replayed as Replayed
