"""The training loop.

A run is a sequence of steps and evaluations, and its state says which comes next::

    while not state.done:
        step < steps of an epoch   ->  one optimizer step
        else                       ->  end of the epoch: log, evaluate, remember the best

Between any two of these a checkpoint may be written and the process may end: batches and random numbers are
functions of the position, so the resumed run goes on bit for bit (on CPU, with the same number of threads).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from graphkit.config import RunConfig
from graphkit.distributed import ranks
from graphkit.environment import rank_and_world
from graphkit.errors import UserError, did_you_mean
from graphkit.logging import RunLogger
from graphkit.run import Run, refuse_extension
from graphkit.tasks.base import Task, derive_seed
from graphkit.train.checkpoint import CheckpointStore
from graphkit.train.guard import SignalGuard, Stopped, fail_step
from graphkit.train.optim import (
    build_optimizer,
    gradient_norms,
    lr_factor,
    parameter_groups,
    scale_gradients,
    set_lr,
)
from graphkit.train.parallel import DataParallel
from graphkit.train.result import Result, make_result
from graphkit.train.snapshot import put_back, take_snapshot
from graphkit.train.state import TrainState, deterministic, reseed

__all__ = ["Trainer"]

_log = logging.getLogger("graphkit")
_OVERFLOWS = 30  # in a row: the loss scale has fallen from 2^16 to 2^-14, scaling isn't the problem


class Trainer:
    """Trains a model on a task, evaluates it, and survives being stopped.

    Args:
        model: Any module that the task accepts; moved to the task's device.
        task: Batches, loss and evaluation.
        config: Seed, ``optim`` and ``train`` are used here.
        run: Where log, checkpoints and result go; without one nothing is written and nothing resumes.
        logger: Progress and metrics; made for ``run`` if absent.
        log_steps: Log every so many steps, in addition to every epoch.

    Raises:
        UserError: The model doesn't suit the task, or the configuration the model or the device.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: RunConfig,
        run: Run | None = None,
        logger: RunLogger | None = None,
        *,
        log_steps: int = 50,
    ) -> None:
        self.check(model, task, config)
        self.model, self.task, self.config, self.run = model.to(task.device), task, config, run
        self.log_steps = log_steps
        self.device = task.device
        self.rank, self.world = rank_and_world()
        self.logger = logger or RunLogger(run)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.parallel = DataParallel(self.model, task)
        # a run keeps its global batches when it goes on with other ranks; there may be more shards then
        self.parts = math.lcm(config.train.accumulate * (run.ranks if run else self.world), self.world)
        self.scaler = torch.amp.GradScaler("cuda") if config.train.precision == "fp16" else None
        self.steps = task.steps_per_epoch
        self.state = TrainState()
        self.store = CheckpointStore(run.checkpoints, config.train.keep) if run else None
        self.best: dict[str, Tensor] = {}
        self.fingerprint: str | None = None
        self._saved: tuple[int, int] | None = None
        self._guard: SignalGuard | None = None
        self._told: bool | None = None
        self._begun = 0.0

    @staticmethod
    def check(model: nn.Module, task: Task, config: RunConfig) -> None:
        """Complains of what the constructor would refuse; nothing is moved, made or written.

        Raises:
            UserError: The model doesn't suit the task, or the configuration the model or the device.
        """
        task.check(model)
        if config.train.precision == "fp16" and task.device.type != "cuda":
            raise UserError(f"train.precision fp16 needs a CUDA device, not {task.device.type}; use bf16")
        parameter_groups(model, config.optim)

    def fit(self) -> Result:
        """Trains from the last checkpoint, or the start, to the end; then evaluates the best weights.

        Test is looked at once, here; afterwards the model holds the best weights. A finished run can't be
        given more epochs. It only gives back its stored result; the model stays as it is (see
        :func:`~graphkit.train.checkpoint.load_best`).

        Returns:
            Metrics of validation and test, and the facts beside them.

        Raises:
            Stopped: A signal or the time limit; the state is saved.
            NonFiniteError: A loss or gradient was NaN or infinite.
            UserError: The run's folder is in use, was made with another configuration, or can't be written.
        """
        with ExitStack() as stack:
            if self.run is not None and self.rank == 0:
                stack.enter_context(self.run.lock())
                self.run.adopt(self.config)
            stored = self._stored_result()
            if stored is not None:
                return stored
            stack.enter_context(deterministic(self.config.train.deterministic))
            guard = stack.enter_context(SignalGuard(self.config.train.max_minutes))
            stack.callback(self.logger.close)
            self._resume()
            try:
                if self.optimizer is not None:
                    self._train(guard)
                    self.save()
                return self._finish(guard)
            except Stopped as stop:
                self.save()
                where = f"; resume with --resume {self.run.folder}" if self.run else ""
                _log.warning("%s at epoch %d, step %d%s", stop, self.state.epoch, self.state.step, where)
                raise

    # The loop

    def _train(self, guard: SignalGuard) -> None:
        train, state = self.config.train, self.state
        self.model.train()
        self._guard, self._told = guard, None
        while not state.done(train):
            guard.check(self.device, self._told)
            self._told = None
            if state.step < self.steps:
                self._step()
                due = bool(train.checkpoint_steps) and state.updates % (train.checkpoint_steps or 1) == 0
            else:
                self._end_epoch(guard)
                due = state.epoch % train.checkpoint_every == 0
            if due:
                self.save()
        guard.check(self.device)

    def _step(self) -> None:
        """One update, or none if the numbers forbid it."""
        assert self.optimizer is not None
        state, started = self.state, time.perf_counter()
        position = state.epoch + state.step / self.steps
        epochs = self.config.train.epochs
        rates = set_lr(self.optimizer, lr_factor(self.config.optim, position, epochs, self.steps))
        loss, norms, divisor = self.gradients(state.epoch, state.step)
        overflow = self.scaler is not None and math.isfinite(loss) and not all(map(math.isfinite, norms))
        if not overflow and not (math.isfinite(loss) and all(map(math.isfinite, norms))):
            fail_step(self, loss, norms)
        norm = math.inf if overflow else scale_gradients(self.optimizer, norms, self.config.optim)
        if overflow:
            state.skipped += 1
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row > _OVERFLOWS:
                fail_step(self, loss, norms)
        else:
            self.optimizer.step()
            state.skipped_in_a_row = 0
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.updates += 1
        state.loss_total += loss * divisor
        state.loss_divisor += divisor
        seconds = time.perf_counter() - started
        state.epoch_seconds += seconds
        self.logger.step(state.updates, loss)
        if state.updates % self.log_steps == 0:
            line = {"split": "step", "loss": loss, "grad_norm": norm, **_rates(rates), "seconds": seconds}
            self.logger.line({"epoch": state.epoch + 1, "step": state.updates, **line})

    def gradients(self, epoch: int, step: int) -> tuple[float, list[float], float]:
        """Fills the gradients of one global batch.

        Args:
            epoch: Epoch, from 0.
            step: Step within it, from 0.

        Returns:
            The batch's loss, the gradient norm of each group, and the loss's divisor.
        """
        assert self.optimizer is not None
        batch = self.task.batch(epoch, step)
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.zeros((), device=self.device, dtype=exact)
        divisor = 1.0
        for index in range(self.rank, self.parts, self.world):
            # by the shard, so that it draws the same whichever rank computes it
            reseed(derive_seed(self.config.seed, "dropout", epoch, step, index, 0))
            with self.parallel.accumulating(last=index + self.world >= self.parts):
                with self._autocast():
                    part = self.parallel.loss(batch, index, self.parts)
                divisor = float(part.divisor)
                loss = part.total / divisor
                if loss.requires_grad:  # an empty shard may have nothing to learn from
                    scaled = loss if self.scaler is None else self.scaler.scale(loss)
                    scaled.backward()
            total += loss.detach().to(total.dtype)
        self.parallel.finish()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norms = gradient_norms(self.optimizer)
        # The only wait for the device in a step. Ranks agree because they all see the sum of losses and of
        # gradients, in which a NaN anywhere is a NaN; and whether any was asked to stop.
        asked = self._guard is not None and self._guard.asked
        shared = ranks.all_sum(torch.stack([total, total.new_tensor(float(asked))]))
        loss, stop, *found = torch.cat([shared, norms.to(exact)]).tolist()
        self._told = stop > 0 if self.world > 1 else None
        return loss, found, divisor

    def _autocast(self) -> torch.autocast:
        precision = self.config.train.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=precision != "fp32")

    def _end_epoch(self, guard: SignalGuard) -> None:
        """Evaluates if it is due, then logs the epoch and moves on to the next.

        Nothing changes before the evaluation is over: a signal in its midst leaves the epoch to be evaluated.
        """
        train, state = self.config.train, self.state
        assert self.optimizer is not None
        epoch, metrics, seconds = state.epoch + 1, None, 0.0
        if epoch % train.eval_every == 0 or epoch == train.epochs:
            metrics, seconds = self._evaluate("valid", guard)
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        loss = state.loss_total / max(state.loss_divisor, 1e-12)
        mark = {"epoch": epoch, "step": state.updates}
        self.logger.line(
            {**mark, "split": "train", "loss": loss, **_rates(rates), "seconds": state.epoch_seconds}
        )
        if metrics is not None:
            self.logger.line({**mark, "split": "valid", **metrics, "seconds": seconds})
            state.eval_seconds.append(seconds)
        state.train_seconds.append(state.epoch_seconds)
        state.epoch, state.step = epoch, 0
        state.loss_total = state.loss_divisor = state.epoch_seconds = 0.0
        if metrics is not None:
            self._remember(metrics)
        self.logger.epoch(epoch, state.updates, self._valid_text(metrics))
        if state.out_of_patience(train):
            _log.info("early stop after epoch %d: %d evaluations without a better value", epoch, state.stale)

    # Evaluation

    def _evaluate(self, split: str, guard: SignalGuard) -> tuple[dict[str, float], float]:
        """Returns the metrics of a split and the seconds it took."""
        started = time.perf_counter()
        self.model.eval()
        reseed(derive_seed(self.config.seed, "evaluation"))
        with torch.no_grad(), guard.interruptible():
            metrics = {k: float(v) for k, v in self.task.evaluate(self.model, split).items()}
        self.model.train()
        metric = self.task.benchmark.metric
        if metric not in metrics:
            raise UserError(f"the evaluation gave no '{metric}'{did_you_mean(metric, metrics)}")
        return metrics, time.perf_counter() - started

    def _remember(self, metrics: dict[str, float]) -> None:
        """Keeps the weights if they are the best so far: the first on ties, never a NaN."""
        state, name = self.state, self.task.benchmark.metric
        value = metrics[name]
        state.evaluations += 1
        sign = 1.0 if self.task.benchmark.maximize else -1.0
        if not math.isfinite(value):
            _log.warning("%s is %s after epoch %d; it never counts as the best", name, value, state.epoch)
        elif state.best_value is None or sign * value > sign * state.best_value:
            state.best_value, state.best_metrics = value, metrics
            state.best_epoch, state.best_updates, state.stale = state.epoch, state.updates, 0
            self._keep_best()
            return
        state.stale += 1

    def _keep_best(self) -> None:
        for name, tensor in self.model.state_dict().items():
            if name in self.best and self.best[name].shape == tensor.shape:
                self.best[name].copy_(tensor)
            else:
                self.best[name] = tensor.detach().to("cpu", copy=True)

    def _finish(self, guard: SignalGuard) -> Result:
        """Evaluates the best weights on validation and test, and stores the result."""
        if self.best:
            self.model.load_state_dict(self.best)
        elif self.optimizer is not None:
            _log.warning("no evaluation gave a finite value; the last weights are evaluated")
        valid, _ = self._evaluate("valid", guard)
        test, _ = self._evaluate("test", guard)
        self.model.eval()
        now, before = valid[self.task.benchmark.metric], self.state.best_value
        if before is not None and not math.isclose(now, before, rel_tol=1e-4, abs_tol=1e-6):
            _log.warning("the best weights gave %g in training and %g now: evaluation varies", before, now)
        self.tick()
        result = make_result(self, valid, test)
        if self.run is not None and self.rank == 0:
            self.run.write_result(result.to_dict())
        for name, module in self.model.named_modules():
            traffic = getattr(module, "traffic", None)
            if traffic is not None and self.world > 1 and traffic.distinct:
                sent = (traffic.ids_sent + traffic.rows_sent + traffic.gradients_sent) / 1e6
                share = 100 * traffic.local / traffic.distinct
                _log.info("%s: %.0f %% of looked-up rows live here, %.1f MB sent", name, share, sent)
        ranks.barrier()
        return result

    def _valid_text(self, metrics: Mapping[str, float] | None) -> str:
        name, state = self.task.benchmark.metric, self.state
        if state.best_epoch is None:
            return f"{name} {metrics[name]:.4g}" if metrics else ""
        best = f"{state.best_value:.4g} at {state.best_epoch}"
        return f"{name} {metrics[name]:.4g} (best {best})" if metrics else f"best {name} {best}"

    # State

    def save(self) -> None:
        """Writes a checkpoint of the present position, unless there is one."""
        position = (self.state.updates, self.state.epoch)
        if self.store is None or self.optimizer is None or self._saved == position:
            return
        if self.rank == 0:
            self.tick()
            self.state.log_bytes = self.logger.position()
        snapshot = take_snapshot(self)
        if self.rank == 0 or snapshot.ranges:  # every rank has rows of its own to save, or none has
            self.store.save(snapshot, self.state.updates)
        self._saved = position

    def _resume(self) -> None:
        """Puts back the last good checkpoint, if there is one."""
        self._begun = time.perf_counter()
        self.fingerprint = getattr(self.task.benchmark, "fingerprint", None)
        if self.store is not None and self.optimizer is not None:
            snapshot = self.store.load(repair=True, together=True)
            if snapshot is not None:
                put_back(self, snapshot)
                self._saved = (self.state.updates, self.state.epoch)
                _log.info("resuming at epoch %d, step %d", self.state.epoch, self.state.step)
        self.logger.start(
            epochs=self.config.train.epochs,
            steps=self.steps,
            done=self.state.updates,
            position=self.state.log_bytes,
        )

    def _stored_result(self) -> Result | None:
        """The result of a run that is over."""
        stored = self.run.result if self.run else None
        ranks.barrier()  # all have looked before one may write
        if stored is None:
            return None
        result = Result.from_dict(stored)
        over = self.optimizer is None or result.stopped_early or result.epochs >= self.config.train.epochs
        if not over:  # prolonged by an earlier version of graphkit, which looked at test again
            refuse_extension(str(self.run.folder) if self.run else "the run", result.epochs)
        return result

    def tick(self) -> None:
        """Adds the time since the last call to the run's total."""
        now = time.perf_counter()
        self.state.seconds += now - self._begun
        self._begun = now


def _rates(rates: Mapping[str, float]) -> dict[str, Any]:
    """Learning rates for a log line: one number if there is one group."""
    if len(rates) == 1:
        return {"lr": next(iter(rates.values()))}
    return {f"lr/{name}": rate for name, rate in rates.items()}
