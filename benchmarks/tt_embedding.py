"""Time and memory of tensor-train embeddings, against plain forms, another package and full tables.

python benchmarks/tt_embedding.py [--table A B C D] [--json FILE]

One thread, process CPU time, the least of a few repetitions. Every case runs in a process of its own, after a
check that it gives the rows and gradients of gather-and-bmm. Extra memory is by how much the resident set
grows at most during a forward and backward pass (table D: and the optimizer's step), results included.

A  50,000 distinct ids, rank 16: strategies on three sizes of table, ids at random and in runs of 64
B  ranks 8 to 64
C  10,000 to 200,000 ids, and all of them
D  a whole training step against ``torch.nn.Embedding``

tensorly-torch is measured where it is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from graphkit.nn.embedding import TTEmbedding

WIDTH, COLUMNS = 128, (8, 4, 4)
SIZES = {
    "arxiv": (169_343, (55, 55, 56)),
    "products": (2_449_029, (125, 140, 140)),
    "papers": (111_059_956, (480, 500, 500)),
}
GRAPHKIT = ("full", "prefix", "gather", "fused")


class Case(NamedTuple):
    """What one process measures.

    Attributes:
        table: ``A`` to ``D``.
        way: A strategy, or what is trained (table D).
        size: Key of :data:`SIZES`.
        ids: How many; 0 for the whole table in a shuffled order.
        rank: Between cores.
        runs: Ids come in runs of 64 rather than at random.
    """

    table: str
    way: str
    size: str
    ids: int = 50_000
    rank: int = 16
    runs: bool = False


def gather_and_bmm(cores: Sequence[Tensor], ids: Tensor) -> Tensor:
    """The plain form: the slices of every row gathered, a batched product for each core but the first."""
    digits = []
    for core in reversed(cores):
        digits.append(ids % core.size(0))
        ids = ids // core.size(0)
    digits.reverse()
    rows = cores[0][digits[0]].squeeze(1)
    for core, digit in zip(cores[1:], digits[1:], strict=True):
        slices = core[digit]  # [B, r, q, s]
        rows = torch.bmm(rows, slices.flatten(2)).view(len(digit), -1, slices.size(3))
    return rows.flatten(1)


def materialise_and_select(cores: Sequence[Tensor], ids: Tensor) -> Tensor:
    """The whole table by a product for each core but the first, then the rows."""
    table = cores[0].squeeze(1)
    for core in cores[1:]:
        p, r, q, s = core.shape
        grown = table.reshape(-1, r) @ core.transpose(0, 1).reshape(r, -1)
        grown = grown.view(*table.shape[:2], p, q, s).transpose(1, 2)
        table = grown.reshape(table.size(0) * p, -1, s)
    return table.flatten(1).index_select(0, ids)


def draw_ids(case: Case) -> Tensor:
    """Draws distinct ids, shuffled or in runs of 64 consecutive ones."""
    rows = SIZES[case.size][0]
    generator = torch.Generator().manual_seed(1)
    if case.ids == 0:
        return torch.randperm(rows, generator=generator)
    if case.runs:
        starts = torch.randperm(rows // 64, generator=generator)[: case.ids // 64 + 1] * 64
        return (starts[:, None] + torch.arange(64)).flatten()[: case.ids]
    some = torch.randint(rows, (case.ids * 2,), generator=generator).unique()
    if some.numel() < case.ids:
        return torch.randperm(rows, generator=generator)[: case.ids]
    return some[torch.randperm(some.numel(), generator=generator)[: case.ids]]


def build(case: Case) -> tuple[TTEmbedding, Callable[[Tensor], Tensor], list[Tensor]]:
    """Returns a tensor train, the strategy's look-up of rows and the parameters that it reads."""
    rows, factors = SIZES[case.size]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"rank": case.rank, "row_factors": factors, "column_factors": COLUMNS}
    emb = TTEmbedding(rows, WIDTH, init="gaussian", **sizes)
    cores = list(emb.cores)
    if case.way in GRAPHKIT:
        emb.engine = case.way  # type: ignore[assignment]
        if case.ids == 0:
            emb.set_order(draw_ids(case))
            return emb, lambda ids: emb(None if ids.numel() == rows else ids), cores
        return emb, emb, cores
    if case.way == "tensorly-torch":
        return emb, *from_tensorly(factors, case.rank, cores)
    form = gather_and_bmm if case.way == "gather-and-bmm" else materialise_and_select
    return emb, lambda ids: form(cores, ids), cores


def from_tensorly(factors: Sequence[int], rank: int, cores: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """Returns its FactorizedEmbedding, which takes no padding, with our cores in it."""
    import tltorch

    theirs = tltorch.FactorizedEmbedding(
        math.prod(factors),
        WIDTH,
        auto_tensorize=False,
        tensorized_num_embeddings=tuple(factors),
        tensorized_embedding_dim=COLUMNS,
        factorization="blocktt",
        rank=(1, rank, rank, 1),
    )
    with torch.no_grad():
        for parameter, core in zip(theirs.parameters(), cores, strict=True):
            parameter.copy_(core.transpose(0, 1))
    return theirs, list(theirs.parameters())


def check(
    case: Case, emb: TTEmbedding, look_up: Callable[[Tensor], Tensor], parameters: list[Tensor]
) -> None:
    """Raises unless rows and gradients equal those of gather-and-bmm on some ids; compiles on the way."""
    ids = torch.cat([draw_ids(case._replace(ids=2000)), torch.tensor([0, 0])])
    found = look_up(ids)
    weight = torch.randn(found.shape)
    cores = [core.detach().double().requires_grad_() for core in emb.cores]
    expected = gather_and_bmm(cores, ids if emb.position is None else emb.position[ids].long())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    pairs = zip(
        torch.autograd.grad(found, parameters, weight),
        torch.autograd.grad(expected, cores, weight.double()),
        strict=True,
    )
    for ours, theirs in pairs:
        theirs = theirs.transpose(0, 1) if case.way == "tensorly-torch" else theirs
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-3)


def memory(name: str) -> float:
    """Returns a line of the process's status in MB: ``VmRSS`` now, or ``VmHWM``, the peak since its reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"no {name} in /proc/self/status")


def trim() -> float:
    """Gives free memory back, restarts the count of the peak and returns what is in use, in MB."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def measure_lookup(case: Case) -> dict[str, float]:
    """Returns CPU milliseconds forward and backward, and extra MB."""
    emb, look_up, parameters = build(case)
    check(case, emb, look_up, parameters)
    ids = torch.arange(emb.num_embeddings) if case.ids == 0 else draw_ids(case)
    if case.ids == 0 and case.way not in GRAPHKIT:
        ids = draw_ids(case)
    weight = torch.randn(ids.numel(), WIDTH)
    times, extra, spent = [], 0.0, time.process_time()
    while len(times) < 3 or (len(times) < 15 and time.process_time() - spent < 4):
        for parameter in parameters:
            parameter.grad = None
        before = trim() if not times else 0.0
        start = time.process_time()
        rows = look_up(ids)
        middle = time.process_time()
        rows.backward(weight)
        times.append((middle - start, time.process_time() - middle))
        if len(times) == 1:
            extra = memory("VmHWM") - before
        del rows
    # A time may be the least by itself: other load disturbs single calls.
    forward, backward = (1e3 * min(part) for part in zip(*times, strict=True))
    return {"forward": forward, "backward": backward, "total": forward + backward, "extra": extra}


def measure_step(case: Case) -> dict[str, float]:
    """Returns CPU milliseconds of forward, backward and optimizer, extra MB and parameters."""
    rows, ids = SIZES[case.size][0], draw_ids(case)
    torch.manual_seed(0)
    module: nn.Module
    if case.way == "tensor train, Adam":
        module, look_up, parameters = build(case._replace(way="fused"))
        check(case._replace(way="fused"), module, look_up, parameters)
    else:
        module = nn.Embedding(rows, WIDTH, sparse="SparseAdam" in case.way)
    kind = torch.optim.SparseAdam if "SparseAdam" in case.way else torch.optim.Adam
    optimizer = kind(list(module.parameters()), lr=1e-3)
    weight = torch.randn(ids.numel(), WIDTH)
    times = []
    before = trim()
    spent = time.process_time()
    while len(times) < 3 or (len(times) < 12 and time.process_time() - spent < 4):
        optimizer.zero_grad()
        marks = [time.process_time()]
        out = module(ids)
        marks.append(time.process_time())
        out.backward(weight)
        marks.append(time.process_time())
        optimizer.step()
        marks.append(time.process_time())
        times.append([b - a for a, b in pairwise(marks)])
        del out
    forward, backward, step = (1e3 * min(part) for part in zip(*times, strict=True))
    return {
        "forward": forward,
        "backward": backward,
        "optimizer": step,
        "total": forward + backward + step,
        "extra": memory("VmHWM") - before,
        "parameters": sum(p.numel() for p in module.parameters()),
    }


def _child(case: Case, out: Connection) -> None:
    torch.set_num_threads(1)
    try:
        out.send(measure_step(case) if case.table == "D" else measure_lookup(case))
    except ImportError as error:
        out.send({"missing": str(error)})


def run(case: Case) -> dict[str, Any]:
    """Measures a case in a fresh process.

    Raises:
        RuntimeError: If it fails there.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{case} failed") from None
    finally:
        process.join()
    return result


def cases(tables: Sequence[str]) -> list[Case]:
    """Returns what the tables are made of."""
    base, chosen = "gather-and-bmm", []
    for size in SIZES:
        whole = ("materialise and select", "full") if size == "arxiv" else ()
        for way in (base, "tensorly-torch", *whole, "gather", "prefix", "fused"):
            chosen += [Case("A", way, size, runs=runs) for runs in (False, True)]
    for size in ("arxiv", "papers"):
        for rank in (8, 16, 32, 64):
            ids = 50_000 if rank < 64 else 10_000
            chosen += [Case("B", way, size, ids, rank) for way in (base, "prefix", "fused")]
    for way in (base, "prefix", "fused"):
        chosen += [Case("C", way, "arxiv", ids) for ids in (10_000, 50_000, 160_000)]
        chosen += [Case("C", way, "papers", ids) for ids in (10_000, 50_000)]
    chosen += [Case("C", way, "papers", 200_000) for way in ("prefix", "fused")]
    chosen += [Case("C", "fused", size, 200_000, 32) for size in ("products", "papers")]
    chosen += [Case("C", way, "arxiv", 0) for way in ("materialise and select", "full", "fused")]
    for size in ("arxiv", "products"):
        for way in ("Embedding, Adam", "sparse Embedding, SparseAdam", "tensor train, Adam"):
            chosen.append(Case("D", way, size))
    return [case for case in chosen if case.table in tables]


def line(case: Case, result: dict[str, Any]) -> str:
    """Returns a row of a Markdown table."""
    ids = "all" if case.ids == 0 else f"{case.ids:,}"
    place = f"{case.size}, {ids}{' in runs' if case.runs else ''}, rank {case.rank}"
    if "missing" in result:
        return f"| {place} | {case.way} | not installed | | |"
    names = ("forward", "backward", "optimizer") if case.table == "D" else ("forward", "backward")
    parts = " + ".join(f"{result[name]:.0f}" for name in names)
    size = f" {result['parameters'] / 1e6:.2f}M |" if case.table == "D" else ""
    return f"| {place} | {case.way} | {parts} | {result['total']:.0f} | {result['extra']:.0f} |{size}"


def targets(found: dict[Case, dict[str, Any]]) -> list[str]:
    """Returns a line for each target that the measured cases decide."""
    lines = []

    def say(text: str, met: bool) -> None:
        lines.append(f"{text}: {'met' if met else 'NOT MET'}")

    plain, fused = (found.get(Case("A", way, "arxiv")) for way in ("gather-and-bmm", "fused"))
    if plain and fused:
        ratio, share = plain["total"] / fused["total"], fused["extra"] / plain["extra"]
        say(f"arxiv, 50,000 ids, rank 16: {ratio:.1f} times faster than gather-and-bmm (6)", ratio >= 6)
        say(f"arxiv, 50,000 ids, rank 16: {share:.2f} of its extra memory (0.25)", share <= 0.25)
    for size in SIZES:
        big = found.get(Case("C", "fused", size, 200_000, 32))
        if big:
            say(f"{size}, 200,000 ids, rank 32: {big['extra']:.0f} MB extra (1000)", big["extra"] < 1000)
        ways = ("sparse Embedding, SparseAdam", "tensor train, Adam")
        theirs, ours = (found.get(Case("D", way, size)) for way in ways)
        if theirs and ours:
            text = f"{size}: a step in {ours['total']:.0f} ms, SparseAdam {theirs['total']:.0f}"
            say(text, ours["total"] < theirs["total"])
    whole = found.get(Case("C", "fused", "arxiv", 0))
    if whole:
        text = f"arxiv, all rows, rank 16: {whole['forward']:.0f} + {whole['backward']:.0f} ms (166 + 191)"
        say(text, whole["forward"] < 166 and whole["backward"] < 191)
    return lines


def main() -> None:
    """Measures the tables asked for and says which targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", nargs="+", choices="ABCD", default=list("ABCD"))
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    found: dict[Case, dict[str, Any]] = {}
    table = ""
    for case in cases(options.table):
        if case.table != table:
            table = case.table
            extra = (" parameters |", "---|") if table == "D" else ("", "")
            print(f"\n| {table} | | CPU ms | total | extra MB |{extra[0]}\n|---|---|---|---|---|{extra[1]}")
        found[case] = run(case)
        print(line(case, found[case]), flush=True)
    print("\n" + "\n".join(targets(found)))
    print(
        f"\ntorch {torch.__version__}, {platform.machine()}, Python {platform.python_version()}, one thread"
    )
    if options.json:
        rows = [case._asdict() | result for case, result in found.items()]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
