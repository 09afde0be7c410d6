"""Adam for models of which some parameters get sparse gradients: rows that have none aren't touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["LazyAdam"]


class LazyAdam(torch.optim.Adam):
    r"""Adam (Kingma and Ba, arXiv 1412.6980) with lazy rows where a gradient is sparse.

    Dense gradients are left to :class:`torch.optim.Adam`. Of a sparse one, with rows :math:`R` and steps
    counted as if it were dense,

    .. math:: m_r \leftarrow \beta_1 m_r + (1 - \beta_1) g_r, \quad
              v_r \leftarrow \beta_2 v_r + (1 - \beta_2) g_r^2, \quad
              w_r \leftarrow w_r - \frac{\eta}{1 - \beta_1^t}
                  \frac{m_r}{\sqrt{v_r / (1 - \beta_2^t)} + \epsilon} \qquad r \in R

    so a step costs the rows that were looked up, and rows keep their moments while they aren't. Where every
    row has a gradient this is Adam. State and its names are those of :class:`torch.optim.Adam`.

    Raises:
        ValueError: A weight decay, which rows without a gradient would escape.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        if options.get("weight_decay"):
            raise ValueError(f"weight_decay is {options['weight_decay']}; with sparse gradients it must be 0")
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Performs one step."""
        sparse: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    sparse.append((group, parameter, parameter.grad.coalesce()))
                    parameter.grad = None
        loss: float | None = super().step(closure)
        for group, parameter, grad in sparse:
            self._update_rows(group, parameter, grad)
            parameter.grad = grad
        return loss

    def _update_rows(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        rows, values = grad._indices()[0], grad._values()
        if rows.numel() == 0:
            return
        (beta1, beta2), steps = group["betas"], float(state["step"])
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2)
        square.addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        scale = square.div_(1 - beta2**steps).sqrt_().add_(group["eps"])
        moved = parameter.index_select(0, rows)
        moved.addcdiv_(mean, scale, value=-float(group["lr"]) / (1 - beta1**steps))
        parameter.index_copy_(0, rows, moved)
