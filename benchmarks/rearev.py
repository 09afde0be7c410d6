"""Time of ReaRev against its textbook form, which computes a message for every fact.

python benchmarks/rearev.py [--steps N] [--threads N] [--json FILE]

CPU time of the process, on one thread unless told otherwise. The batch has 8 questions, each with 2,000
entities, 6,000 facts and 200 relations out of 6,102, whose texts have up to 12 tokens (384 wide); D = 50,
K = 2, L = 3, T = 2. Steps are training steps (plan of the batch, loss, gradients, clipping, Adam). The
textbook form projects the relation of every fact for each instruction, direction, layer and iteration, and
the texts of all relations in every step. Both must agree on loss and gradients before either is timed; they
take turns, and the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.models.rearev import ReaRev

RELATIONS, TOKENS, WIDTH = 6102, 12, 384
QUESTIONS, ENTITIES, FACTS, OWN_RELATIONS = 8, 2000, 6000, 200
STEP_TARGET, RATIO_TARGET, PLAIN_RATIO_TARGET = 0.6, 5.0, 9.0  # seconds; with dropout; without


class Batch(NamedTuple):
    """What a model is called with, in the order of its arguments, and the answers ``[n]``."""

    edge_index: Tensor
    edge_type: Tensor
    ptr: Tensor
    seed: Tensor
    question: Tensor
    question_mask: Tensor
    relation: Tensor
    relation_mask: Tensor
    relation_inverse: Tensor
    relation_inverse_mask: Tensor
    answer: Tensor


def zipf(size: int, count: int) -> Tensor:
    """Returns numbers below ``size``, of which few are frequent."""
    weight = 1 / torch.arange(1, size + 1, dtype=torch.float32)
    return torch.randperm(size)[torch.multinomial(weight, count, replacement=True)]


def make_batch() -> Batch:
    """Returns the batch that is described above."""
    ends, kinds, seeds = [], [], []
    answer = torch.zeros(QUESTIONS * ENTITIES)
    for b in range(QUESTIONS):
        own = torch.randperm(RELATIONS)[:OWN_RELATIONS]
        ends.append(torch.stack([zipf(ENTITIES, FACTS), zipf(ENTITIES, FACTS)]) + b * ENTITIES)
        kinds.append(own[zipf(OWN_RELATIONS, FACTS)])
        seeds.append(torch.tensor([b * ENTITIES]))
        answer[b * ENTITIES + torch.randperm(ENTITIES - 1)[:3] + 1] = 1
    ptr = torch.arange(QUESTIONS + 1) * ENTITIES
    length = torch.randint(4, TOKENS + 1, (RELATIONS,))
    mask = torch.arange(TOKENS) < length[:, None]
    asked = torch.arange(16) < torch.randint(8, 17, (QUESTIONS, 1))
    texts = [torch.randn(RELATIONS, TOKENS, WIDTH) for _ in range(2)]
    question = torch.randn(QUESTIONS, 16, WIDTH)
    graph = (torch.cat(ends, 1), torch.cat(kinds), ptr, torch.cat(seeds))
    return Batch(*graph, question, asked, texts[0], mask, texts[1], mask, answer)


class Textbook(nn.Module):
    """ReaRev as its equations read, a message for every fact, on the parameters of ``model``."""

    def __init__(self, model: ReaRev) -> None:
        super().__init__()
        self.model = model
        self.drop = nn.Dropout(model.score.dropout.p)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the probability of each entity."""
        model, n = self.model, int(batch.ptr[-1])
        sizes = batch.ptr.diff()
        graph = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
        own = torch.arange(n)
        head, tail = torch.cat([batch.edge_index, own.expand(2, -1)], 1)
        kind = torch.cat([batch.edge_type, torch.full((n,), RELATIONS)])
        i = self.decode(batch)
        along = self.texts(batch.relation, batch.relation_mask)
        against = self.texts(batch.relation_inverse, batch.relation_inverse_mask)
        told = model.start(along[kind])
        h = torch.zeros(n, told.size(1), dtype=told.dtype)
        h = F.relu(h.index_add(0, tail, told).index_add(0, head, told))
        candidate = torch.ones(n, dtype=torch.bool)
        candidate[batch.seed] = False
        for iteration in range(model.iterations):
            p = torch.zeros(n, dtype=h.dtype).index_fill(0, batch.seed, 1.0)
            for layer in model.layers:
                near: list[list[Tensor]] = [[], []]
                for k in range(i.size(1)):
                    step = i[:, k][graph[head]]
                    for way, (r, source, target) in enumerate(((along, head, tail), (against, tail, head))):
                        message = F.relu(layer.relation(r[kind]) * step) * p[source][:, None]
                        near[way].append(torch.zeros_like(h).index_add(0, target, message))
                h = F.relu(layer.update(self.drop(torch.cat([h, *near[0], *near[1]], 1))))
                score = F.linear(self.drop(h), model.score.weight, model.score.bias).squeeze(1)
                p = score.masked_fill(~candidate, -1e11).view(QUESTIONS, -1).softmax(1).flatten()
            if model.update is not None and iteration + 1 < model.iterations:
                i = model.update(i, h[batch.seed])
        return p

    def decode(self, batch: Batch) -> Tensor:
        """Returns the instructions, ``[B, K, D]``."""
        decoder, x = self.model.decoder, self.model.project(batch.question)
        c, i, found = x[:, 0], torch.zeros_like(x[:, 0]), []
        for question in decoder.question:
            q = question(self.drop(c))
            z = decoder.combine(self.drop(torch.cat([i, q, q - i, q * i], 1)))
            score = decoder.attention(self.drop(z[:, None] * x)).squeeze(2)
            a = score.masked_fill(~batch.question_mask, -1e11).softmax(1)
            i = (a[..., None] * x).sum(1)
            found.append(i)
        return torch.stack(found, 1)

    def texts(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors of all relations, and of the self loop, which has no text."""
        y = self.model.project(hidden)
        score = self.model.relation_text.attention(y).squeeze(2)
        a = score.masked_fill(~mask, -1e8).softmax(1)
        return torch.cat([(a[..., None] * y).sum(1), self.model.project.bias[None]])


def divergence(p: Tensor, batch: Batch) -> Tensor:
    """Returns the loss."""
    y = batch.answer / 3
    return (torch.xlogy(y, y) - y * (p + 1e-8).log()).sum() / QUESTIONS


def form(model: ReaRev, plain: bool) -> Callable[[Batch], Tensor]:
    """Returns the textbook's form of a model, or ours."""
    return Textbook(model) if plain else lambda batch: model(*batch[:-1])


def stepper(model: ReaRev, plain: bool, batch: Batch) -> Callable[[], Tensor]:
    """Returns a training step."""
    call, optimizer = form(model, plain), torch.optim.Adam(model.parameters(), lr=5e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = divergence(call(batch), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def check(batch: Batch) -> None:
    """Raises unless both forms have equal losses and gradients, in double precision."""
    wide = Batch(*(t.double() if t.is_floating_point() else t for t in batch))
    model, found = ReaRev(RELATIONS, WIDTH, dropout=0.0).double(), []
    for plain in (True, False):
        loss = divergence(form(model, plain)(wide), wide)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def times(calls: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Returns median CPU seconds of calls that take turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(count + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:  # the first compiles
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = make_batch()
    check(batch)
    print("| | textbook | graphkit | ratio | wanted |\n|---|---|---|---|---|")
    found = {}
    for name, rate, ratio in (
        ("training step", 0.2, RATIO_TARGET),
        ("training step without dropout", 0.0, PLAIN_RATIO_TARGET),
    ):
        models = [ReaRev(RELATIONS, WIDTH, dropout=rate) for _ in range(2)]
        calls = {"textbook": stepper(models[0], True, batch), "graphkit": stepper(models[1], False, batch)}
        found[name] = figures = times(calls, options.steps)
        won = figures["textbook"] / figures["graphkit"]
        met = won >= ratio and figures["graphkit"] <= STEP_TARGET
        print(
            f"| {name} | {figures['textbook']:.3g} s | {figures['graphkit']:.3g} s | {won:.1f} | "
            f"{ratio:g}, {STEP_TARGET:g} s: {'met' if met else 'not met'} |",
            flush=True,
        )
    model = ReaRev(RELATIONS, WIDTH).eval()
    with torch.inference_mode():
        calls = {"textbook": lambda: form(model, True)(batch), "graphkit": lambda: form(model, False)(batch)}
        calls["graphkit"]()
        found["answers"] = figures = times(calls, options.steps)
    won = figures["textbook"] / figures["graphkit"]
    print(f"| answers | {figures['textbook']:.3g} s | {figures['graphkit']:.3g} s | {won:.1f} | |")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
