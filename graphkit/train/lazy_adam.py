"""Optimizers that update the rows of a table that have a gradient, and all of the rest of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["LazyAdam", "RowAdamW", "RowRule", "RowSGD", "row_gradient"]

RowRule = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]

_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8  # torch's, where the rest of the model isn't trained by Adam
_ADAGRAD_EPS, _ROWWISE_EPS = 1e-10, 1e-8  # torch's and FBGEMM's


class _Rows(torch.optim.Optimizer):
    r"""Updates rows by a rule of their own; everything else is left to the optimizer that this is mixed into.

    Of a sparse gradient :math:`g`, with rows :math:`i \in R`, duplicates summed, and of width :math:`D`:

    ``sgd``
        .. math:: w_i \leftarrow w_i - \eta g_i
    ``adagrad`` (Duchi, Hazan and Singer, JMLR 2011), a sum for each entry
        .. math:: s_{ij} \leftarrow s_{ij} + g_{ij}^2, \quad
                  w_{ij} \leftarrow w_{ij} - \eta g_{ij} / (\sqrt{s_{ij}} + \epsilon)
    ``rowwise_adagrad``, a sum for each row
        .. math:: s_i \leftarrow s_i + \tfrac1D \textstyle\sum_j g_{ij}^2, \quad
                  w_i \leftarrow w_i - \eta g_i / (\sqrt{s_i} + \epsilon)
    ``adam`` (Kingma and Ba, arXiv 1412.6980), lazily, with steps :math:`t` counted as if it were dense
        .. math:: m_i \leftarrow \beta_1 m_i + (1 - \beta_1) g_i, \quad
                  v_i \leftarrow \beta_2 v_i + (1 - \beta_2) g_i^2, \quad
                  w_i \leftarrow w_i - \frac{\eta}{1 - \beta_1^t}
                      \frac{m_i}{\sqrt{v_i / (1 - \beta_2^t)} + \epsilon}

    A step costs the rows that were looked up; the others keep their values and their state. Where all rows
    have a gradient these are the dense optimizers.

    Args:
        params: As for the optimizer that this is mixed into.
        rule: See above.
        tables: Parameters that follow the rule even where their gradient is dense.
        **options: Of the other optimizer. Its decay and momentum move rows of no table.
    """

    def __init__(self, params: Any, *, rule: RowRule, tables: Iterable[Tensor] = (), **options: Any) -> None:
        super().__init__(params, **options)
        self.rule, self._tables = rule, {id(table) for table in tables}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Performs one step."""
        own: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is not None and (grad.is_sparse or id(parameter) in self._tables):
                    own.append((group, parameter, row_gradient(grad) if grad.is_sparse else grad))
                    parameter.grad = None
        loss: float | None = super().step(closure)
        for group, parameter, grad in own:
            rows = grad._indices()[0] if grad.is_sparse else None
            values = grad._values() if grad.is_sparse else grad
            _UPDATES[self.rule](self.state[parameter], group, parameter, rows, values)
            parameter.grad = grad
        return loss


class LazyAdam(_Rows, torch.optim.Adam):
    """Adam for the model, a rule for the rows of its tables; lazy Adam, with names of Adam's, by default."""

    def __init__(
        self, params: Any, *, rule: RowRule = "adam", tables: Iterable[Tensor] = (), **options: Any
    ) -> None:
        super().__init__(params, rule=rule, tables=tables, **options)


class RowAdamW(_Rows, torch.optim.AdamW):
    """AdamW for the model, a rule for the rows of its tables."""


class RowSGD(_Rows, torch.optim.SGD):
    """SGD for the model, a rule for the rows of its tables."""


def row_gradient(grad: Tensor) -> Tensor:
    """Returns a sparse gradient with every row once, as cheaply as it comes.

    Partitioned tables' gradients hold each row once already, in order, but autograd forgets that they do;
    on a device, where looking costs a wait, they are coalesced as any other.
    """
    if not grad.is_coalesced() and grad.device.type == "cpu":
        rows = grad._indices()
        if rows.size(0) == 1 and bool((rows[0].diff() > 0).all()):
            return grad._coalesced_(True)
    return grad.coalesce()


def _sgd(
    state: dict[str, Any], group: dict[str, Any], table: Tensor, rows: Tensor | None, values: Tensor
) -> None:
    rate = float(group["lr"])
    if rows is None:
        table.sub_(values, alpha=rate)
    else:
        table.index_add_(0, rows, values, alpha=-rate)


def _adagrad(
    state: dict[str, Any], group: dict[str, Any], table: Tensor, rows: Tensor | None, values: Tensor
) -> None:
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)  # Adam, where it is the other one, looks for it
        state["sum"] = torch.zeros_like(table)
    state["step"] += 1
    total = _taken(state["sum"], rows).addcmul_(values, values)
    _put(state["sum"], rows, total)
    step = values / total.sqrt().add_(_ADAGRAD_EPS)
    _sgd(state, group, table, rows, step)


def _rowwise_adagrad(
    state: dict[str, Any], group: dict[str, Any], table: Tensor, rows: Tensor | None, values: Tensor
) -> None:
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["sum"] = table.new_zeros(table.size(0))
    state["step"] += 1
    total = _taken(state["sum"], rows).add_(values.square().mean(1))
    _put(state["sum"], rows, total)
    step = values / total.sqrt().add_(_ROWWISE_EPS).unsqueeze(1)
    _sgd(state, group, table, rows, step)


def _adam(
    state: dict[str, Any], group: dict[str, Any], table: Tensor, rows: Tensor | None, values: Tensor
) -> None:
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(table)
        state["exp_avg_sq"] = torch.zeros_like(table)
    state["step"] += 1
    if not values.numel():
        return
    (beta1, beta2), eps = group.get("betas", _BETAS), group.get("eps", _ADAM_EPS)
    steps = float(state["step"])
    mean = _taken(state["exp_avg"], rows).lerp_(values, 1 - beta1)
    square = _taken(state["exp_avg_sq"], rows).mul_(beta2).addcmul_(values, values, value=1 - beta2)
    _put(state["exp_avg"], rows, mean)
    _put(state["exp_avg_sq"], rows, square)
    scale = (square / (1 - beta2**steps)).sqrt_().add_(eps)
    moved = _taken(table, rows).addcdiv_(mean, scale, value=-float(group["lr"]) / (1 - beta1**steps))
    _put(table, rows, moved)


def _taken(whole: Tensor, rows: Tensor | None) -> Tensor:
    """Returns rows to be worked on: a copy, or the whole where there is no choice of rows."""
    return whole if rows is None else whole.index_select(0, rows)


def _put(whole: Tensor, rows: Tensor | None, values: Tensor) -> None:
    if rows is not None:
        whole.index_copy_(0, rows, values)


_UPDATES: dict[str, Callable[[dict[str, Any], dict[str, Any], Tensor, Tensor | None, Tensor], None]] = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
}
