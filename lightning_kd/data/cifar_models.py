"""The networks of the published CIFAR-100 table, for YAML files: ``lightning_kd.data.cifar_models.resnet20``."""

from lightning_kd.data.networks.cifar_mobile import mobilenet_v2 as mobilenet_v2
from lightning_kd.data.networks.cifar_mobile import shufflenet_v1 as shufflenet_v1
from lightning_kd.data.networks.cifar_mobile import shufflenet_v2 as shufflenet_v2
from lightning_kd.data.networks.cifar_resnet import resnet8 as resnet8
from lightning_kd.data.networks.cifar_resnet import resnet8x4 as resnet8x4
from lightning_kd.data.networks.cifar_resnet import resnet14 as resnet14
from lightning_kd.data.networks.cifar_resnet import resnet20 as resnet20
from lightning_kd.data.networks.cifar_resnet import resnet32 as resnet32
from lightning_kd.data.networks.cifar_resnet import resnet32x4 as resnet32x4
from lightning_kd.data.networks.cifar_resnet import resnet44 as resnet44
from lightning_kd.data.networks.cifar_resnet import resnet50 as resnet50
from lightning_kd.data.networks.cifar_resnet import resnet56 as resnet56
from lightning_kd.data.networks.cifar_resnet import resnet110 as resnet110
from lightning_kd.data.networks.cifar_resnet import wrn_16_1 as wrn_16_1
from lightning_kd.data.networks.cifar_resnet import wrn_16_2 as wrn_16_2
from lightning_kd.data.networks.cifar_resnet import wrn_40_1 as wrn_40_1
from lightning_kd.data.networks.cifar_resnet import wrn_40_2 as wrn_40_2
from lightning_kd.data.networks.cifar_vgg import vgg8 as vgg8
from lightning_kd.data.networks.cifar_vgg import vgg13 as vgg13
