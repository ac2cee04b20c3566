"""The example of stored answers prints its table."""

import pytest

from examples.digits import stored


@pytest.mark.slow
def test_the_table_is_printed(capsys):
    stored.main(seeds=2, epochs=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(stored.ARMS)
