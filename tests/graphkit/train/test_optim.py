"""Parameter groups, schedules, clipping."""

import copy
import math

import pytest
import torch
from torch import nn

from graphkit.config import OptimConfig
from graphkit.errors import UserError
from graphkit.testing import TinyModel
from graphkit.train.lazy_adam import LazyAdam
from graphkit.train.optim import build_optimizer, gradient_norms, lr_factor, scale_gradients, set_lr


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"conv": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
        self.encoder2 = nn.Linear(2, 2)
        self.alpha = nn.Parameter(torch.ones(1))


def test_groups_by_longest_prefix():
    config = OptimConfig(lr=0.1, group_lr={"encoder": 0.2, "encoder.norm": 0.3, "alpha": 0.4})
    model = Nested()
    optimizer = build_optimizer(model, config)
    groups = {g["name"]: (g["base_lr"], sum(p.numel() for p in g["params"])) for g in optimizer.param_groups}
    assert groups == {
        "default": (0.1, 6),
        "encoder": (0.2, 6),
        "encoder.norm": (0.3, 4),
        "alpha": (0.4, 1),
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [("encodr", "did you mean 'encoder'"), ("encoder.nrm", "did you mean 'encoder.norm'"), ("zzz", "known:")],
)
def test_unknown_group(name, hint):
    with pytest.raises(UserError, match=f"names '{name}', which is no part of the model; {hint}"):
        build_optimizer(Nested(), OptimConfig(group_lr={name: 0.1}))


def test_group_without_parameters():
    model = Nested()
    model.encoder2.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(model, OptimConfig(group_lr={"encoder2": 0.1}))


def test_tied_parameters_are_in_one_group():
    model = TinyModel()
    optimizer = build_optimizer(model, OptimConfig(group_lr={"middle": 0.1}))
    counted = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(counted) == len({id(p) for p in counted}) == len(list(model.parameters()))


def test_no_parameters_no_optimizer():
    assert build_optimizer(nn.ReLU(), OptimConfig()) is None


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_equals_the_plain_optimizer(name):
    config = OptimConfig(name=name, lr=0.05, weight_decay=0.1, momentum=0.9 if name == "sgd" else 0.0)
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    pairs = [
        (model, build_optimizer(model, config)),
        (other, kind(other.parameters(), lr=0.05, weight_decay=0.1, foreach=False, **extra)),
    ]
    x = torch.randn(5, 3)
    for _ in range(5):
        for module, optimizer in pairs:
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    assert torch.allclose(model.weight, other.weight, atol=1e-6)


def test_schedules():
    constant = OptimConfig(warmup_epochs=2)
    assert [lr_factor(constant, t, 10, 2) for t in (0, 0.5, 1, 1.5, 2, 9)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert lr_factor(OptimConfig(warmup_epochs=0.1), 0, 10, 3) == 1  # less than a step
    cosine = OptimConfig(schedule="cosine", warmup_epochs=2, min_lr_ratio=0.1)
    assert lr_factor(cosine, 2, 10, 3) == 1
    assert lr_factor(cosine, 6, 10, 3) == pytest.approx(0.55)
    assert lr_factor(cosine, 10, 10, 3) == pytest.approx(0.1)
    assert lr_factor(cosine, 4, 10, 3) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    linear = OptimConfig(schedule="linear", min_lr_ratio=0.2)
    assert [lr_factor(linear, t, 10, 3) for t in (0, 5, 10, 20)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert lr_factor(OptimConfig(schedule="cosine", warmup_epochs=5), 5, 5, 3) == 1


def test_set_lr_keeps_the_ratio_of_groups():
    optimizer = build_optimizer(TinyModel(), OptimConfig(lr=0.1, group_lr={"head": 0.4}))
    assert set_lr(optimizer, 0.5) == {"default": 0.05, "head": 0.2}
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.2]


@pytest.mark.parametrize("by_group", [False, True])
def test_clipping_equals_torch(by_group):
    config = OptimConfig(clip_norm=0.7, clip_groups=by_group, group_lr={"head": 0.1})
    torch.manual_seed(0)
    model, other = TinyModel(), TinyModel()
    other.load_state_dict(model.state_dict())
    optimizer, reference = build_optimizer(model, config), build_optimizer(other, config)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    total = scale_gradients(optimizer, gradient_norms(optimizer).tolist(), config)
    groups = [g["params"] for g in reference.param_groups] if by_group else [list(other.parameters())]
    norms = [float(torch.nn.utils.clip_grad_norm_(group, 0.7)) for group in groups]
    assert total == pytest.approx(math.hypot(*norms), rel=1e-5)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_norms_of_missing_and_sparse_gradients():
    model = nn.ModuleDict({"table": nn.Embedding(10, 2, sparse=True), "idle": nn.Linear(2, 2)})
    optimizer = build_optimizer(model, OptimConfig(name="sgd", group_lr={"idle": 0.1}))
    (model["table"](torch.tensor([1, 1, 3])) * 3).sum().backward()
    norms = gradient_norms(optimizer).tolist()
    assert norms == pytest.approx([math.sqrt(2 * 36 + 2 * 9), 0.0])
    optimizer.step()


# --- Sparse gradients --------------------------------------------------------------------------------------


def sparse_model(sparse=True):
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(6, 3, sparse=sparse), "head": nn.Linear(3, 2)})
    return model.double()


def steps_on(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        model["head"](model["table"](ids)).square().sum().backward()
        gradient_norms(optimizer)
        optimizer.step()


def test_lazy_adam_is_adam_where_every_row_has_a_gradient():
    model, other = sparse_model(), sparse_model(sparse=False)
    everything = [torch.tensor([0, 1, 2, 3, 4, 5, 5]), torch.arange(6), torch.arange(6).flip(0)]
    lazy = build_optimizer(model, OptimConfig(lr=0.1))
    assert type(lazy) is LazyAdam
    steps_on(model, lazy, everything)
    steps_on(other, torch.optim.Adam(other.parameters(), lr=0.1), everything)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_lazy_adam_agrees_with_sparse_adam_up_to_epsilon():
    model, other = sparse_model(), sparse_model()
    batches = [torch.tensor([1, 1, 4]), torch.tensor([4, 0]), torch.tensor([1])]
    steps_on(model, build_optimizer(model, OptimConfig(lr=0.1)), batches)
    table = torch.optim.SparseAdam([other["table"].weight], lr=0.1)
    head = torch.optim.Adam(other["head"].parameters(), lr=0.1)
    for ids in batches:
        table.zero_grad()
        head.zero_grad()
        other["head"](other["table"](ids)).square().sum().backward()
        table.step()
        head.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rows_without_a_gradient_stay_and_keep_their_moments():
    model = sparse_model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1))
    steps_on(model, optimizer, [torch.tensor([1, 2])])
    weight = model["table"].weight.detach().clone()
    moments = optimizer.state[model["table"].weight]["exp_avg"].clone()
    steps_on(model, optimizer, [torch.tensor([2, 3])])
    moved = (model["table"].weight != weight).any(1)
    assert moved.tolist() == [False, False, True, True, False, False]
    assert torch.equal(optimizer.state[model["table"].weight]["exp_avg"][1], moments[1])


def test_an_empty_sparse_gradient_changes_nothing():
    model = sparse_model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1))
    before = model["table"].weight.detach().clone()
    steps_on(model, optimizer, [torch.zeros(0, dtype=torch.int64)])
    assert torch.equal(model["table"].weight, before)


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"name": "sgd", "momentum": 0.9}])
def test_what_moves_every_row_is_refused_with_sparse_gradients(option):
    with pytest.raises(UserError, match="sparse gradients of an embedding don't go with"):
        build_optimizer(sparse_model(), OptimConfig(**option))


def test_state_of_lazy_adam_survives_saving():
    model, other = sparse_model(), sparse_model()
    optimizer, again = (build_optimizer(m, OptimConfig(lr=0.1)) for m in (model, other))
    batches = [torch.tensor([1, 2]), torch.tensor([2, 3]), torch.tensor([0, 2])]
    steps_on(model, optimizer, batches[:2])
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a file would hold it
    steps_on(model, optimizer, batches[2:])
    steps_on(other, again, batches[2:])
    assert torch.equal(model["table"].weight, other["table"].weight)


# --- Rules for rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("rows", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_a_rule_for_rows_leaves_the_rest_to_the_optimizer(name, rows):
    model, other = sparse_model(), sparse_model()
    extra = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1, weight_decay=0.1, rows=rows, **extra))
    dense = build_optimizer(other["head"], OptimConfig(name=name, lr=0.1, weight_decay=0.1, **extra))
    for ids in (torch.tensor([1, 2]), torch.tensor([2, 2, 3])):
        before = model["table"].weight.detach().clone()
        steps_on(model, optimizer, [ids])
        moved = (model["table"].weight != before).any(1)
        assert sorted(moved.nonzero().flatten().tolist()) == sorted(
            set(ids.tolist())
        )  # no decay, no momentum
        dense.zero_grad()
        other["head"](before[ids]).square().sum().backward()
        dense.step()
        torch.testing.assert_close(model["head"].weight, other["head"].weight, rtol=1e-10, atol=1e-12)


def test_rowwise_adagrad_by_its_formula():
    model = sparse_model()
    table = model["table"].weight
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, rows="rowwise_adagrad"))
    total, expected = torch.zeros(6, dtype=torch.float64), table.detach().clone()
    for ids in (torch.tensor([1, 1, 4]), torch.tensor([4, 0])):
        steps_on(model, optimizer, [ids])
        grad = table.grad.to_dense()
        for row in set(ids.tolist()):
            total[row] += grad[row].square().mean()
            expected[row] -= 0.1 * grad[row] / (total[row].sqrt() + 1e-8)
        torch.testing.assert_close(table.detach(), expected, rtol=1e-10, atol=1e-12)
    assert optimizer.state[table]["sum"].shape == (6,)


@pytest.mark.parametrize("rows", ["adagrad", "rowwise_adagrad", "adam"])
def test_state_of_rows_survives_saving(rows):
    model, other = sparse_model(), sparse_model()
    optimizer, again = (build_optimizer(m, OptimConfig(lr=0.1, rows=rows)) for m in (model, other))
    batches = [torch.tensor([1, 2]), torch.tensor([2, 3]), torch.tensor([0, 2])]
    steps_on(model, optimizer, batches[:2])
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps_on(model, optimizer, batches[2:])
    steps_on(other, again, batches[2:])
    assert torch.equal(model["table"].weight, other["table"].weight)


def test_a_rule_for_rows_means_nothing_without_sparse_gradients():
    assert type(build_optimizer(nn.Linear(2, 2), OptimConfig(rows="adagrad"))) is torch.optim.Adam


def test_an_unknown_rule_for_rows_is_refused():
    with pytest.raises(UserError, match=r"optim.rows is 'lamb'; it must be one of same, sgd"):
        OptimConfig(rows="lamb")
