"""Networks: shapes for every image size, sequences against single steps, the truncated normal against scipy."""

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import tiny

from models import WorldModel
from networks import RSSM, Actor, ConvDecoder, ConvEncoder, ScalarHead, TruncatedNormal, decoder_sizes


@pytest.mark.parametrize("size", [32, 64, 84, 96, 128])
def test_images_of_any_size_are_encoded_and_decoded(size: int):
    encoder, decoder = ConvEncoder(size, 2, "ELU"), ConvDecoder(7, size, 2, "ELU")
    image = torch.randint(0, 256, (2, 3, size, size, 3), dtype=torch.uint8)
    assert encoder(image).shape == (2, 3, encoder.embed)
    assert decoder(torch.randn(2, 3, 7)).shape == image.shape


def test_networks_for_64_pixels_have_the_layers_of_dreamer():
    assert [kernel for kernel, _ in decoder_sizes(64)] == [5, 5, 6, 6]
    encoder = ConvEncoder(64, 32, "ELU")
    assert [m.out_channels for m in encoder.layers if hasattr(m, "out_channels")] == [32, 64, 128, 256]
    assert encoder.embed == 1024


@pytest.mark.parametrize("discrete", [0, 4])
def test_observe_on_a_sequence_equals_single_steps(discrete: int):
    """One call on T steps and T calls on one step give the same states for the same random numbers."""
    rssm = RSSM(6, 2, stoch=3, deter=5, hidden=7, discrete=discrete, min_std=0.1, act="ELU")
    embed, action = torch.randn(2, 4, 6), torch.randn(2, 4, 2)
    noise = rssm.noise(2, 4)
    post, prior = rssm.observe(embed, action, noise=noise)
    state = rssm.initial(2)
    for t in range(4):
        one, one_prior = rssm.observe(embed[:, t : t + 1], action[:, t : t + 1], state, noise[:, t : t + 1])
        for whole, part in ((post, one), (prior, one_prior)):
            for key, value in part.items():
                torch.testing.assert_close(whole[key][:, t], value[:, 0])
        state = {"stoch": one["stoch"][:, 0], "deter": one["deter"][:, 0]}
    assert rssm.feat(post).shape == (2, 4, rssm.feat_size)


def test_imagine_step_gives_the_prior_of_observe():
    rssm = RSSM(6, 2, stoch=3, deter=5, hidden=7, discrete=0, min_std=0.1, act="ELU")
    action = torch.randn(2, 2, 2)
    post, prior = rssm.observe(torch.randn(2, 2, 6), action)
    imagined = rssm.imagine_step({k: v[:, 0] for k, v in post.items()}, action[:, 1])
    torch.testing.assert_close(imagined["deter"], prior["deter"][:, 1])
    torch.testing.assert_close(imagined["mean"], prior["mean"][:, 1])


def test_categorical_latents_are_one_hot_and_have_a_gradient():
    rssm = RSSM(6, 2, stoch=3, deter=5, hidden=7, discrete=4, min_std=0.1, act="ELU")
    post, _ = rssm.observe(torch.randn(2, 4, 6), torch.randn(2, 4, 2))
    one_hot = post["stoch"].unflatten(-1, (3, 4))
    torch.testing.assert_close(one_hot.detach().sort(-1).values, torch.tensor([0.0, 0, 0, 1]).expand(2, 4, 3, 4))
    (post["stoch"] * torch.randn(12)).sum().backward()
    assert rssm.post_out.weight.grad.abs().sum() > 0


def test_truncated_normal_equals_that_of_scipy():
    mean, std = torch.tensor([0.0, 0.9, -0.5]), torch.tensor([0.1, 0.5, 2.0])
    ours = TruncatedNormal(mean, std)
    theirs = [
        scipy.stats.truncnorm((-1 - m) / s, (1 - m) / s, m, s) for m, s in zip(mean.numpy(), std.numpy(), strict=True)
    ]
    np.testing.assert_allclose(ours.entropy(), [d.entropy() for d in theirs], rtol=1e-4)
    values = torch.tensor([0.1, 0.2, -0.7])
    np.testing.assert_allclose(
        ours.log_prob(values), [d.logpdf(v) for d, v in zip(theirs, values, strict=True)], rtol=1e-4
    )
    torch.manual_seed(1)
    samples = ours.rsample(torch.Size([20_000])).double().numpy()
    assert (np.abs(samples) < 1).all()
    for column, exact in zip(samples.T, theirs, strict=True):
        assert scipy.stats.kstest(column, exact.cdf).pvalue > 1e-3


def test_truncated_normal_gradients_reach_mean_and_std():
    mean, std = torch.tensor([0.3], requires_grad=True), torch.tensor([0.4], requires_grad=True)
    torch.manual_seed(0)
    TruncatedNormal(mean, std).rsample(torch.Size([1000])).mean().backward()

    # The mean of a truncated normal is mean + std * (density(low) - density(high)) / mass; by finite differences:
    def exact(m: float, s: float) -> float:
        return scipy.stats.truncnorm.mean((-1 - m) / s, (1 - m) / s, m, s)

    assert mean.grad.item() == pytest.approx((exact(0.31, 0.4) - exact(0.29, 0.4)) / 0.02, abs=0.05)
    assert std.grad.item() == pytest.approx((exact(0.3, 0.41) - exact(0.3, 0.39)) / 0.02, abs=0.05)


def test_open_loop_predictions_have_the_shape_and_type_of_the_images():
    world = WorldModel(tiny(size="32,32"), 6)
    image, action = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8), torch.randn(2, 8, 6)
    predicted = world.open_loop({"image": image, "action": action}, context=3)
    assert (predicted.shape, predicted.dtype) == (image.shape, torch.uint8)


@pytest.mark.parametrize("scale", [1.0, 1480.0])
def test_heads_do_not_round_their_outputs_to_bfloat16(scale: float):
    """Near 1,480 bfloat16 has a step of 8; the heads' outputs keep differences much smaller than a reward."""
    torch.manual_seed(0)
    head = ScalarHead(30, layers=2, units=64, act="ELU")
    with torch.no_grad():
        head.layers[-1].bias.fill_(scale)
    feat = torch.randn(500, 30)
    exact = head(feat)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(feat)
    assert rounded.dtype == torch.float32 and len(rounded.unique()) > 400
    assert (rounded - exact).abs().max() < 0.01 and exact.std() > 0.05


def test_the_actors_parameters_are_not_rounded_to_bfloat16():
    torch.manual_seed(0)
    actor = Actor(30, 6, layers=2, units=64, act="ELU", min_std=0.1)
    feat = torch.randn(500, 30)
    with torch.autocast("cpu", torch.bfloat16):
        policy = actor(feat)
    assert policy.loc.dtype == torch.float32 and len(policy.loc.unique()) > 2900
    torch.testing.assert_close(policy.loc, actor(feat).loc, rtol=0, atol=0.01)
