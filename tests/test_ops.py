"""ops/ against plain torch operations: values, gradients, and the frequencies of samples."""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from config import SETTINGS
from networks import RSSM
from ops import recurrent
from ops.convolution import conv2d, conv_transpose2d

SIZES = {"stoch": 3, "deter": 5, "hidden": 7, "min_std": 0.1}


def plain_scan(
    rssm: RSSM, embed: Tensor, action: Tensor, noise: Tensor, sampled: Tensor, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(deter, stat) of `RSSM.posterior` by torch's own operations, given the samples that it drew (B, T, S * K)."""
    batch = len(embed)
    keep = torch.ones(batch, embed.shape[1], 1) if first is None else 1 - first.float().unsqueeze(-1)
    stoch, deter = torch.zeros(batch, rssm.stoch_size), torch.zeros(batch, rssm.deter)
    act, deters, stats = rssm.act.function, [], []
    for t in range(embed.shape[1]):
        stoch, deter = keep[:, t] * stoch, keep[:, t] * deter
        x = act(rssm.action_in(keep[:, t] * action[:, t]) + rssm.stoch_in(stoch))
        reset, cand, update = rssm.cell.norm(rssm.cell.gates(torch.cat([x, deter], -1))).chunk(3, -1)
        update = torch.sigmoid(update - 1)
        deter = update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * deter
        stat = rssm.post_out(act(rssm.post_embed(embed[:, t]) + rssm.post_deter(deter)))
        if rssm.discrete:
            probs = stat.unflatten(-1, (rssm.stoch, rssm.discrete)).softmax(-1).flatten(-2)
            stoch = sampled[:, t] + probs - probs.detach()
        else:
            mean, std = stat.chunk(2, -1)
            stoch = mean + (2 * torch.sigmoid(std / 2) + rssm.latent.min_std) * noise[:, t]
        deters.append(deter), stats.append(stat)
    return torch.stack(deters, 1), torch.stack(stats, 1)


BORDERS = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]]).bool()  # first rows of episodes, in two sequences of four rows


@pytest.mark.parametrize("act", recurrent.ACTIVATIONS)
@pytest.mark.parametrize("discrete", [0, 4])
@pytest.mark.parametrize("first", [None, BORDERS], ids=["one episode", "several"])
def test_scan_has_the_values_and_gradients_of_plain_torch(act: str, discrete: int, first: Tensor | None):
    torch.manual_seed(0)
    rssm = RSSM(6, 2, discrete=discrete, act=act, **SIZES)
    embed, action = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 2, requires_grad=True)
    noise = rssm.noise(2, 4)
    post = rssm.posterior(embed, action, noise=noise, first=first)
    deter, stat = plain_scan(rssm, embed, action, noise, post["stoch"].detach(), first)
    parameters = rssm.latent.parameters(stat)
    torch.testing.assert_close(post["deter"], deter)
    for key, value in parameters.items():
        torch.testing.assert_close(post[key], value)
    mix = torch.randn_like(deter)
    leaves = [embed, action, *rssm.parameters()]

    def gradients(deter: Tensor, latent: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        loss = (deter * mix).sum() + sum(latent[key].square().sum() for key in parameters)
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    found, expected = gradients(post["deter"], post), gradients(deter, parameters)
    assert sum(g is not None for g in found) == 13  # the two inputs, and all weights but the prior's four
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("discrete", [0, 4])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_states_after_a_border_do_not_depend_on_rows_before_it(discrete: int, precision: torch.dtype):
    """They are those of a sequence that begins there, and their gradients reach no earlier row."""
    torch.manual_seed(0)
    rssm = RSSM(6, 2, discrete=discrete, act="ELU", **SIZES)
    embed, action = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 2, requires_grad=True)
    noise = rssm.noise(2, 4)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        post, prior = rssm.observe(embed, action, noise=noise, first=BORDERS)
        alone, alone_prior = rssm.observe(
            embed[1:, 2:], torch.cat([torch.zeros(1, 1, 2), action[1:, 3:]], 1), noise=noise[1:, 2:]
        )
        assert post["stoch"].dtype == alone["stoch"].dtype
    for whole, part in ((post, alone), (prior, alone_prior)):
        for key, value in part.items():
            torch.testing.assert_close(whole[key][1:, 2:], value)
    loss = sum(value[1, 2:].float().square().sum() for state in (post, prior) for value in state.values())
    of_embed, of_action = torch.autograd.grad(loss, [embed, action])
    assert (of_embed[1, 2:] != 0).all() and (of_action[1, 3] != 0).all()
    assert (of_embed[0] == 0).all() and (of_embed[1, :2] == 0).all() and (of_action[1, :3] == 0).all()


@pytest.mark.filterwarnings("ignore:Input")  # gradcheck prefers float64; the layer norm and the latent are float32
@pytest.mark.parametrize("discrete", [0, 4])
def test_scan_has_the_gradients_of_its_first_state(discrete: int):
    torch.manual_seed(0)
    rssm = RSSM(6, 2, discrete=discrete, act="ELU", **SIZES)
    embed, action, noise = torch.randn(2, 1, 6), torch.randn(2, 1, 2), rssm.noise(2, 1)
    start = torch.rand(2, rssm.stoch_size, requires_grad=True), torch.rand(2, 5, requires_grad=True)

    def deter(stoch: Tensor, deter: Tensor) -> Tensor:
        return rssm.posterior(embed, action, {"stoch": stoch, "deter": deter}, noise)["deter"]

    assert torch.autograd.gradcheck(deter, start, eps=1e-2, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_categorical_samples_have_the_frequencies_of_their_probabilities(dtype: torch.dtype):
    torch.manual_seed(0)
    latent, probs, count = recurrent.Latent(2, 5, 0.1), torch.tensor([0.1, 0.0, 0.6, 0.05, 0.25]), 50_000
    stat = probs.log().clamp(min=-1e9).repeat(2).expand(count, -1)
    sample, _ = latent.sample(stat, torch.rand(count, 2), dtype)
    one_hot = sample.view(count, 2, 5).float()
    assert sample.dtype == dtype and (one_hot.sum(-1) == 1).all() and one_hot.max() == 1
    counts = one_hot.sum(0).numpy()
    assert (counts[:, 1] == 0).all()
    kept = [0, 2, 3, 4]
    for found in counts:
        assert scipy.stats.chisquare(found[kept], count * probs[kept].numpy()).pvalue > 1e-3
    both = torch.einsum("na,nb->ab", one_hot[:, 0], one_hot[:, 1])[kept][:, kept]  # the two variables are independent
    assert scipy.stats.chi2_contingency(both.numpy()).pvalue > 1e-3


def test_a_uniform_number_above_the_last_sum_selects_the_last_class():
    latent = recurrent.Latent(1, 3, 0.1)
    sample, _ = latent.sample(torch.zeros(1, 3), torch.tensor([[1.0]]), torch.float32)
    assert sample.tolist() == [[0, 0, 1]]


def test_gaussian_samples_are_drawn_from_their_distribution():
    torch.manual_seed(0)
    latent, raw = recurrent.Latent(1, 0, 0.1), torch.tensor([2.0, 0.3])
    sample, std = latent.sample(raw.expand(20_000, 2), torch.randn(20_000, 1), torch.bfloat16)
    assert scipy.stats.kstest(sample[:, 0].numpy(), scipy.stats.norm(2.0, std[0].item()).cdf).pvalue > 1e-3
    assert sample.dtype == torch.float32


def test_straight_through_gradients_equal_those_of_torch():
    rssm = RSSM(6, 2, discrete=4, act="ELU", **SIZES)
    logit, weight = torch.randn(2, 12, requires_grad=True), torch.randn(2, 12)
    state = {"logit": logit.unflatten(-1, (3, 4))}
    (theirs,) = torch.autograd.grad((rssm.dist(state).rsample().flatten(-2) * weight).sum(), logit)
    _, probs = rssm.latent.sample(logit.detach(), torch.rand(2, 3), torch.float32)
    torch.testing.assert_close(rssm.latent.sample_backward(weight, probs, torch.empty(0)), theirs)


def check_convolution(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    mix = torch.randn_like(theirs)
    found, expected = (torch.autograd.grad((y * mix).sum(), leaves) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 13])
def test_convolutions_equal_those_of_torch(size: int):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, size, size, requires_grad=True), torch.randn(6, 5, 4, 4, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    check_convolution(conv2d(x, weight, bias), F.conv2d(x, weight, bias, stride=2), [x, weight, bias])


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kernel", [2, 4, 5, 6])
@pytest.mark.parametrize("out", [1, 3, 4, 6])
def test_transposed_convolutions_equal_those_of_torch(size: int, kernel: int, out: int):
    torch.manual_seed(0)
    x, weight = (
        torch.randn(2, 5, size, size, requires_grad=True),
        torch.randn(5, out, kernel, kernel, requires_grad=True),
    )
    bias = torch.randn(out, requires_grad=True)
    theirs = F.conv_transpose2d(x, weight, bias, stride=2)
    check_convolution(conv_transpose2d(x, weight, bias), theirs, [x, weight, bias])


def test_every_activation_that_the_settings_allow_has_a_gradient():
    assert set(SETTINGS["act"].choices()) == set(recurrent.ACTIVATIONS)
