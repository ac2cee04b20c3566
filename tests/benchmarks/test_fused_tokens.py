"""Token distillation with both heads inside: against the four products of a step, and against whole logits.

python -m pytest tests/benchmarks/test_fused_tokens.py
"""

import json

import pytest

from tests.support import processes

TOKENS, CHUNK = 2048, 256
LIGHTER = {"forward_kl": 15, "reverse_kl": 15, "jsd": 20}
"""Of about 84 MiB, the gradient of the head itself is 62."""
LIMIT = {1: 1.15, 2: 1.2}
"""Seconds against those of the products alone, by the number of threads. Two threads wait for one another at every
operation, so the second number holds on a machine that does nothing else."""


def measured(*arguments: object, **environment: str) -> object:
    changed = processes.inherited(**environment)
    return json.loads(processes.program("benchmarks.fused_tokens", *arguments, environment=changed, limit=600).stdout)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_takes_hardly_more_than_the_products(threads, tell):
    times = measured("time", threads, 512 * threads, CHUNK)
    products = times.pop("products")
    tell(f"{512 * threads} tokens, {threads} thread(s), seconds against {products:.2f} of the products:")
    for name, seconds in times.items():
        tell(f"  {name}: {seconds / products:.2f}")
    for name in ("forward_kl", "reverse_kl", "jsd"):
        assert times[f"fused {name}"] <= LIMIT[threads] * products
    assert times["whole jsd"] >= 1.3 * times["fused jsd"]
    assert times["fused jsd, 25 % masked"] <= 0.9 * times["fused jsd"]


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_it_takes_a_small_part_of_the_memory(name, tell):
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # so that the peak is that of live tensors
    cost = {
        way: measured("memory", 1, way, name, TOKENS, **given_back) for way in ("whole", "save", "recompute", "frozen")
    }
    tell(f"{TOKENS} tokens, {name}, MiB at the peak and kept for the backward pass:")
    for way, (peak, kept) in cost.items():
        tell(f"  {way}: {peak:.0f}, {kept:.1f}")
    assert cost["whole"][0] >= LIGHTER[name] * cost["save"][0]
    for way in ("recompute", "frozen"):
        assert cost[way][1] <= 20  # a vocabulary of hidden states would be 62
