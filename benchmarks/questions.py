"""Memory and time of questions over knowledge graphs: storage, batches, subgraph extraction.

python benchmarks/questions.py [--share S] [--queries N] [--threads N]

Storage: generated questions of ComplexWebQuestions' size (34,689 questions, 1,306 entities and 3,450 facts
each), a share of them by default, and what all take. Extraction: personalised PageRank, 500 entities a query,
on a generated graph of MetaQA's size (43,234 entities, 133,582 facts, degrees as uneven), checked against the
plain power series before it is timed. CPU time of the process, on one thread unless told otherwise.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from graphkit.ppr import KnowledgeGraph, extract_subgraphs
from graphkit.questions import Asked, QuestionSet

CWQ, ENTITIES, FACTS = 34_689, 1306, 3450
STORAGE_TARGET = 1.0  # gigabytes


def stored(share: float) -> None:
    """Prints what the set takes, and the time of a batch."""
    rng = np.random.default_rng(0)
    count = max(1, round(CWQ * share))

    def asked() -> Asked:
        entities = rng.integers(2_429_346, size=ENTITIES)
        ends = entities[rng.integers(ENTITIES, size=(FACTS, 2))]
        relations = rng.integers(6649, size=FACTS)
        return Asked(entities[:2], entities, np.stack([ends[:, 0], relations, ends[:, 1]], 1), entities[:2])

    start = time.process_time()
    questions = QuestionSet.from_questions(asked() for _ in range(count))
    made = time.process_time() - start
    size = questions.nbytes * CWQ / count / 1e9
    print(f"storage: {questions.nbytes / count / 1e3:.1f} kB a question, {size:.2f} GB for {CWQ:,}", end="")
    print(f" (wanted: below {STORAGE_TARGET:.1f}); {1e3 * made / count:.2f} ms to put one in, made anew")
    ids = torch.randint(count, (100, 8), generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    for row in ids:
        questions.batch(row)
    print(f"batch of 8: {1e3 * (time.process_time() - start) / len(ids):.2f} ms")


def extracted(queries: int) -> None:
    """Prints the time of a query."""
    rng = np.random.default_rng(0)
    nodes, facts = 43_234, 133_582
    head = rng.integers(16_000, size=facts)
    tail = 16_000 + (rng.random(facts) ** 3 * (nodes - 16_000)).astype(np.int64)
    graph = KnowledgeGraph(
        torch.from_numpy(np.stack([head, tail])), torch.zeros(facts, dtype=torch.int64), nodes
    )
    seeds = [[int(seed)] for seed in rng.integers(16_000, size=queries)]
    found = extract_subgraphs(graph, seeds[:1], max_entities=500)
    check(head, tail, nodes, seeds[0][0], found)
    start, wall = time.process_time(), time.perf_counter()
    extract_subgraphs(graph, seeds, max_entities=500)
    cpu, wall = time.process_time() - start, time.perf_counter() - wall
    print(f"extraction: {1e3 * cpu / queries:.2f} ms a query, {cpu * 10_000 / queries:.0f} CPU s", end="")
    print(f" for 10,000 different ones ({wall * 10_000 / queries:.0f} s on this clock)")


def check(head: np.ndarray, tail: np.ndarray, nodes: int, seed: int, found: dict[str, torch.Tensor]) -> None:
    """Asserts that scores are those of the plain series."""
    from scipy.sparse import coo_matrix

    ends = (np.concatenate([head, tail]), np.concatenate([tail, head]))
    weight = coo_matrix((np.ones(len(ends[0])), ends), (nodes, nodes)).tocsr()
    degree = np.maximum(weight.sum(1).A1 if hasattr(weight.sum(1), "A1") else weight.sum(1), 1)
    term = np.zeros(nodes)
    term[seed] = 0.8
    total = term.copy()
    while term.sum() >= 1e-5:
        term = 0.2 * (weight.T @ (term / degree))
        total += term
    np.testing.assert_allclose(found["score"], total[found["entity"].numpy()], rtol=1e-4)


def main() -> None:
    """Reads the options and prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.01, help="of the set that is generated (0.01)")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stored(options.share)
    extracted(options.queries)


if __name__ == "__main__":
    main()
