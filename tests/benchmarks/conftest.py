"""What the benchmarks measure is told at the end of the run, whether or not output is captured."""

import pytest

LINES = pytest.StashKey()


@pytest.fixture
def tell(request):
    """Add a line to the table at the end of the run."""
    return request.config.stash.setdefault(LINES, []).append


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)
