"""Networks by name out of timm, torchvision and transformers: pretrained to teach, or fresh to learn.

Needs the extra of the library: ``timm``, ``torchvision`` or ``hf``. May import ``hf`` and what is below it. Begin with
``networks.py``. To add a library, write a file like ``of_timm.py`` and enter it in ``networks.py``.
"""

from lightning_kd.named.networks import fresh as fresh
from lightning_kd.named.networks import pretrained as pretrained
