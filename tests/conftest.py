"""Benchmarks run on demand only: name their folder on the command line."""


def pytest_ignore_collect(collection_path, config):
    asked = any("benchmarks" in str(argument) for argument in config.args)
    return True if "benchmarks" in collection_path.parts and not asked else None
