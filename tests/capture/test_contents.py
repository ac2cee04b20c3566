"""Three numbers tell inputs apart, and not the batch, padding, layout and format that they come in."""

import pytest
import torch

from lightning_kd.capture.contents import contents, same


def images(count=32):
    return torch.randn(count, 3, 9, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "dress",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.double(),
        lambda x: (x - 0.5) * 4 / 4 + 0.5,
        lambda x: torch.cat([x[:3], x[3:]]),
    ],
    ids=["channels last", "double", "rounded", "joined"],
)
def test_the_same_input_in_another_dress_is_the_same(dress):
    x = images()
    assert same(contents((dress(x),), {})["0"], contents((x,), {})["0"]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_input_in_16_bits_is_the_same_within_its_rounding(dtype):
    x = images()
    found, stored = contents((x.to(dtype),), {})["0"], contents((x,), {})["0"]
    assert same(found, stored, dtype).all()
    assert not same(found, stored).any()
    assert not same(contents((x.flip(-1).to(dtype),), {})["0"], stored, dtype).any()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(-1),
        lambda x: x.roll(1, -1),
        lambda x: x * 1.001,
        lambda x: x + 0.001,
        lambda x: x.roll(1, 0),
        lambda x: 0.99 * x + 0.01 * x.roll(1, 0),
        lambda x: x.roll(1, 1),
    ],
    ids=["mirrored", "shifted", "brighter", "lighter", "reordered", "mixed", "other channels"],
)
def test_a_changed_input_is_another(change):
    x = images()
    assert not same(contents((change(x),), {})["0"], contents((x,), {})["0"]).any()


def texts(more=0, side="right"):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30_000, (8, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[:, 9:] = torch.randint(0, 2, (8, 1), generator=generator)
    kept = [row[m.bool()] for row, m in zip(ids, mask, strict=True)]
    wide = torch.full((8, 12 + more), 1)
    shown = torch.zeros_like(wide)
    for i, row in enumerate(kept):
        place = slice(0, len(row)) if side == "right" else slice(12 + more - len(row), None)
        wide[i, place], shown[i, place] = row, 1
    return {"input_ids": wide, "attention_mask": shown}


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_makes_no_difference(side):
    found, stored = (contents((), batch)["input_ids"] for batch in (texts(5, side), texts()))
    assert same(found, stored).all()


def test_one_token_makes_a_difference():
    batch = texts()
    stored = contents((), batch)["input_ids"]
    batch["input_ids"][:, 4] += 1
    assert not same(contents((), batch)["input_ids"], stored).any()


def test_labels_count_by_their_place_among_those_that_are_no_padding():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 50, (3, 4), generator=generator)
    padded = torch.cat([torch.full((3, 2), -100), labels, torch.full((3, 3), -100)], 1)
    stored = contents((), {"labels": labels})["labels"]
    assert same(contents((), {"labels": padded})["labels"], stored).all()
    assert not same(contents((), {"labels": labels.flip(1)})["labels"], stored).any()


def test_rows_do_not_count_and_nested_inputs_do():
    x = images(4)
    found = contents(((x, x),), {"index": torch.arange(4), "more": {"a": x}, "boxes": [x[0], x[1][:2]]})
    assert sorted(found) == ["0.0", "0.1", "boxes", "more.a"]
    assert torch.equal(found["boxes"][0], found["0.0"][0])


def test_words_and_numbers_count():
    x = images(3)
    stored = contents((), {"x": x, "kind": ["a", "b", "a"], "age": [1, 2.5, 3]})
    other = contents((), {"x": x, "kind": ["a", "c", "a"], "age": [1, 2.5, 4]})
    assert same(other["kind"], stored["kind"]).tolist() == [True, False, True]
    assert same(other["age"], stored["age"]).tolist() == [True, True, False]


def test_autocast_changes_nothing():
    x = images()
    stored = contents((x,), {})["0"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contents((x,), {})["0"], stored)


def test_missing_values_and_large_numbers_are_inputs_too():
    x = images(4)
    x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0] = float("nan"), float("inf"), 1e30
    stored = contents((x,), {})["0"]
    assert stored.isfinite().all()
    assert same(contents((x.clone(),), {})["0"], stored).all()
    assert same(contents((x.roll(1, 1),), {})["0"], stored).tolist() == [False] * 4
