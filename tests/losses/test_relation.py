"""Relations between samples: the authors' numbers, the definition in loops, and what the losses do not see."""

import pytest

from lightning_kd.functional import rkd_loss
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("rkd", "", "__dist", "__angle"), ids=str)
def test_rkd_equals_the_authors_code(record: Golden) -> None:
    factors = {"distance_weight": record.hyper["w_d"], "angle_weight": record.hyper["w_a"]}
    check_golden(record, lambda s, t, _: rkd_loss(s[0], t[0], **factors))
