from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphkit.kernels.dropout import dropout_torch, keep_mask, norm_dropout_relu_torch
from graphkit.nn import (
    DropoutReLU,
    FastDropout,
    NormDropoutReLU,
    dropout_relu,
    fast_dropout,
    norm_dropout_relu,
)

SHAPES = [(64, 256), (3, 5), (7, 333), (2, 3, 1025), (1, 1), (0, 4)]
P = 0.3
THRESHOLD = round(P * 65536)
SCALE = 65536 / (65536 - THRESHOLD)


def seed_of(number: int) -> Tensor:
    return torch.tensor([number])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 123456789012345678, -5])
def test_compiled_loops_equal_torch(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(fast_dropout(x, P, seed=seed), dropout_torch(x, seed_of(seed), THRESHOLD, False))
    assert torch.equal(dropout_relu(x, P, seed=seed), dropout_torch(x, seed_of(seed), THRESHOLD, True))
    weight, bias = torch.rand(shape[-1], dtype=dtype), torch.randn(shape[-1], dtype=dtype)
    ours = norm_dropout_relu(x, weight, bias, P, seed=seed)
    rows = x.reshape(-1, shape[-1])
    theirs, _, _ = norm_dropout_relu_torch(rows, weight, bias, seed_of(seed), THRESHOLD, 1e-5)
    torch.testing.assert_close(ours, theirs.view(shape))
    assert ours.dtype == dtype


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_rate_and_mean(p: float) -> None:
    x = torch.ones(2304, 256)
    for seed in range(4):
        y = fast_dropout(x, p, seed=seed).double()
        n = x.numel()
        rate = round(p * 65536) / 65536
        assert abs((y == 0).double().mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
        assert abs(y.mean() - 1) < 5 * math.sqrt(rate / (1 - rate) / n)
        # No row or column is favoured: chi-square of their counts, whose deviation is sqrt(2 / lines).
        for dim in (0, 1):
            counts = (y == 0).double().sum(dim)
            mean = x.size(dim) * rate
            chi = ((counts - mean) ** 2 / (mean * (1 - rate))).mean()
            assert abs(chi - 1) < 6 * math.sqrt(2 / counts.numel()) + (0.3 if mean < 5 else 0)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_positions_and_seeds_are_independent(p: float) -> None:
    def centred(seed: int, rows: int = 2048, width: int = 256) -> Tensor:
        keep = keep_mask(seed_of(seed), rows, width, round(p * 65536)).double()
        return (keep - (1 - p)) / math.sqrt(p * (1 - p))

    a = centred(7)
    bound = 5 / math.sqrt(a.numel() / 2)
    shifts = [
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 64),
        (0, 127),
        (0, 128),
        (0, 129),
        (1, 0),
        (1, 1),
        (2, 0),
        (1, 128),
        (512, 0),
    ]
    for rows, columns in shifts:
        correlation = (a[rows:, columns:] * a[: 2048 - rows, : 256 - columns]).mean()
        assert abs(correlation) < bound, (rows, columns)
    for other in (8, 6, 7 + 2**32, 7 + 2**40, 7 ^ (1 << 62), -7):
        assert abs((a * centred(other)).mean()) < bound, other
    # Three at a time, which a mask made of sums of bits would fail.
    assert abs((a[:, 2:] * a[:, 1:-1] * a[:, :-2]).mean()) < bound
    assert abs((a[:-1, :128] * a[:-1, 128:] * a[1:, :128]).mean()) < bound


def test_torch_seed_decides_and_calls_differ() -> None:
    x = torch.randn(50, 40)
    torch.manual_seed(3)
    first, second = dropout_relu(x), dropout_relu(x)
    torch.manual_seed(3)
    assert torch.equal(dropout_relu(x), first)
    assert not torch.equal(first, second)


def test_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    x, grad = torch.randn(3001, 256), torch.randn(3001, 256)
    weight, bias = torch.rand(256), torch.randn(256)
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
            y = dropout_relu(leaves[0], P, seed=1)
            z = norm_dropout_relu(*leaves, p=P, seed=1)
            results.append(
                [y, z, *torch.autograd.grad(y, leaves[0], grad), *torch.autograd.grad(z, leaves, grad)]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(7, dtype=torch.float64).add(0.5).requires_grad_()
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fast_dropout(x, P, seed=4), (x,))
    assert torch.autograd.gradgradcheck(lambda x: fast_dropout(x, P, seed=4), (x,))
    assert torch.autograd.gradcheck(lambda x: dropout_relu(x, P, seed=4), (x,))
    assert torch.autograd.gradgradcheck(lambda x: dropout_relu(x, P, seed=4), (x,))
    assert torch.autograd.gradcheck(lambda *a: norm_dropout_relu(*a, p=P, seed=4), (x, weight, bias))


@pytest.mark.parametrize("rows", [1, 64, 200])
def test_gradients_equal_torch_given_the_mask(rows: int) -> None:
    leaves = [torch.randn(rows, 33), torch.rand(33) + 0.5, torch.randn(33)]
    leaves = [t.double().requires_grad_() for t in leaves]
    grad = torch.randn(rows, 33, dtype=torch.float64)
    keep = keep_mask(seed_of(11), rows, 33, THRESHOLD)
    expected = F.relu(F.layer_norm(leaves[0], (33,), *leaves[1:]) * keep * SCALE)
    ours = norm_dropout_relu(*leaves, p=P, seed=11)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(6, 10).to(dtype).requires_grad_()
    layer = NormDropoutReLU(10, P)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.eval()(x).dtype == dtype
    assert torch.equal(dropout_relu(x, P, seed=1), dropout_relu(x.float(), P, seed=1).to(dtype))


def test_evaluation_and_the_ends_of_the_rate() -> None:
    x = torch.randn(6, 10)
    layer = NormDropoutReLU(10, P).eval()
    assert torch.equal(layer(x), F.relu(F.layer_norm(x, (10,))))
    assert torch.equal(dropout_relu(x, P, training=False), F.relu(x))
    assert torch.equal(fast_dropout(x, P, training=False), x)
    assert torch.equal(dropout_relu(x, 0.0), F.relu(x))
    assert torch.equal(norm_dropout_relu(x, layer.weight, layer.bias, 0.0), layer(x))
    assert not fast_dropout(x, 1.0).any()
    assert not dropout_relu(x, 1.0).any()
    assert not norm_dropout_relu(x, layer.weight, layer.bias, 1.0).any()


def test_nan_is_not_hidden() -> None:
    x = torch.full((200,), float("nan"), requires_grad=True)
    kept = dropout_relu(x, 0.5, seed=2).isnan()
    assert 60 < kept.sum() < 140
    assert norm_dropout_relu(x.detach()[None], torch.ones(200), torch.zeros(200), 0.5).isnan().any()


def test_not_contiguous_input() -> None:
    x = torch.randn(30, 20).t()
    weight, bias = torch.rand(30), torch.randn(30)
    assert torch.equal(dropout_relu(x, P, seed=1), dropout_relu(x.contiguous(), P, seed=1))
    ours = norm_dropout_relu(x, weight, bias, P, seed=1)
    assert torch.equal(ours, norm_dropout_relu(x.contiguous(), weight, bias, P, seed=1))
    leaf = torch.randn(20, 30, requires_grad=True)
    dropout_relu(leaf, P).sum().backward()  # the gradient is expanded, not laid out
    assert leaf.grad is not None


def test_modules() -> None:
    layer = NormDropoutReLU(12, 0.2)
    plain = nn.LayerNorm(12)
    plain.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(4, 12)
    for module in (layer, DropoutReLU(0.2), FastDropout(0.2)):
        assert "p=0.2" in repr(module)
        assert module(x).shape == x.shape
        assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize("module", [NormDropoutReLU(16, 0.4), DropoutReLU(0.4), FastDropout(0.4)])
def test_compiles_without_graph_breaks(module: nn.Module) -> None:
    x = torch.randn(8, 16, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (module, compiled):
        torch.manual_seed(0)
        y = call(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(results[0], results[1])


def test_op_registration() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    y = x.detach().relu().requires_grad_()
    weight, bias = torch.rand(6, requires_grad=True), torch.randn(6, requires_grad=True)
    ops = torch.ops.graphkit
    torch.library.opcheck(ops.dropout.default, (x, seed_of(1), 20000, False))
    torch.library.opcheck(ops.dropout.default, (x, seed_of(1), 20000, True))
    torch.library.opcheck(ops.dropout_relu_grad.default, (x, y, 20000))
    torch.library.opcheck(ops.norm_dropout_relu.default, (x, weight, bias, seed_of(1), 20000, 1e-5))


def test_bad_input_is_refused() -> None:
    x = torch.randn(3, 4)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            dropout_relu(x, p)
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            DropoutReLU(p)
    with pytest.raises(ValueError, match="floating point"):
        fast_dropout(x.long())
    with pytest.raises(ValueError, match="last dimension"):
        norm_dropout_relu(x, torch.ones(3), torch.zeros(3))
