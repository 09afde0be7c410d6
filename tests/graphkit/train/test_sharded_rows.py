"""Folders of rows: written by ranks, read back by any, and what is refused."""

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphkit.errors import UserError
from graphkit.nn.embedding.partition_range import range_of
from graphkit.testing import on_ranks
from graphkit.train.manifest import files_of_rank
from graphkit.train.sharded import Shard, load_rows, raise_together, save_rows, stored_rows


def test_other_tables_on_another_rank_are_refused(tmp_path):
    def work(rank):
        rows, count = range_of(4, rank, 2)
        names = ["a"] if rank else ["a", "b"]
        with pytest.raises(UserError, match="rank 1 has the partitioned tables"):
            save_rows(tmp_path / "rows", {name: Shard(torch.ones(count, 2), rows) for name in names})

    assert on_ranks(2, work, tmp_path) == [0, 0]


def test_rows_that_are_not_the_rank_s_block_are_refused(tmp_path):
    rows, _ = range_of(7, 1, 2)
    with pytest.raises(ValueError, match=r"'a' has 3 rows, RowRange\(total=7, start=4\), on rank 0 of 1"):
        save_rows(tmp_path / "rows", {"a": Shard(torch.ones(3, 2), rows)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_data_types_and_ranks_of_tensors(dtype, tmp_path):
    tables = {
        "a": torch.arange(10).to(dtype),
        "b/c": torch.arange(40).reshape(5, 2, 4).to(dtype).transpose(1, 2),
        "tied": torch.arange(10).to(dtype),
    }
    tables["tied"] = tables["a"]
    shards = {name: Shard(table, range_of(len(table), 0, 1)[0]) for name, table in tables.items()}
    listing = save_rows(tmp_path / "rows", shards)
    assert listing["rows-00001.safetensors"]["rows"] == {"a": [0, 10], "b/c": [0, 5], "tied": [0, 10]}
    stored = stored_rows(tmp_path / "rows")
    into = {name: Shard(torch.zeros_like(table), None) for name, table in tables.items()}
    load_rows(tmp_path / "rows", into)
    for name, table in tables.items():
        assert torch.equal(stored[name].read(0, len(table)), table)
        assert torch.equal(into[name].local, table)
        assert stored[name].dtype == dtype


def test_missing_rows_are_noticed(tmp_path):
    def work(rank):
        rows, count = range_of(7, rank, 3)
        save_rows(tmp_path / "rows", {"a": Shard(torch.ones(count, 2), rows)})

    assert on_ranks(3, work, tmp_path) == [0, 0, 0]
    assert stored_rows(tmp_path / "rows")["a"].shape == (7, 2)
    (tmp_path / "rows" / "rows-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"rows of 'a' from 6; those from 3 are missing"):
        stored_rows(tmp_path / "rows")


def test_rows_are_written_from_where_they_are(tmp_path, monkeypatch):
    table, seen = torch.ones(4, 2), {}
    real = safetensors.torch.save_file

    def save_file(tensors, path, metadata):
        seen.update({name: tensor.data_ptr() for name, tensor in tensors.items()})
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    save_rows(tmp_path / "rows", {"a": Shard(table, range_of(4, 0, 1)[0])})
    assert seen == {"a": table.data_ptr()}


def test_an_error_on_one_rank_is_told_on_all(tmp_path):
    def work(rank):
        error = ValueError("odd") if rank == 1 else None
        kind, text = (ValueError, "odd") if rank == 1 else (UserError, "rank 1 failed with ValueError: odd")
        with pytest.raises(kind, match=text):
            raise_together(error)
        with pytest.raises(UserError, match=r"^disk full$"):
            raise_together(UserError("disk full") if rank == 1 else None)
        raise_together(None)

    assert on_ranks(2, work, tmp_path) == [0, 0]


@given(
    total=st.integers(0, 20), writers=st.integers(1, 5), readers=st.integers(1, 5), others=st.integers(0, 3)
)
def test_every_file_is_verified_by_a_rank_that_reads_it(total, writers, readers, others):
    listing = {"model.safetensors": {}}
    for writer in range(writers):
        rows, count = range_of(total, writer, writers)
        few, number = range_of(others, writer, writers)
        spans = {"a": [rows.start, count], "b": [few.start, number]}
        listing[f"model.rows/{writer}"] = {"rows": spans}
    chosen = [files_of_rank(listing, reader, readers) for reader in range(readers)]
    assert set().union(*chosen) == set(listing) - {"model.safetensors"}
    for reader, files in enumerate(chosen):
        for name, entry in listing.items():
            wanted = False
            for table, (start, count) in entry.get("rows", {}).items():
                own, size = range_of(total if table == "a" else others, reader, readers)
                wanted |= bool(set(range(start, start + count)) & set(range(own.start, own.start + size)))
            assert not wanted or name in files
