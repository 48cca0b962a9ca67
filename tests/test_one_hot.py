"""ops/one_hot.py against torch's linear layer, and when it is used."""

import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.one_hot import FeatureLinear, Sampled, sampled

STOCH, DETER, UNITS = 16, 24, 20


def features(discrete: int = 32, stoch: int = STOCH, dtype: torch.dtype = torch.float32) -> Tensor:
    """Features (3, 5, F) of sampled latents."""
    torch.manual_seed(0)
    classes = torch.randint(discrete, (3, 5, stoch))
    return torch.cat([F.one_hot(classes, discrete).flatten(-2), torch.randn(3, 5, DETER)], -1).to(dtype)


def layer() -> FeatureLinear:
    torch.manual_seed(1)
    return FeatureLinear(STOCH * 32 + DETER, UNITS)


def gradients(work: Callable[[Tensor], Tensor], linear: nn.Linear, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result for ``feat``, and the gradients of a weighted sum of it for the features, weight and bias."""
    leaf = feat.clone().requires_grad_()
    result = work(leaf)
    mix = torch.linspace(-1, 1, result.numel()).view(result.shape)
    return result.detach(), torch.autograd.grad((result * mix).sum(), [leaf, linear.weight, linear.bias])


def both(dtype: torch.dtype) -> tuple[tuple, tuple]:
    """`gradients` of a layer on `Sampled` features, and on the same tensor; under autocast if bfloat16."""
    linear, feat = layer(), features(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert isinstance(sampled(feat, STOCH, 32), Sampled)
        found = gradients(lambda x: linear(sampled(x, STOCH, 32)), linear, feat)
        return found, gradients(lambda x: F.linear(x, linear.weight, linear.bias), linear, feat)


def test_values_and_gradients_equal_those_of_a_linear_layer():
    found, expected = both(torch.float32)
    assert found[0].abs().mean() > 0.1 and all(g.abs().max() > 0.1 for g in expected[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_values_and_gradients_equal_those_of_a_linear_layer_within_the_rounding():
    found, expected = both(torch.bfloat16)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], expected[0], rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(found[1], expected[1], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("discrete", [32, 256])
def test_columns_are_the_positions_of_the_ones(discrete: int, dtype: torch.dtype):
    feat = features(discrete, dtype=dtype)
    feat[0, 0, :discrete] = 0
    feat[0, 0, discrete - 1] = 1  # the largest class
    ones = (feat[..., : STOCH * discrete] == 1).nonzero()[:, -1].view(3, 5, STOCH)
    assert ones[0, 0, 0] == discrete - 1
    assert torch.equal(sampled(feat, STOCH, discrete).columns, ones)


@pytest.mark.parametrize(("stoch", "discrete"), [(STOCH, 0), (STOCH, 16), (2, 257)])
def test_gaussian_latents_small_ones_and_those_of_many_classes_keep_the_product(stoch: int, discrete: int):
    feat = torch.rand(3, stoch * max(discrete, 1) + DETER)
    assert sampled(feat, stoch, discrete) is feat


def test_rows_and_detached_features_keep_their_columns():
    feat = features().requires_grad_()
    whole, linear = sampled(feat, STOCH, 32), layer()
    part = whole[:-1].detach()
    assert part.shape == (2, 5, STOCH * 32 + DETER) and not part.feat.requires_grad and whole.feat is feat
    assert torch.equal(part.columns, whole.columns[:-1])
    torch.testing.assert_close(linear(part), linear(feat[:-1]), rtol=1e-5, atol=1e-5)


def test_the_meta_device_gives_shapes():
    feat, linear = features().to("meta"), layer().to("meta")
    result = linear(sampled(feat, STOCH, 32))
    result.sum().backward()
    assert result.shape == (3, 5, UNITS) and linear.weight.grad.shape == linear.weight.shape


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_values_and_gradients_equal_those_of_a_linear_layer(dtype: torch.dtype):
    torch._dynamo.reset()
    linear = layer()
    compiled = torch.compile(lambda x, weight, bias: work(linear, x, weight, bias), dynamic=False, fullgraph=True)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    leaves = linear.weight, linear.bias
    feat = features(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = gradients(lambda x: compiled(x, *leaves), linear, feat)
        expected = gradients(lambda x: F.linear(x, *leaves), linear, feat)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def work(linear: FeatureLinear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.func.functional_call(linear, {"weight": weight, "bias": bias}, (sampled(x, STOCH, 32),))


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = layer()

    def forward(self, feat: Tensor) -> Tensor:
        return self.linear(sampled(feat, STOCH, 32))


def test_an_exported_program_computes_the_same():
    program, feat = Program(), features()
    shapes = {0: torch.export.Dim("n", min=1)}
    with torch.no_grad():
        exported = torch.export.export(program, (feat,), dynamic_shapes=(shapes,), strict=False).module()
        found, expected = exported(feat[:2]), F.linear(feat[:2], program.linear.weight, program.linear.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
