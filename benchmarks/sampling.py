"""Time and memory of neighbour sampling, compiled and in tensor operations.

python benchmarks/sampling.py [--large | --huge] [--folder DIR] [--json FILE]

One thread, process CPU time, median of 10 batches after 3 that aren't counted: fan-out 15, 10, 5 around 1,024
random nodes that have neighbours. Graphs are R-MAT:

- by default the size of ogbn-arxiv, 169,343 nodes and 1.17 million edges, both directions kept;
- ``--large``: 2.4 million nodes with 60 million entries (30 million edges drawn, both directions kept), then
  with twice as many, as in ogbn-products;
- ``--huge``: 12 million nodes and 120 million directed edges drawn, sorted on disk and sampled from there,
  with the process's own memory beside what the array sizes predict.

Repeated edges are dropped, so a graph has somewhat fewer entries than were drawn; the table says how many.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from graphs import rmat_chunks, rmat_edges
from torch import Tensor

from graphkit.mapped import Chunks, build_mapped_csr
from graphkit.sampling import NeighborSampler, SampledBatch, prefetch
from graphkit.sparse import Adjacency

FANOUTS, BATCH, WARM, REPEATS = [15, 10, 5], 1024, 3, 10
HUGE_NODES, HUGE_EDGES = 12_000_000, 120_000_000
MB = 1e6

Row = dict[str, float]


def drawn(num_nodes: int, num_edges: int) -> Chunks:
    """The edges of a large graph, piece by piece."""
    return lambda: (torch.from_numpy(piece) for piece in rmat_chunks(num_nodes, num_edges))


def in_memory(num_nodes: int, num_edges: int, folder: str) -> Adjacency:
    """A large undirected graph, sorted on disk and then loaded."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        chunks = drawn(num_nodes, num_edges)
        mapped = build_mapped_csr(chunks, num_nodes, place, key="benchmark", undirected=True)
        return Adjacency(mapped.rowptr.clone(), mapped.col.clone(), num_nodes, True)


def small() -> Adjacency:
    """A graph of ogbn-arxiv's size, both directions of each edge."""
    edges = torch.from_numpy(rmat_edges(169_343, 1_170_000))
    return Adjacency.from_edge_index(torch.cat([edges, edges.flip(0)], 1), 169_343)


def size_of(batch: SampledBatch) -> int:
    """Returns the bytes of a batch's tensors."""
    return sum(t.numel() * t.element_size() for t in batch if isinstance(t, Tensor))


def measure(make: Callable[[int], SampledBatch]) -> Row:
    """Returns the median CPU milliseconds of a batch and the means of its sizes."""
    spent, batches = [], []
    for step in range(WARM + REPEATS):
        start = time.process_time()
        batch = make(step)
        spent.append(1000 * (time.process_time() - start))
        batches.append((batch.n_id.numel(), batch.col.numel(), size_of(batch)))
    nodes, entries, size = (statistics.mean(column) for column in zip(*batches[WARM:], strict=True))
    return {"cpu_ms": statistics.median(spent[WARM:]), "nodes": nodes, "entries": entries, "mb": size / MB}


def rows(graph: Adjacency) -> Iterator[tuple[str, Row]]:
    """Measures both forms on the same batches."""
    live = graph.count().nonzero().squeeze(1)
    order = live[torch.randperm(live.numel(), generator=torch.Generator().manual_seed(0))]
    seeds = [order[BATCH * step : BATCH * (step + 1)] for step in range(WARM + REPEATS)]
    for name, compiled in (("compiled", True), ("tensor operations", False)):
        sampler = NeighborSampler(graph, FANOUTS, compiled=compiled)
        yield name, measure(lambda step, s=sampler: s.sample(seeds[step], 0, step))
    left, right = (NeighborSampler(graph, FANOUTS, compiled=c).sample(seeds[0], 0, 0) for c in (True, False))
    assert torch.equal(left.e_id, right.e_id)


def show(graph: Adjacency, title: str) -> dict[str, Row]:
    """Prints a graph's part of the table."""
    print(
        f"{title}: {graph.num_rows} nodes, {graph.col.numel()} entries, largest degree "
        f"{int(graph.count().max())}, {(8 * graph.rowptr.numel() + 4 * graph.col.numel()) / MB:.0f} MB"
    )
    print(f"{'':24}{'CPU ms':>10}{'nodes':>10}{'entries':>10}{'batch MB':>10}")
    figures = {}
    for name, row in rows(graph):
        figures[f"{title}: {name}"] = row
        print(f"{name:24}{row['cpu_ms']:10.1f}{row['nodes']:10.0f}{row['entries']:10.0f}{row['mb']:10.1f}")
    return figures


def anonymous() -> float:
    """Returns the MB of this process's memory that no file stands behind (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / MB


@contextmanager
def peak() -> Iterator[Row]:
    """Watches the process's own memory; ``peak_mb`` of the result is by how much it grew at most."""
    found: Row = {"peak_mb": 0.0}
    before, done = anonymous(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found["peak_mb"] = max(found["peak_mb"], anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.process_time()
    try:
        yield found
    finally:
        found["cpu_s"] = time.process_time() - start
        done.set()
        thread.join()


def huge(folder: str) -> dict[str, Row]:
    """Builds a graph on disk and samples from it."""
    nodes, buffer = HUGE_NODES, 256 << 20
    warm_up(folder)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with peak() as building:
            chunks = drawn(nodes, HUGE_EDGES)
            graph = build_mapped_csr(
                chunks, nodes, place, key="benchmark", undirected=False, buffer_bytes=buffer
            )
        entries = graph.col.numel()
        print(f"on disk: {nodes} nodes, {entries} entries, {(8 * (nodes + 1) + 4 * entries) / MB:.0f} MB")
        # The generator keeps a permutation of the nodes, and up to three arrays of a piece's size are alive.
        expected = (8 * nodes + buffer + 8 * nodes + 3 * 16 * (1 << 22)) / MB
        print(
            f"building: {building['cpu_s']:.0f} s CPU, {building['peak_mb']:.0f} MB of own memory; "
            f"{expected:.0f} MB by array sizes, generator included"
        )
        figures = {"building": building}
        order = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
        seeds = order[: BATCH * (WARM + REPEATS)].view(-1, BATCH).clone()
        del order
        for workers in (0, 2):
            with peak() as sampling:
                sampler = NeighborSampler(graph, FANOUTS)
                items = prefetch(
                    lambda step, s=sampler: s.sample(seeds[step], 0, step), range(len(seeds)), workers
                )
                sizes = [(batch.n_id.numel(), batch.col.numel()) for batch in items]
            sampling["cpu_ms"] = 1000 * sampling.pop("cpu_s") / len(sizes)
            sampling["nodes"], sampling["entries"] = map(statistics.mean, zip(*sizes, strict=True))
            print(
                f"{workers} workers: {sampling['cpu_ms']:.0f} ms CPU, {sampling['nodes']:.0f} nodes and "
                f"{sampling['entries']:.0f} entries a batch; {sampling['peak_mb']:.0f} MB of own memory, "
                f"local ids {4 * nodes * max(workers, 1) / MB:.0f} MB by array sizes"
            )
            figures[f"sampling, {workers} workers"] = sampling
            del sampler, items
    return figures


def warm_up(folder: str) -> None:
    """Compiles what is measured afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        graph = build_mapped_csr(drawn(100, 1000), 100, place, key="warm", undirected=True)
        NeighborSampler(graph, FANOUTS).sample(torch.arange(5), 0, 0)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Neighbour sampling: time and memory.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--large", action="store_true", help="2.4 million nodes, 60 and 120 million entries")
    size.add_argument("--huge", action="store_true", help="12 million nodes, 120 million entries, on disk")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where graphs are sorted (1 GB)")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    figures: dict[str, Row] = {}
    if options.huge:
        figures = huge(options.folder)
    elif options.large:
        for pairs in (30_000_000, 60_000_000):
            graph = in_memory(2_400_000, pairs, options.folder)
            figures |= show(graph, f"R-MAT of {pairs // 10**6} million edges, both directions")
            del graph
    else:
        figures = show(small(), "R-MAT of ogbn-arxiv's size, both directions")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
