"""Linear layers by oneDNN: the same function and the same gradients as torch's own, up to rounding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lgrpo.policy import products
from lgrpo.policy.products import FEW, Linear, install, linear

oneDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")


@pytest.fixture(params=[pytest.param(True, marks=oneDNN), False])
def pays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "PAYS", request.param)
    return bool(request.param)


def close(got: Tensor | None, wanted: Tensor | None) -> bool:
    assert got is not None
    assert wanted is not None
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    return torch.allclose(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (FEW - 1, 24), (FEW, 24), (300, 24), (4, 50, 24), (2, 3, 16, 24)])
def test_values_and_gradients_equal_torchs(shape: tuple[int, ...], bias: bool) -> None:
    x, weight = torch.randn(shape), torch.randn(40, 24)
    leaves = [x, weight, *([torch.randn(40)] if bias else [])]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    theirs = [leaf.clone().requires_grad_() for leaf in leaves]
    wanted = functional.linear(*theirs)
    with torch.no_grad():
        assert close(linear(*ours), wanted)
    got = linear(*ours)
    assert close(got, wanted)
    upstream = torch.randn_like(wanted)
    got.backward(upstream)
    wanted.backward(upstream)
    assert all(close(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    """The output head's weights are frozen, and a first layer's input has no gradient."""
    leaves = [torch.randn(64, 24), torch.randn(40, 24)]
    leaves[1 - frozen].requires_grad_()
    linear(*leaves).sum().backward()
    assert leaves[frozen].grad is None
    other = leaves[frozen]
    assert close(leaves[1 - frozen].grad, other.sum(0).expand_as(leaves[1 - frozen]))


@oneDNN
def test_few_rows_and_other_dtypes_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PAYS", True)
    monkeypatch.setattr(products, "_product", lambda *_: pytest.fail("not for these"))
    for rows, dtype in ((FEW - 1, torch.float32), (FEW, torch.float64), (FEW, torch.bfloat16)):
        x, weight = torch.randn(rows, 24, dtype=dtype), torch.randn(40, 24, dtype=dtype)
        assert torch.equal(linear(x, weight), functional.linear(x, weight))
    with pytest.raises(pytest.fail.Exception):
        linear(torch.randn(FEW, 24), torch.randn(40, 24))


@oneDNN
def test_layers_keep_their_weights_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Linear):
        """A layer that computes something else."""

    monkeypatch.setattr(products, "PAYS", True)
    model = nn.Sequential(nn.Linear(24, 40), Other(40, 24))
    before, x = model.state_dict(), torch.randn(FEW, 24)
    wanted = model(x)
    install(model)
    assert [type(layer) for layer in model] == [Linear, Other]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert close(model(x), wanted)


def test_nothing_is_installed_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PAYS", False)
    model = nn.Sequential(nn.Linear(24, 40))
    install(model)
    assert type(model[0]) is nn.Linear
