"""What runs on demand only: benchmarks, by their folder; ``-m whole``; and what needs a GPU, where there is one."""

import torch


def pytest_ignore_collect(collection_path, config):
    asked = any("benchmarks" in str(argument) for argument in config.args)
    return True if "benchmarks" in collection_path.parts and not asked else None


def pytest_collection_modifyitems(config, items):
    absent = {"whole"} - set(config.option.markexpr.split())
    if not torch.cuda.is_available():
        absent.add("gpu")
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in absent)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
