"""Models of Hugging Face: made of folders, cut to a few layers, and taught by their own base without adapters.

Needs the extra ``hf`` (``pip install 'lightning_kd[hf]'``); nothing else here imports transformers. May import
``teachers`` and what is below it.
"""

from lightning_kd.hf.adapters import AdaptersOff as AdaptersOff
from lightning_kd.hf.adapters import adapters_off as adapters_off
from lightning_kd.hf.cut import student_from_teacher as student_from_teacher
from lightning_kd.hf.pretrained import from_config as from_config
from lightning_kd.hf.pretrained import from_pretrained as from_pretrained
