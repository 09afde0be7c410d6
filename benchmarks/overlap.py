"""Time and memory of common neighbours and pooling, against the formulation in whole-array tensor operations.

python benchmarks/overlap.py [--json FILE]

One thread, process CPU time, median over repeats. The graph is R-MAT with 200,000 nodes and 2.0 million
edges; targets are edges of it (whose ends have high degrees) or random pairs. The peak is
by how much the resident set grows at most during one call, its result included.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from graphs import rmat_edges
from torch import Tensor

from graphkit.kernels import common_neighbors, overlap_count, overlap_pool
from graphkit.sparse import CSRGraph

NODES, EDGES, TARGETS, CANDIDATE_TARGETS, WIDTH = 200_000, 2_000_000, 8192, 1024, 64


def textbook_lists(graph: CSRGraph, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Gathers all neighbours of both ends as keys ``pair << 32 | node``; searches one array in the other."""
    keys = []
    for nodes in pairs:
        size = graph.rowptr[nodes + 1] - graph.rowptr[nodes]
        pair = torch.repeat_interleave(torch.arange(nodes.numel()), size)
        entry = torch.arange(pair.numel()) + (graph.rowptr[nodes] - size.cumsum(0) + size)[pair]
        keys.append((pair << 32) | graph.col[entry])
    small, large = sorted(keys, key=torch.numel)
    if large.numel() == 0:
        return large, large
    at = torch.searchsorted(large, small).clamp_(max=large.numel() - 1)
    shared = small[large[at] == small]
    return shared >> 32, shared & 0xFFFFFFFF


def textbook_pool(graph: CSRGraph, pairs: Tensor, x: Tensor) -> Tensor:
    """Pools by a sparse matrix of ones."""
    pair, node = textbook_lists(graph, pairs)
    shape, ones = (pairs.size(1), graph.num_nodes), torch.ones(pair.numel())
    return torch.sparse_coo_tensor(torch.stack([pair, node]), ones, shape, is_coalesced=True) @ x


def candidates(graph: CSRGraph, pairs: Tensor) -> Tensor:
    """Pairs that completion scores: each end with what only the other end has for a neighbour."""
    overlap = common_neighbors(graph.rowptr, graph.col, pairs, differences=True)
    assert overlap.only_i_ptr is not None
    assert overlap.only_j_ptr is not None
    first = torch.repeat_interleave(pairs[1], overlap.only_i_ptr.diff())
    second = torch.repeat_interleave(pairs[0], overlap.only_j_ptr.diff())
    return torch.stack([torch.cat([first, second]), torch.cat([overlap.only_i, overlap.only_j]).long()])


def build() -> dict[str, Any]:
    """The graphs, targets and features, the same in every process."""
    edges = torch.from_numpy(rmat_edges(NODES, EDGES))
    graph = CSRGraph.from_edge_index(edges, NODES)
    rng = torch.Generator().manual_seed(0)
    # For completion the targets aren't edges of the graph: it has 70 % of the edges, and they the others.
    part = CSRGraph.from_edge_index(edges[:, : int(0.7 * EDGES)], NODES)
    return {
        "graph": graph,
        "part": part,
        "edges": edges[:, :TARGETS].clone(),
        "random": torch.randint(NODES, (2, TARGETS), generator=rng),
        "held out": edges[:, -CANDIDATE_TARGETS:].clone(),
        "x": torch.randn(NODES, WIDTH, generator=rng),
    }


def cases(data: dict[str, Any]) -> dict[str, tuple[Callable[[], Any], int]]:
    """Name of a line to what it runs and how often."""
    graph, part, x = data["graph"], data["part"], data["x"]
    leaf = x.clone().requires_grad_()
    lines: dict[str, tuple[Callable[[], Any], int]] = {}
    for name in ("edges", "random"):
        pairs, structure = data[name], (graph.rowptr, graph.col, data[name])
        grad = torch.ones(pairs.size(1), WIDTH)
        lines |= {
            f"{name}: pool, textbook": (lambda p=pairs: textbook_pool(graph, p, x), 5),
            f"{name}: pool": (lambda s=structure: overlap_pool(*s, x), 15),
            f"{name}: pool, with gradient": (
                lambda s=structure, g=grad: torch.autograd.grad(overlap_pool(*s, leaf), leaf, g),
                7,
            ),
            f"{name}: count": (lambda s=structure: overlap_count(*s), 15),
            f"{name}: lists, textbook": (lambda p=pairs: textbook_lists(graph, p), 5),
            f"{name}: lists": (lambda s=structure: common_neighbors(*s), 15),
            f"{name}: lists and differences": (lambda s=structure: common_neighbors(*s, True), 7),
        }
    pairs = candidates(part, data["held out"])
    structure = (part.rowptr, part.col, pairs)
    label = f"{pairs.size(1)} candidates of {CANDIDATE_TARGETS}"
    lines |= {
        f"{label}: enumerate": (lambda: candidates(part, data["held out"]), 3),
        f"{label}: count": (lambda: overlap_count(*structure), 3),
        f"{label}: lists": (lambda: common_neighbors(*structure), 3),
        f"{label}: pool": (lambda: overlap_pool(*structure, x), 3),
    }
    return lines


def peak_growth(call: Callable[[], Any]) -> float:
    """Returns by how many MB the resident set grows at most during a call (Linux; NaN elsewhere)."""
    try:
        # What earlier calls freed goes back to the system first, and the high-water mark down to the present.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        kept = call()
        peak = resident("VmHWM") - before
        del kept
    except (OSError, AttributeError):
        return math.nan
    return peak


def resident(field: str) -> float:
    """Returns a field of this process's memory status in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measure(call: Callable[[], Any], repeats: int) -> float:
    """Returns the median CPU milliseconds of a call, after one that isn't counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Common neighbours: time and memory.")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    data = build()
    graph = data["graph"]
    torch.testing.assert_close(
        overlap_pool(graph.rowptr, graph.col, data["edges"], data["x"]),
        textbook_pool(graph, data["edges"], data["x"]),
        atol=1e-3,
        rtol=1e-4,
    )
    print(
        f"R-MAT: {graph.num_nodes} nodes, {graph.edges.size(1)} edges, largest degree "
        f"{int(graph.degree().max())}; {TARGETS} targets, F = {WIDTH}, 1 thread, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'':44}{'CPU ms':>10}{'peak MB':>10}{'textbook / ours':>18}")
    figures, baseline = {}, 0.0
    for name, (call, repeats) in cases(data).items():
        spent = measure(call, repeats)
        peak = peak_growth(call)
        figures[name] = {"cpu_ms": spent, "peak_mb": peak}
        comparable = name.endswith((": pool", ": lists")) and "candidates" not in name
        if name.endswith("textbook"):
            baseline = spent
        ratio = f"{baseline / spent:.1f}" if comparable else ""
        print(f"{name:44}{spent:10.2f}{peak:10.1f}{ratio:>18}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
