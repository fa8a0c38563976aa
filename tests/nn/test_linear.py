"""The fast linear layer is a linear layer: values, gradients, state dict, hooks, fallbacks."""

from __future__ import annotations

import copy

import pytest
import torch
from scvi.nn import FCLayers
from torch import nn

from scdeepclust.nn import FastLinear, _linear, use_fast_linear

SHAPES = [(128, 2000, 64), (64, 130, 257), (5, 3, 2)]


@pytest.fixture(params=["as this machine decides", "oneDNN", "default"])
def route(request, monkeypatch):
    """Each test runs on the machine's own route and on both routes by force."""
    if request.param == "oneDNN" and not _linear._operator_works():
        pytest.skip("this build of PyTorch has no oneDNN operator")
    if request.param != "as this machine decides":
        monkeypatch.setattr(_linear, "onednn_is_faster", lambda: request.param == "oneDNN")
    return request.param


def layers(n_in, n_out, bias=True):
    """A fast layer and a float64 reference with the same parameters."""
    torch.manual_seed(0)
    fast = FastLinear(n_in, n_out, bias=bias)
    reference = nn.Linear(n_in, n_out, bias=bias).double()
    reference.load_state_dict(fast.state_dict())
    return fast, reference


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize(("n", "n_in", "n_out"), SHAPES)
def test_values_and_gradients(route, n, n_in, n_out, leading, bias):
    fast, reference = layers(n_in, n_out, bias)
    x = torch.randn(*leading, n, n_in, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    weights = torch.randn(*leading, n, n_out)
    found, expected = fast(x), reference(wide)
    (found * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    pairs = [(found, expected), (x.grad, wide.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(fast.parameters(), reference.parameters(), strict=True)]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max() <= 3e-6 * theirs.abs().max()  # rounding of sums of 2000 terms


def test_gradient_of_a_plain_sum(route):
    """Its upstream gradient is one number, expanded: a matrix whose strides are zero."""
    fast, reference = layers(1024, 64)
    x = torch.randn(64, 1024, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    fast(x).sum().backward()
    reference(wide).sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.weight.grad.double(), reference.weight.grad, rtol=0, atol=1e-4)


def test_views_are_read_as_they_are(route):
    fast, reference = layers(512, 128)
    x = torch.randn(512, 64).T[::2]
    torch.testing.assert_close(fast(x).double(), reference(x.double()), rtol=0, atol=1e-5)


def test_second_derivatives(route):
    fast = FastLinear(1024, 32)
    x = torch.randn(64, 1024, requires_grad=True)
    gradient = torch.autograd.grad(torch.tanh(fast(x)).sum(), x, create_graph=True)[0]
    gradient.square().sum().backward()
    plain = nn.Linear(1024, 32)
    plain.load_state_dict(fast.state_dict())
    other = torch.autograd.grad(torch.tanh(plain(x)).sum(), x, create_graph=True)[0]
    other.square().sum().backward()
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad, rtol=1e-3, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one(route):
    fast = FastLinear(1024, 64)
    fast.weight.requires_grad_(False)
    fast(torch.randn(64, 1024)).sum().backward()
    assert fast.weight.grad is None
    assert fast.bias.grad is not None


def test_autocast_takes_half_precision(route):
    fast = FastLinear(1024, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fast(torch.randn(64, 1024))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert fast.weight.grad.dtype == torch.float32


def test_other_types_and_wrong_shapes_behave_as_in_pytorch(route):
    assert FastLinear(1024, 64).double()(torch.randn(64, 1024, dtype=torch.float64)).dtype == torch.float64
    assert FastLinear(1024, 64)(torch.randn(1024)).shape == (64,)
    assert FastLinear(1024, 64)(torch.randn(0, 1024)).shape == (0, 64)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        FastLinear(1024, 64)(torch.randn(64, 1023))


def test_swap_keeps_parameters_hooks_and_state_dict(route):
    torch.manual_seed(0)
    plain = FCLayers(n_in=500, n_out=64, n_cat_list=[3], n_layers=2, n_hidden=128, dropout_rate=0.0)
    fast = copy.deepcopy(plain)
    plain.set_online_update_hooks()
    fast.set_online_update_hooks()
    state = torch.get_rng_state()
    assert use_fast_linear(fast) is fast
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(isinstance(module, FastLinear) for module in fast.modules()) == 2
    assert not any(isinstance(module, FastLinear) for module in plain.modules())
    x, batch = torch.randn(128, 500), torch.arange(128)[:, None] % 3
    for layer in (plain, fast):
        layer(x, batch).square().sum().backward()
    first = fast.fc_layers[0][0].weight.grad
    assert (first[:, :-3] == 0).all()  # the hook of scvi-tools: in a query, only the batch columns learn
    assert (first[:, -3:] != 0).any()
    for (name, p), (other, q) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
    plain.load_state_dict(fast.state_dict())


def test_swap_leaves_subclasses_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module = nn.Sequential(Doubled(2, 2), nn.Linear(2, 2))
    use_fast_linear(module)
    assert [type(child) for child in module] == [Doubled, FastLinear]


@pytest.mark.parametrize(
    ("vendor", "capability", "works", "expected"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX512", False, False),
        ("AuthenticAMD", "AVX2", True, False),
        ("GenuineIntel", "AVX512", True, False),
    ],
)
def test_the_route_is_a_fact_about_the_machine(monkeypatch, tmp_path, vendor, capability, works, expected):
    """Nothing else enters, no stopwatch above all: the same seed could otherwise give other labels."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(_linear, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(_linear, "_operator_works", lambda: works)
    assert _linear.onednn_is_faster.__wrapped__() is expected


def test_no_operator_means_the_default_route(monkeypatch):
    def missing(*arguments):
        raise AttributeError("no such operator")

    monkeypatch.setattr(_linear, "_onednn", missing)
    assert not _linear._operator_works()
