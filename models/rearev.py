r"""ReaRev: reasoning over a knowledge graph by instructions that are read off a question and revised.

Paper: "ReaRev: Adaptive Reasoning for Question Answering over Knowledge Graphs", Costas Mavromatis, George
Karypis, Findings of EMNLP 2022, https://arxiv.org/abs/2210.13650. ``pos_emb`` and ``norm_rel`` are of the
variant in "GNN-RAG" by the same authors, https://arxiv.org/abs/2405.20139.

Where this departs from the authors' code: questions are encoded once and padding is never read; seeds are
candidates or not by an argument, not by the name of a run; ``normalized`` divides what an entity sends among
its facts (theirs divides twice, and by the number of outgoing facts in both directions); the last revision of
the instructions, which nobody reads, isn't computed; parameters that no gradient reaches don't exist. With
``parity`` padding, normalisation and gradients of empty texts are as in their code. Messages are computed for
pairs of question and relation, not for facts.

Shapes: B questions with n entities and F facts in a disjoint union, R relations, D channels, K instructions,
L layers, T iterations, E the width of the states of text.

    i = decode(question)                                                           [B, K, D]
    h = relu(sum of W_t r over the facts of an entity)                             [n, D]
    T times:  p = 1/s at the s seeds                                               [n]
              L times:  h, p = layer(h, p, i)
              i = update(i, sum of h over seeds)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.fact_sum import fact_sum
from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.dropout import fast_dropout
from graphkit.nn.facts import FactPlan, Normalise, fact_plan
from graphkit.nn.instructions import InstructionDecoder, InstructionUpdate
from graphkit.nn.reasoning import EntityScore, ReasoningLayer, RelationEmbedding, RelationText
from graphkit.registry import register_model

__all__ = ["Explanation", "ReaRev", "Step"]


class Step(NamedTuple):
    """What one layer of one iteration did.

    Attributes:
        iteration: From 0.
        layer: From 0.
        prior: ``[n]``, the probabilities that it was given.
        prob: ``[n]``, those that it gave.
        forward: ``[F]``, what share of all that was sent in the question went along each fact.
        inverse: ``[F]``, what went against it. What entities send themselves is the rest to 1.
        state: ``[n, D]``.
        instructions: ``[B, K, D]``.
    """

    iteration: int
    layer: int
    prior: Tensor
    prob: Tensor
    forward: Tensor
    inverse: Tensor
    state: Tensor
    instructions: Tensor


class Explanation(NamedTuple):
    """An answer and how it came about.

    Attributes:
        prob: ``[n]``, as the model's answer.
        attention: ``[B, K, Lq]``, where in the question each instruction looks first.
        steps: Of all iterations and layers, in order.
    """

    prob: Tensor
    attention: Tensor
    steps: list[Step]


@register_model("rearev", task="kgqa", paper="arXiv:2210.13650")
class ReaRev(nn.Module):
    """ReaRev (arXiv:2210.13650): answers questions over a knowledge graph by revised instructions.

    Args:
        num_relations: R, inverses and the self loop not counted.
        text_channels: E, width of the states of questions' and relations' tokens.
        hidden_channels: D.
        instructions: K, read off each question.
        layers: L, in each iteration.
        iterations: T; instructions are revised between them.
        relation_features: Vectors of relations from the states of their "text", or an "embedding" for each.
        relation_channels: Width of the embeddings; None for D.
        question_encoder: "states" projects the tokens' states; the first one's is the whole question's.
            "lstm" reads them (then word vectors) from left to right; the last one's is the question's.
        dropout: Rate of dropping at all maps of instructions, states and scores.
        word_dropout: Rate of dropping in front of the LSTM.
        normalized: Divide what an entity sends among its facts.
        norm_rel: Count facts with the same head and relation as one in the first states.
        pos_emb: Learn an offset of each relation in each direction in each layer.
        update: Revise instructions; without, iterations differ in the states that they begin with only.
        mask_seeds: Seeds are no answers.
        parity: Read padding and normalise as the authors' code does.
    """

    def __init__(
        self,
        num_relations: int | None,
        text_channels: int | None = None,
        *,
        hidden_channels: int = 50,
        instructions: int = 2,
        layers: int = 3,
        iterations: int = 2,
        relation_features: Literal["text", "embedding"] = "text",
        relation_channels: int | None = None,
        question_encoder: Literal["states", "lstm"] = "states",
        dropout: float = 0.2,
        word_dropout: float = 0.3,
        normalized: bool = False,
        norm_rel: bool = False,
        pos_emb: bool = False,
        update: bool = True,
        mask_seeds: bool = True,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if num_relations is None:
            raise ValueError("num_relations is None; this data set has no relations")
        if text_channels is None:
            raise ValueError("text_channels is None; this data set has no encoded questions")
        for name, value in (
            ("num_relations", num_relations),
            ("text_channels", text_channels),
            ("hidden_channels", hidden_channels),
            ("layers", layers),
            ("iterations", iterations),
        ):
            require_positive(name, value)
        for name, given, allowed in (
            ("relation_features", relation_features, ("text", "embedding")),
            ("question_encoder", question_encoder, ("states", "lstm")),
        ):
            if given not in allowed:
                raise ValueError(f"{name} is {given!r}; it must be one of {', '.join(allowed)}")
        require_rate("word_dropout", word_dropout, below_one=True)
        self.num_relations, self.iterations = num_relations, iterations
        self.word_dropout, self.mask_seeds, self.parity = word_dropout, mask_seeds, parity
        self.norm_rel = norm_rel
        self.normalise: Normalise = "none" if not normalized else "official" if parity else "sender"

        d, reads = hidden_channels, question_encoder == "lstm"
        self.lstm = nn.LSTM(text_channels, d, batch_first=True) if reads else None
        by_text = relation_features == "text"
        self.project = nn.Linear(text_channels, d) if by_text or not reads else None
        self.decoder = InstructionDecoder(d, instructions, dropout)
        self.relation_text = RelationText(d, official=parity) if by_text else None
        width = relation_channels or d
        self.relation_embedding = None if by_text else RelationEmbedding(num_relations, width, d)
        self.start = nn.Linear(d, d)
        known = num_relations if pos_emb else None
        self.layers = nn.ModuleList(ReasoningLayer(d, instructions, dropout, known) for _ in range(layers))
        self.score = EntityScore(d, dropout)
        revised = update and iterations > 1
        self.update = InstructionUpdate(d, instructions) if revised else None

    def forward(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        ptr: Tensor,
        seed: Tensor,
        question: Tensor,
        question_mask: Tensor,
        relation: Tensor | None = None,
        relation_mask: Tensor | None = None,
        relation_inverse: Tensor | None = None,
        relation_inverse_mask: Tensor | None = None,
        *,
        candidate: Tensor | None = None,
        plan: FactPlan | None = None,
    ) -> Tensor:
        """Returns the probability of each entity to be the answer, ``[n]``.

        It sums to 1 over the candidates of a question and is 0 elsewhere; a question without a candidate has
        zeros.

        Args:
            edge_index: ``[2, F]`` int64, heads and tails in a disjoint union; no self loops, no inverses.
            edge_type: ``[F]`` int64 in [0, R).
            ptr: ``[B + 1]`` int64, where the entities of each question begin.
            seed: ``[S]`` int64, entities that questions name.
            question: ``[B, Lq, E]`` states of tokens.
            question_mask: ``[B, Lq]`` bool, which are tokens.
            relation: ``[R, Lr, E]`` states of relations' tokens, or ``[R + 1, Lr, E]`` with the self loop's;
                not needed with embeddings.
            relation_mask: ``[R, Lr]`` bool.
            relation_inverse: As ``relation``, of the texts of relations against their direction.
            relation_inverse_mask: Their mask.
            candidate: ``[n]`` bool, what may be answered (but for seeds, if they are masked); None for all.
            plan: Of :meth:`plan`, where it is at hand.

        Raises:
            ValueError: If shapes don't fit or an id is out of range.
        """
        texts = (relation, relation_mask, relation_inverse, relation_inverse_mask)
        plan = self.plan(edge_index, edge_type, ptr, seed) if plan is None else plan
        instructions, _ = self.instructions(question, question_mask)
        steps = self._reason(instructions, self.relations(plan, *texts), plan, candidate)
        return deque(steps, maxlen=1)[0][-1]

    def explain(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        ptr: Tensor,
        seed: Tensor,
        question: Tensor,
        question_mask: Tensor,
        relation: Tensor | None = None,
        relation_mask: Tensor | None = None,
        relation_inverse: Tensor | None = None,
        relation_inverse_mask: Tensor | None = None,
        *,
        candidate: Tensor | None = None,
        plan: FactPlan | None = None,
    ) -> Explanation:
        """Answers with every step on the way; arguments as in the call.

        A fact's share in a direction is the length of the message that it carried, all instructions together,
        over the lengths of all messages in the question.
        """
        texts = (relation, relation_mask, relation_inverse, relation_inverse_mask)
        plan = self.plan(edge_index, edge_type, ptr, seed) if plan is None else plan
        instructions, attention = self.instructions(question, question_mask)
        told, steps, facts = self.relations(plan, *texts), [], edge_type.numel()
        own = torch.arange(plan.batch.numel(), device=ptr.device)
        ends = torch.cat([edge_index, own.expand(2, -1)], 1)
        reason = self._reason(instructions, told, plan, candidate)
        for number, (messages, i, prior, h, p) in enumerate(reason):
            length = messages.flatten(1).norm(dim=1).view(2, -1)[:, plan.fact_pair]  # [2, F + n]
            carried = length * prior[ends]
            if plan.fact_weight is not None:
                carried = carried * plan.fact_weight
            graph = plan.batch[ends[0]]
            total = carried.new_zeros(ptr.numel() - 1).index_add(0, graph, carried.sum(0))
            share = carried / total.clamp(min=torch.finfo(total.dtype).tiny)[graph]
            place = divmod(number, len(self.layers))
            steps.append(Step(*place, prior, p, share[0, :facts], share[1, :facts], h, i))
        return Explanation(steps[-1].prob, attention, steps)

    def plan(self, edge_index: Tensor, edge_type: Tensor, ptr: Tensor, seed: Tensor) -> FactPlan:
        """Sorts the facts of a batch, which needs no parameters and can be kept."""
        return fact_plan(
            edge_index,
            edge_type,
            ptr,
            seed,
            self.num_relations,
            normalise=self.normalise,
            start_weights=self.norm_rel,
            dtype=self.start.weight.dtype,
        )

    def instructions(self, question: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the instructions of questions ``[B, K, D]`` and where they look ``[B, K, Lq]``."""
        return self.decoder(*self.encode(question, mask), mask)

    def encode(self, question: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states of tokens ``[B, Lq, D]`` and of whole questions ``[B, D]``."""
        if question.dim() != 3 or mask.shape != question.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"question {tuple(question.shape)} and question_mask {mask.dtype} {tuple(mask.shape)} must "
                "be [B, Lq, E] and bool [B, Lq]"
            )
        question = question.to(self.start.weight.dtype)
        if self.lstm is None:
            assert self.project is not None
            x = self.project(question)
            return x, x[:, 0]
        x, _ = self.lstm(fast_dropout(question, self.word_dropout, self.training))
        if self.parity:
            return x, x[:, -1]
        place = torch.arange(1, x.size(1) + 1, device=x.device)
        last = (mask * place).amax(1).clamp(min=1) - 1
        return x, x[torch.arange(x.size(0), device=x.device), last]

    def relations(
        self,
        plan: FactPlan,
        relation: Tensor | None = None,
        relation_mask: Tensor | None = None,
        relation_inverse: Tensor | None = None,
        relation_inverse_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the vectors of the relations in use, along and against facts, ``[U, D]`` each."""
        if self.relation_embedding is not None:
            return self.relation_embedding(plan.types)
        assert self.relation_text is not None
        found = []
        for name, hidden, mask in (
            ("relation", relation, relation_mask),
            ("relation_inverse", relation_inverse, relation_inverse_mask),
        ):
            if hidden is None or mask is None:
                raise ValueError(f"{name} or {name}_mask is None; relation_features 'text' needs both")
            if hidden.size(0) - self.num_relations not in (0, 1):
                raise ValueError(f"{name} has {hidden.size(0)} texts; it must have {self.num_relations}")
            found.append(self.relation_text(self.project, plan.types, hidden, mask))
        return found[0], found[1]

    def first_states(self, along: Tensor, plan: FactPlan) -> Tensor:
        """Returns the states that reasoning begins with, ``[n, D]``: which facts an entity has."""
        pairs = plan.pair_type.numel() // 2
        table = self.start(along).index_select(0, plan.pair_type[:pairs].repeat(2))
        return F.relu(fact_sum(plan.start, None, table))

    def _reason(
        self,
        instructions: Tensor,
        relations: tuple[Tensor, Tensor],
        plan: FactPlan,
        candidate: Tensor | None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Yields of every layer its messages, instructions, prior, and the new states and probabilities."""
        if candidate is not None and candidate.shape != plan.batch.shape:
            raise ValueError(
                f"candidate has shape {tuple(candidate.shape)}; it must be [{plan.batch.numel()}]"
            )
        allowed = torch.ones_like(plan.batch, dtype=torch.bool) if candidate is None else candidate
        if self.mask_seeds:
            allowed = allowed.index_fill(0, plan.seed, False)
        h = self.first_states(relations[0], plan)
        layers = cast("list[ReasoningLayer]", list(self.layers))
        compared = [layer.relations(*relations, plan.types) for layer in layers]
        for iteration in range(self.iterations):
            p = plan.prior
            for number, layer in enumerate(layers):
                messages = layer.messages(compared[number], instructions, plan)
                prior, h = p, layer(h, p, messages, plan, at_seeds=number == 0)
                p = self.score(h, plan.ptr, allowed)
                yield messages, instructions, prior, h, p
            if self.update is not None and iteration + 1 < self.iterations:
                e = h.new_zeros(instructions.size(0), h.size(1))
                e = e.index_add(0, plan.batch[plan.seed], h[plan.seed])
                instructions = self.update(instructions, e)
