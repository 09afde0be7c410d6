"""Processes of a job: what their errors mean, and what they share out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from graphkit.distributed import launch
from graphkit.distributed.launch import LostRankError, first_ones_first, launch_id, process_group
from graphkit.distributed.ranks import gather_rows, in_turn, same_everywhere, share_out
from graphkit.environment import rank_and_world
from graphkit.testing import on_ranks


def lost(act: object) -> LostRankError:
    with pytest.raises(RuntimeError) as caught:
        act()  # type: ignore[operator]
    found = launch._lost(caught.value, 0.05)
    assert found is not None, caught.value
    return found


def test_a_rank_that_ended_is_told_from_one_that_is_late(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        values = torch.zeros(1)
        if rank == 1:
            time.sleep(4)
            os.kill(os.getpid(), signal.SIGKILL)
        late = lost(lambda: dist.all_reduce(values))
        assert "rank 0 of 2 waited 0.05 minutes for another rank" in str(late)
        assert "--timeout MINUTES" in str(late)
        assert late.exit_code == 1
        os._exit(0)  # the group can't be used any more

    assert on_ranks(2, work, tmp_path, seconds=2.0) == [0, -signal.SIGKILL]

    def again(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        assert "another rank ended" in str(lost(lambda: dist.all_reduce(torch.zeros(1))))
        os._exit(0)

    assert on_ranks(2, again, tmp_path) == [0, -signal.SIGKILL]


def test_other_errors_are_left_alone() -> None:
    assert launch._lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 1.0) is None


def test_without_torchrun_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with process_group():
        assert rank_and_world() == (0, 1)
    assert launch_id() is None


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_parts_are_shared_out_and_come_back_in_order(count: int, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        own: list[int] = []

        def square(part: int) -> tuple[torch.Tensor, int]:
            own.append(part)
            return torch.full((part,), float(part)), part**2

        found = share_out(range(count), square)
        assert own[: len(range(count)[rank::3])] == list(range(count))[rank::3]
        assert len(own) == -(-count // 3)  # equally often on all ranks, for work that they do together
        wanted = in_turn(range(count), square)
        assert [value for _, value in found] == [value for _, value in wanted]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, wanted, strict=True))

    assert on_ranks(3, work, tmp_path) == [0, 0, 0]


def test_rows_of_all_ranks_are_gathered_without_padding(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        parts = gather_rows(torch.full((2 * rank, 3), float(rank)))
        assert [part.shape for part in parts] == [(0, 3), (2, 3), (4, 3)]
        assert all(bool((part == source).all()) for source, part in enumerate(parts))
        assert same_everywhere({"rank": rank}) == {"rank": 0}

    assert on_ranks(3, work, tmp_path) == [0, 0, 0]


def test_the_first_process_goes_first_and_the_others_meet_its_error(tmp_path: Path) -> None:
    place = tmp_path / "made"

    def work(rank: int) -> None:
        with first_ones_first():
            assert place.exists() == (rank > 0)
            time.sleep(0.2)
            place.touch()
        with pytest.raises(ValueError, match="bad"), first_ones_first():
            raise ValueError("bad")

    assert on_ranks(2, work, tmp_path) == [0, 0]
