"""What is left out: benchmarks, unless their folder is named, and what needs a GPU where there is none."""

import torch


def pytest_ignore_collect(collection_path, config):
    asked = any("benchmarks" in str(argument) for argument in config.args)
    return True if "benchmarks" in collection_path.parts and not asked else None


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
