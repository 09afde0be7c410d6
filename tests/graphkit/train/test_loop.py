"""What the loop computes: determinism, accumulation, evaluation, the choice of the best."""

import math

import pytest
import torch
from torch import nn

from graphkit.errors import UserError
from graphkit.run import Run
from graphkit.testing import TinyModel, TinyTask, check_model, tiny_benchmark, tiny_config
from graphkit.train import Trainer


def fit(config=None, task=None, model=None, run=None):
    config = config or tiny_config()
    torch.manual_seed(config.seed)
    model = TinyModel() if model is None else model
    task = task or TinyTask(seed=config.seed, batch_size=config.train.batch_size)
    trainer = Trainer(model, task, config, run, log_steps=1)
    return trainer, trainer.fit()


def same(a, b, **tolerance):
    first, second = a.model.state_dict(), b.model.state_dict()
    if tolerance:
        return all(torch.allclose(first[k], second[k], **tolerance) for k in first)
    return all(torch.equal(first[k], second[k]) for k in first)


def test_one_seed_reproduces_and_another_differs():
    a, first = fit()
    torch.rand(3)
    b, second = fit()
    c, _ = fit(tiny_config(seed=1))
    assert same(a, b)
    assert first.valid == second.valid
    assert not same(a, c)


def test_evaluation_does_not_disturb_training():
    def draw(split, metrics):
        torch.rand(17)

    a, _ = fit(tiny_config(eval_every=1), TinyTask(on_evaluate=draw))
    b, _ = fit(tiny_config(eval_every=4))
    assert same(a, b)


def test_initial_generator_does_not_matter():
    model = TinyModel()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    runs = []
    for seed in (0, 123):
        model = TinyModel()
        model.load_state_dict(weights)
        torch.manual_seed(seed)
        trainer = Trainer(model, TinyTask(), tiny_config())
        trainer.fit()
        runs.append(trainer)
    assert same(*runs)


class Plain(nn.Module):
    """No dropout, no BatchNorm: micro-batches must add up."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_micro_batches_equal_one_batch(clip):
    """Global batch 8 as (8, 1), (4, 2), (2, 4); 7 examples more make the last batch uneven."""
    benchmark = tiny_benchmark(examples=23)
    trainers = []
    for accumulate in (1, 2, 4):
        config = tiny_config(
            batch_size=8 // accumulate,
            accumulate=accumulate,
            optim={"clip_norm": clip, "name": "sgd", "lr": 0.1},
        )
        torch.manual_seed(0)
        trainers.append(fit(config, TinyTask(benchmark, batch_size=8), Plain())[0])
    assert same(trainers[0], trainers[1], atol=1e-6)
    assert same(trainers[0], trainers[2], atol=1e-6)


def test_more_micro_batches_than_examples():
    benchmark = tiny_benchmark(examples=9)  # the last batch has one example
    trainer, _ = fit(tiny_config(accumulate=4), TinyTask(benchmark, batch_size=8), Plain())
    assert trainer.state.updates == 8


def test_equals_a_loop_written_out():
    config = tiny_config(epochs=2, optim={"lr": 0.05, "weight_decay": 0.01})
    torch.manual_seed(0)
    model = Plain()
    torch.manual_seed(0)
    trainer, _ = fit(config, model=Plain())
    task = TinyTask()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)
    states = []
    for epoch in range(2):
        for step in range(3):
            loss = task.loss(model, task.shard(task.batch(epoch, step), 0, 1))
            optimizer.zero_grad()
            (loss.total / loss.divisor).backward()
            optimizer.step()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    expected = states[trainer.state.best_epoch - 1]
    assert all(torch.allclose(v, expected[k], atol=1e-6) for k, v in trainer.model.state_dict().items())


def scripted(values, name="r2"):
    """Validation gives these values in turn, again and again the last; test gives 5."""
    remaining = list(values)

    def evaluate(split, metrics):
        if split == "test":
            return {name: 5.0}
        return {name: remaining.pop(0) if len(remaining) > 1 else remaining[0]}

    return evaluate


@pytest.mark.parametrize(
    ("values", "maximize", "best"),
    [
        ([1.0, 3.0, 2.0, 3.0], True, 2),
        ([3.0, 1.0, 2.0, 1.0], False, 2),
        ([math.nan, 1.0, math.nan, 0.5], True, 2),
        ([math.nan, 1.0, math.nan, 0.5], False, 4),
        ([math.inf, 1.0, 2.0, 0.5], True, 3),
        ([0.0, 0.0, 0.0, 0.0], True, 1),
    ],
)
def test_best_epoch(values, maximize, best, caplog):
    task = TinyTask(tiny_benchmark("r2", maximize=maximize), on_evaluate=scripted([*values, 9.0]))
    kept = {}
    trainer = Trainer(TinyModel(), task, tiny_config())
    keep = trainer._keep_best
    trainer._keep_best = lambda: (keep(), kept.update({k: v.clone() for k, v in trainer.best.items()}))
    result = trainer.fit()
    assert result.best_epoch == best
    assert result.test == {"r2": 5.0}
    assert all(torch.equal(v, kept[k]) for k, v in trainer.model.state_dict().items())
    assert ("never counts as the best" in caplog.text) == any(not math.isfinite(v) for v in values)


def test_nothing_finite(caplog):
    result = fit(task=TinyTask(on_evaluate=scripted([math.nan])))[1]
    assert result.best_epoch is None
    assert "the last weights are evaluated" in caplog.text


def test_varying_evaluation_is_noticed(caplog):
    fit(task=TinyTask(on_evaluate=scripted([1.0, 2.0, 1.0, 1.0, 9.0])))
    assert "gave 2 in training and 9 now: evaluation varies" in caplog.text


def test_test_is_looked_at_once():
    seen = []
    fit(task=TinyTask(on_evaluate=lambda split, metrics: seen.append(split)))
    assert seen == ["valid"] * 5 + ["test"]


def test_last_epoch_is_always_evaluated():
    seen = []
    task = TinyTask(on_evaluate=lambda split, metrics: seen.append(split))
    fit(tiny_config(epochs=5, eval_every=3), task)
    assert seen == ["valid"] * 3 + ["test"]


def test_early_stopping():
    task = TinyTask(on_evaluate=scripted([1.0, 2.0, 1.0, 1.0, 1.0, 3.0]))
    _, result = fit(tiny_config(epochs=20, patience=2), task)
    assert (result.epochs, result.best_epoch, result.stopped_early) == (4, 2, True)


def test_unknown_metric():
    with pytest.raises(UserError, match="gave no 'r2'; known: mse"):
        fit(task=TinyTask(on_evaluate=lambda split, metrics: {"mse": 1.0}))


class Heuristic(nn.Module):
    """Nothing to learn."""

    def forward(self, x):
        return x.sum(1, keepdim=True)


def test_parameter_free_model_is_evaluated_once(tmp_path):
    seen = []

    def note(split, metrics):
        seen.append(split)

    config = tiny_config()
    run = Run.create(tmp_path, config)
    task = TinyTask(on_evaluate=note, on_batch=lambda *position: pytest.fail("nothing to train"))
    _, result = fit(config, task, Heuristic(), run)
    assert seen == ["valid", "test"]
    assert (result.parameters, result.epochs, result.best_epoch) == (0, 0, None)
    assert run.result["test"] == result.test
    fit(config, task, Heuristic(), run)
    assert seen == ["valid", "test"]


def test_frozen_parameters_stay():
    model = TinyModel()
    model.encoder.requires_grad_(False)
    before = model.encoder.weight.clone()
    trainer, result = fit(model=model)
    assert torch.equal(trainer.model.encoder.weight, before)
    assert result.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_bf16_trains_and_fp16_needs_cuda():
    trainer, result = fit(tiny_config(precision="bf16", epochs=8))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert math.isfinite(result.valid["mse"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="fp16 needs a CUDA device"):
            fit(tiny_config(precision="fp16"))


def test_deterministic_is_put_back():
    fit(tiny_config(deterministic=True, epochs=1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_check_refuses_what_the_constructor_refuses(tmp_path):
    model, task = TinyModel(), TinyTask()
    Trainer.check(model, task, tiny_config())
    with pytest.raises(UserError, match="is no part of the model"):
        Trainer.check(model, task, tiny_config(optim={"group_lr": {"hed": 0.1}}))
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        Trainer.check(model, task, tiny_config(precision="fp16"))
    with pytest.raises(UserError, match="needs a model with forward"):
        Trainer.check(None, task, tiny_config())


def test_training_learns():
    _, result = fit(tiny_config(epochs=40), model=TinyModel(hidden=16, dropout=0.0))
    assert result.valid["r2"] > 0.3


def test_result_facts(tmp_path):
    config = tiny_config()
    run = Run.create(tmp_path, config)
    _, result = fit(config, run=run)
    stored = run.result
    assert stored["metric"] == "r2"
    assert stored["parameters"] == sum(p.numel() for p in TinyModel().parameters())
    assert stored["config_hash"] == config.hash()
    assert stored["seconds_per_epoch"] > 0
    assert stored["peak_memory_mb"] > 1
    assert (
        stored["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in stored["versions"]["torch"]
    )
    assert stored["hardware"]["cores"] >= 1
    assert set(stored["git"]) == {"commit", "dirty"}
    assert result.to_dict() == type(result).from_dict(stored).to_dict()


def test_without_a_run_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit()
    assert list(tmp_path.iterdir()) == []


def test_check_model_accepts_and_refuses():
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    def loss(model):
        return (model(x) - y).square().mean()

    check_model(TinyModel(dropout=0.0), loss)
    broken = TinyModel()
    broken.spare = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"spare\.weight gets no gradient"):
        check_model(broken, loss)
    check_model(broken, loss, unused=("spare",))
