"""Equal ids are found, and what belongs to them is added up in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphkit.distributed.grouping import Groups, group_equal, sum_groups

LARGE = 2**40  # does not fit beside a position in eight bytes


def check(groups: Groups, ids: list[int]) -> None:
    keys, place = groups.keys.tolist(), groups.place.tolist()
    assert keys == sorted(set(ids))
    assert [keys[at] for at in place] == ids
    assert groups.first.tolist() == [ids.index(key) for key in keys]
    again = [at for at, key in enumerate(ids) if key in ids[:at]]
    assert groups.rest.tolist() == sorted(again, key=lambda at: (ids[at], at))


@given(st.lists(st.integers(0, 9) | st.integers(0, LARGE)))
def test_every_key_once_in_order_and_where_it_occurs(ids: list[int]) -> None:
    check(group_equal(torch.tensor(ids, dtype=torch.int64)), ids)


@given(st.lists(st.lists(st.integers(0, 20), unique=True).map(sorted), max_size=3))
def test_ascending_runs_are_merged(runs: list[list[int]]) -> None:
    ids = [key for run in runs for key in run]
    check(group_equal(torch.tensor(ids, dtype=torch.int64), runs=True), ids)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_sums_are_taken_from_the_first_to_the_last(ids: list[int]) -> None:
    groups = group_equal(torch.tensor(ids, dtype=torch.int64))
    values = torch.randn(len(ids), 3)
    expected = torch.zeros(groups.keys.numel(), 3)
    for at, row in zip(groups.place.tolist(), values, strict=True):
        expected[at] = expected[at] + row
    assert torch.equal(sum_groups(values, groups), expected)


def test_other_devices_group_alike() -> None:
    class Elsewhere(torch.Tensor):
        """A tensor that says it isn't on the CPU."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    ids = torch.randint(0, 50, (200,))
    groups = group_equal(ids.as_subclass(Elsewhere))
    check(Groups(*(part.as_subclass(torch.Tensor) for part in groups)), ids.tolist())


@pytest.mark.parametrize("runs", [False, True])
def test_no_ids_are_no_groups(runs: bool) -> None:
    groups = group_equal(torch.zeros(0, dtype=torch.int64), runs=runs)
    assert [part.numel() for part in groups] == [0] * 4
    assert sum_groups(torch.zeros(0, 3), groups).shape == (0, 3)
