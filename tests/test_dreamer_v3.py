"""The parts of DreamerV3 against r2dreamer's (github.com/NM512/r2dreamer, commit 546e4fab) and against plain formulas.

The constants are results of r2dreamer's functions, run on a CPU in float32, for inputs and weights made by `fill`.
"""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import models
from dreamer_v3.distributions import BoundedNormal, TwoHot, symexp, symexp_bins, symlog
from dreamer_v3.heads import BoundedActor, TwoHotHead
from dreamer_v3.laprop import LaProp, clip_adaptively
from dreamer_v3.layers import BlockLinear, NormActivation, ZeroLinear, initialise
from dreamer_v3.losses import ReturnRange, constrained_returns, normalised_advantage, replay_returns, separate_kl
from dreamer_v3.rssm import BlockGRU, BlockRSSM
from networks import State, UnitNormal
from ops.recurrent import mix_uniform, stack, zero_where

GAMMA = 1 - 1 / 333


def fill(*shape: int, seed: float = 0.0, scale: float = 1.0) -> Tensor:
    """Numbers that do not depend on a generator of random numbers."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(steps * 0.7 + seed) * scale).float().reshape(shape)


def equal(found: Tensor, expected: list[float], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach().flatten(), torch.tensor(expected), rtol=rtol, atol=atol)


# Two-hot


def test_two_hot_equals_r2dreamers():
    logits = fill(6, 255, seed=1.0, scale=3.0).requires_grad_()
    two_hot = TwoHot(logits, symexp_bins())
    nll = two_hot.nll(torch.tensor([-3.2, 0.0, 0.5, 1234.5, -2e5, 1e9]))
    equal(nll, [4.324729, 10.04894, 5.648696, 8.342445, 4.508591, 7.192908])
    equal(two_hot.mean, [-1850411.0, 771227.2, 2604930.0, 2465063.0, -2776618.0, -2606188.0])
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    expected = [-0.2700655, 1.236009, -0.2766339, 0.3718446, -0.2786658, -0.00756713]
    equal((gradient * fill(6, 255, seed=0.3)).sum(-1), expected)
    expected = [-485165200.0, -414473600.0, -69.24355, -0.1705577, 0.0, 0.1705577, 98326.91, 485165200.0]
    equal(symexp_bins()[[0, 1, 100, 126, 127, 128, 200, 254]], expected)


def test_two_hot_code_interpolates_between_the_neighbours():
    """By hand: the expected value of the code that a loss refers to is the target, also at bins and between them."""
    bins = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])
    for target in (-4.0, -2.0, -0.25, 0.0, 1.0, 3.9, 4.0):
        logits = torch.zeros(5, requires_grad=True)
        (gradient,) = torch.autograd.grad(TwoHot(logits, bins).nll(torch.tensor(target)), logits)
        code = 1 / 5 - gradient  # the gradient of a cross-entropy is softmax - code
        assert (code * bins).sum().item() == pytest.approx(target, abs=1e-5) and code.min() > -1e-6
        assert (code > 1e-6).sum() <= 2 and code.sum().item() == pytest.approx(1.0)


def test_symlog_and_its_inverse():
    x = torch.tensor([-1e6, -1.0, 0.0, 1e-3, 5e4])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-4, atol=1e-6)
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1.0)


def test_a_new_two_hot_head_predicts_exactly_zero():
    torch.manual_seed(0)
    head = TwoHotHead(7, layers=2, units=8, act="SiLU", norm=NormActivation)
    assert (head(torch.randn(20, 7)) == 0).all()
    initialise(head)
    assert (head(torch.randn(20, 7)) == 0).all() and head.layers[0].weight.std() > 0
    assert "bins" not in head.state_dict()


# World model


def test_separate_kl_equals_r2dreamers_kl_of_mixed_distributions():
    rssm = BlockRSSM(2, 2, stoch=3, deter=4, hidden=4, discrete=5, min_std=0.1, act="SiLU", blocks=2, unimix=0.01)
    post, prior = fill(4, 3, 5, seed=0.1, scale=2.0).requires_grad_(), fill(4, 3, 5, seed=2.0, scale=0.5)
    prior.requires_grad_()
    states = [rssm.latent.parameters(logit.flatten(-2)) for logit in (post, prior)]
    equal(rssm.kl(*states).clamp(min=1.0), [1.0, 1.982892, 2.114172, 1.0])
    loss, plain = separate_kl(rssm, *states, 0.1, 1.0)
    equal(loss, [1.676693])
    assert plain.item() == pytest.approx(rssm.kl(*states).mean().item())
    gradients = torch.autograd.grad(loss, [post, prior])
    equal(torch.stack([(g * fill(*g.shape, seed=0.3)).sum() for g in gradients]), [0.04766925, -0.931991])


def test_unimix_is_a_share_of_the_uniform_distribution():
    probs = mix_uniform(torch.tensor([0.0, -100.0, -100.0, -100.0]), 0.01).exp()
    torch.testing.assert_close(probs, torch.tensor([0.9925, 0.0025, 0.0025, 0.0025]))


def filled_gru() -> tuple[BlockGRU, list[list[nn.Parameter]]]:
    """A GRU with the weights of r2dreamer's `Deter`, filled in its order, and for each of those the parts here."""
    cell = BlockGRU(12, 3, 16, 8, blocks=4, act="SiLU")
    inputs = [p for name in ("deter_in", "stoch_in", "action_in") for p in getattr(cell, name).parameters()]
    parts = [*([p] for p in inputs), [cell.recur.weight, cell.mix.weight], [cell.mix.bias], [cell.after.weight]]
    parts += [[cell.gates.weight], [cell.gates.bias]]
    with torch.no_grad():
        for i, part in enumerate(parts):
            if len(part) == 2:  # (O / G, I / G, G), for the inputs [h_g, x]
                weight = fill(4, 28, 4, seed=i, scale=0.4)
                part[0].copy_(weight[:, :4].permute(2, 1, 0))
                part[1].copy_(weight[:, 4:].permute(2, 0, 1).reshape(16, 24))
            elif part[0].dim() == 3:
                part[0].copy_(fill(12, 4, 4, seed=i, scale=0.4).permute(2, 1, 0))
            else:
                part[0].copy_(fill(*part[0].shape, seed=i, scale=0.4))
    return cell, parts


def test_block_gru_equals_r2dreamers():
    cell, parts = filled_gru()
    stoch, deter, action = (fill(2, k, seed=s).requires_grad_() for k, s in ((12, 0.2), (16, 0.5), (3, 0.9)))
    h = cell(stoch, deter, cell.actions(action))
    expected = [0.3488305, -0.5329946, 0.7620069, -0.6414309, -0.5601776, 0.3051108, -0.06212043, -0.1959767]
    equal(h[:, ::5], expected)
    leaves = [stoch, deter, action, *(p for part in parts for p in part)]
    of_inputs, of_weights = (g := torch.autograd.grad((h * fill(2, 16, seed=0.3)).sum(), leaves))[:3], list(g[3:])
    expected = [0.01256673, 11.20115, -0.01012688]
    equal(torch.stack([(g * fill(*g.shape, seed=0.4)).sum() for g in of_inputs]), expected)
    norms = [torch.stack([of_weights.pop(0).norm() for _ in part]).norm() for part in parts]
    expected = [0.03741204, 0.009822381, 0.1242294, 0.06142277, 0.02190355, 0.162369, 0.09058175, 0.0522266]
    expected += [0.1924798, 0.4237525, 0.1985066, 0.3461472, 0.3115116, 1.086072]
    equal(torch.stack(norms), expected)


def test_block_gru_equals_one_with_dense_block_diagonal_weights():
    torch.manual_seed(0)
    blocks, deter, hidden = 4, 16, 8
    cell = BlockGRU(12, 3, deter, hidden, blocks, "SiLU")
    z, h, a = torch.randn(5, 12), torch.randn(5, deter), torch.randn(5, 3)
    silu, size = torch.nn.functional.silu, deter // blocks

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * weight

    x = []
    for value, (linear, rms) in zip((h, z, a), (cell.deter_in, cell.stoch_in, cell.action_in), strict=True):
        x.append(silu(norm(value @ linear.weight.t() + linear.bias, rms.weight)))
    dense = torch.cat([torch.block_diag(*(w.t() for w in cell.recur.weight)), cell.mix.weight], 1)
    mixed = silu(norm(torch.cat([h, *x], -1) @ dense.t() + cell.mix.bias, cell.after.weight))
    gates = mixed @ torch.block_diag(*(w.t() for w in cell.gates.weight)).t() + cell.gates.bias
    expected = torch.empty(5, deter)
    for g in range(blocks):
        reset, cand, update = gates[:, 3 * size * g : 3 * size * (g + 1)].split(size, -1)
        update, own = torch.sigmoid(update - 1), slice(size * g, size * (g + 1))
        expected[:, own] = update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * h[:, own]
    torch.testing.assert_close(cell(z, h, cell.actions(a)), expected)


def test_block_rssm_begins_anew_at_the_first_row_of_an_episode():
    torch.manual_seed(0)
    rssm = BlockRSSM(6, 2, stoch=3, deter=8, hidden=7, discrete=4, min_std=0.1, act="SiLU", blocks=2, unimix=0.01)
    embed, action, noise = torch.randn(2, 4, 6), torch.randn(2, 4, 2), rssm.noise(2, 4)
    first = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    post, prior = rssm.observe(embed, action, noise=noise, first=first)
    later = torch.cat([torch.zeros(2, 1, 2), action[:, 3:]], 1)
    alone, alone_prior = rssm.observe(embed[:, 2:], later, noise=noise[:, 2:])
    for whole, part in ((post, alone), (prior, alone_prior)):
        for key, value in part.items():
            torch.testing.assert_close(whole[key][0, 2:], value[0])
        assert not torch.allclose(whole["deter"][1, 2:], part["deter"][1])
    one_hot = post["stoch"].unflatten(-1, (3, 4))
    assert ((one_hot == 0) | (one_hot == 1)).all() and (one_hot.sum(-1) == 1).all()
    assert (post["logit"].exp().amin() >= 0.01 / 4 - 1e-6) and torch.allclose(
        post["logit"].exp().sum(-1), torch.ones(())
    )


def test_initial_weights_have_the_variance_of_their_inputs():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(400, 300), nn.Conv2d(16, 64, 5), BlockLinear(800, 800, 8), ZeroLinear(9, 9)])
    initialise(layers)
    for layer, inputs in zip(layers, (400, 16 * 25, 800), strict=False):
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.02)
        assert layer.weight.abs().max() < 2.3 * inputs**-0.5 and (layer.bias == 0).all()
    assert (layers[3].weight == 0).all()


# Behavior


def test_return_range_equals_r2dreamers():
    returns, scales = ReturnRange(), []
    for i in range(3):
        returns.update(fill(7, 11, seed=i, scale=500.0))
        scales.append(returns.scale.clone())
    equal(torch.stack(scales), [9.817404, 19.56334, 29.21037])
    equal(returns.ends, [-14.5766, 14.63376])
    assert ReturnRange().scale == 1


def test_bounded_normal_equals_r2dreamers():
    actor = BoundedActor(2, 2, layers=0, units=1, act="SiLU", min_std=0.1)
    raw = fill(3, 4, seed=0.6, scale=2.0)
    actor.layers = nn.Identity()
    policy = actor(raw)
    equal(policy.log_prob(fill(3, 2, seed=1.1, scale=1.5)).sum(-1), [-2.051454, -4.696545, -4.967002])
    equal(policy.entropy().sum(-1), [2.768116, 1.855752, 2.800683])
    equal(policy.mode, [0.8107744, 0.9584997, -0.470788, -0.9269893, -0.1646658, 0.8200203])


def test_actions_outside_the_bounds_are_clipped_and_keep_a_gradient():
    action = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 1.25], requires_grad=True)
    executed = BoundedNormal.executed(action)
    assert torch.equal(executed, action.clamp(-1, 1))
    (gradient,) = torch.autograd.grad(executed.sum(), action)
    assert torch.equal(gradient, torch.tensor([1 / 3, 1, 1, 1, 1, 0.8]))


def test_samples_of_the_bounded_normal_are_clipped_only_when_they_are_executed():
    policy = BoundedNormal(torch.tensor([0.9]), torch.tensor([1.0]))
    sample = policy.icdf(torch.tensor([0.99]))
    assert sample.item() == pytest.approx(0.9 + 2.32635, rel=1e-4) and policy.executed(sample) == 1
    expected = torch.distributions.Normal(0.9, 1.0)
    torch.testing.assert_close(policy.log_prob(sample), expected.log_prob(sample))
    torch.testing.assert_close(policy.entropy(), expected.entropy()[None])


def test_weighted_advantage_equals_r2dreamers():
    """There, values begin with the next reward. Here v(s_t) includes r_t: v_t = r_t + gamma_t v'_t."""
    reward, later = fill(6, 3, seed=0.2), fill(6, 3, seed=0.7, scale=2.0)
    discount = GAMMA * torch.sigmoid(fill(6, 3, seed=1.3, scale=2.0) + 2)
    value = reward + discount * later
    returns = models.lambda_return(reward[:-1], value[1:], discount[:-1], 0.95)
    found = normalised_advantage(returns, value[:-1], torch.tensor(2.5))
    weight = torch.cat([torch.ones(1, 3), discount[:-1]]).cumprod(0)
    expected = [-0.6188456, -0.941976, -0.8868168, -0.652352, -0.07045795, 0.3083434, 0.2782699, 0.2421885]
    expected += [0.06422452, -0.4510944, -0.5723282, -0.4213101, -0.4614906, -0.1407749, 0.1169677]
    equal(weight[:5] * found, expected)


def test_replay_returns_equal_r2dreamers():
    """As above. Row 2 of the first sequence ends an episode by a time limit, row 3 of the second by a termination."""
    reward, later = fill(2, 6, seed=0.1), fill(2, 6, seed=0.8, scale=3.0)
    first, discount = torch.zeros(2, 6, dtype=torch.bool), torch.full((2, 6), GAMMA)
    first[0, 3] = first[1, 4] = True
    discount[1, 3] = 0
    imagined = reward + discount * later
    returns, weight = replay_returns(reward, discount, imagined, first, 0.95)
    expected = [4.101702, 3.4157, -1.847019, -2.841475, -3.182764, -1.441796, -0.4228664, 0.1165492, 4.086109, 3.386811]
    expected = reward[:, :-1] + discount[:, :-1] * torch.tensor(expected).view(2, 5)
    learned = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0]])
    assert torch.equal(weight, learned.float())
    torch.testing.assert_close(
        returns[:, :-1][learned[:, :-1] > 0], expected[learned[:, :-1] > 0], rtol=1e-4, atol=1e-5
    )
    assert returns[0, 2] == imagined[0, 2] and returns[1, 3] == reward[1, 3]


def test_a_constrained_return_has_the_gradient_of_equation_6():
    """With a squared error, lowering the target by alpha where v >= the bound is adding alpha * max(v, bound)."""
    value = torch.tensor([1.0, 2.0, 3.0, 5.0], requires_grad=True)
    returns, bound, alpha = torch.tensor([2.0, 2.0, 1.0, 9.0]), torch.tensor([0.5, 2.5, 3.0, 4.0]), 0.3
    added = models.scalar_nll(value, returns) + alpha * models.value_constraint(value, bound)
    shifted = UnitNormal(value).nll(constrained_returns(returns, value, bound, alpha))
    gradients = [torch.autograd.grad(loss.sum(), value)[0] for loss in (added, shifted)]
    # At v = bound, autograd's maximum has half a gradient.
    torch.testing.assert_close(gradients[0][[0, 1, 3]], gradients[1][[0, 1, 3]])


# Optimiser


def test_laprop_and_adaptive_clipping_equal_r2dreamers():
    parameters = [nn.Parameter(fill(3, 4, seed=0.1, scale=0.02)), nn.Parameter(fill(5, seed=0.5, scale=2.0))]
    optimizer = LaProp(parameters, 0.01, eps=1e-20, warm_up=0)
    for i in range(4):
        for j, parameter in enumerate(parameters):
            parameter.grad = fill(*parameter.shape, seed=i + j, scale=3.0)
        clip_adaptively(parameters, 0.3)
        optimizer.step()
    expected = [-0.02342608, -0.01421146, 0.0009008133, 0.004858386, 0.006267075, 0.02747179, 0.004734652, -0.003944979]
    expected += [-0.005029788, -0.04272048, -0.01367247, 0.001104143, 0.929665, 1.847076, 1.88997, 1.035936, -0.2805174]
    equal(torch.cat([p.flatten() for p in parameters]), expected, atol=1e-6)


def test_laprop_with_warm_up_equals_a_loop():
    parameter, other = nn.Parameter(fill(4, seed=0.2)), nn.Parameter(torch.ones(2))  # the second has no gradient
    optimizer = LaProp([parameter, other], 0.1, eps=1e-8, warm_up=3, weight_decay=0.01)
    expected, m, v = parameter.detach().clone(), torch.zeros(4), torch.zeros(4)
    for t in range(1, 6):
        gradient = fill(4, seed=t)
        parameter.grad = gradient.clone()
        optimizer.step()
        v = 0.999 * v + 0.001 * gradient**2
        m = 0.9 * m + 0.1 * gradient / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        rate = 0.1 * min(1, t / 3)
        expected = expected * (1 - 0.01 * rate) - rate * m / (1 - 0.9**t)
    torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(other, torch.ones(2))


def test_adaptive_clipping_by_hand():
    parameters = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([0.0, 1.0]), torch.tensor([0.6, 0.8])
    clip_adaptively(parameters, 0.1)  # at most 0.5 and, for a norm of 0, 1e-4
    equal(parameters[0].grad, [0.0, 0.5])
    equal(parameters[1].grad, [0.6e-4, 0.8e-4], atol=1e-9)
    assert parameters[2].grad is None


def plain_posterior(rssm: BlockRSSM, embed: Tensor, action: Tensor, noise: Tensor, first: Tensor | None) -> State:
    """`BlockRSSM.posterior` by modules and autograd alone."""
    actions, embedded = rssm.cell.actions(action), rssm.post_embed(embed)
    pair, steps = tuple(rssm.initial(len(embed))[key] for key in ("stoch", "deter")), []
    for t in range(embed.shape[1]):
        z, h = zero_where(first, t, pair)
        h = rssm.cell(z, h, actions[:, t])
        parameters = rssm.latent.parameters(rssm.post_out(rssm.post_after(rssm.post_deter(h) + embedded[:, t])))
        pair = rssm.draw(parameters, noise[:, t]), h
        steps.append({"deter": h, "stoch": pair[0], **parameters})
    return {key: stack([step[key] for step in steps]) for key in steps[0]}


@pytest.mark.parametrize("discrete", [4, 0])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_scan_has_the_gradients_of_autograd(precision: torch.dtype, discrete: int):
    torch.manual_seed(0)
    sizes = {"stoch": 3, "deter": 8, "hidden": 7, "min_std": 0.1, "act": "SiLU", "blocks": 2, "unimix": 0.01}
    rssm = BlockRSSM(6, 2, discrete=discrete, **sizes)
    embed, action, noise = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 2), rssm.noise(2, 4)
    first = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    action = action.masked_fill(first.unsqueeze(-1), 0.0)
    leaves, found = [embed, *(p for name, p in rssm.named_parameters() if "prior" not in name)], []
    for posterior in (rssm.posterior, partial(plain_posterior, rssm)):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            post = posterior(embed, action, noise=noise, first=first)
        logit = post["logit"] if discrete else post["std"]
        loss = (post["deter"] * fill(2, 4, 8)).sum() + logit.square().sum() + post["stoch"][..., 0].sum()
        torch.autograd.grad(loss, leaves, retain_graph=True)
        found.append((post, torch.autograd.grad(loss, leaves)))
    close = {"rtol": 1e-4, "atol": 1e-5} if precision == torch.float32 else {"rtol": 0.1, "atol": 0.05}
    torch.testing.assert_close(found[0], found[1], check_dtype=False, **close)
    assert all((g != 0).any() for g in found[0][1])
