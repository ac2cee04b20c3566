"""Which strategy for a pair of networks: each as an arm beside the student alone, over seeds, with honest statistics.

May import all that the doors import, and the doors. Begin with ``arms.py``, what is compared; ``worker.py`` is the loop
that does it; ``study.py`` says which units of work there are and who does them; ``statistics.py`` gives the verdicts.
``SameDraws`` and ``SameRows`` stand in the configuration of each arm, so that ``lightning-kd fit`` repeats its number.
"""

from lightning_kd.comparison.same_draws import SameDraws as SameDraws
from lightning_kd.comparison.same_rows import SameRows as SameRows
