"""Every loss compared with values computed by hand, and which of its inputs get a gradient."""

import math

import pytest
import torch
from conftest import tiny

import models
from networks import RSSM


def test_lambda_return_equals_a_plain_loop_and_is_in_time_order():
    torch.manual_seed(0)
    reward, value, discount = torch.randn(7, 3), torch.randn(8, 3), torch.rand(7, 3)
    expected = torch.zeros(7, 3)
    for n in range(3):
        following = value[7, n]
        for t in range(6, -1, -1):
            following = reward[t, n] + discount[t, n] * (0.05 * value[t + 1, n] + 0.95 * following)
            expected[t, n] = following
    torch.testing.assert_close(models.lambda_return(reward, value[1:], discount, 0.95), expected)


def test_lambda_return_by_hand():
    one = torch.ones(3)
    # V_2 = 3 + 0.5 * 40; V_1 = 2 + 0.5 * (0.5 * 30 + 0.5 * V_2); V_0 = 1 + 0.5 * (0.5 * 20 + 0.5 * V_1)
    returns = models.lambda_return(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([20.0, 30.0, 40.0]), one / 2, 0.5)
    assert returns.tolist() == [1 + 5 + (2 + 7.5 + 23 / 4) / 4, 2 + 7.5 + 23 / 4, 23]


def test_image_nll_sums_over_pixels():
    image = torch.full((1, 1, 2, 2, 3), 255, dtype=torch.uint8)  # 0.5 in the model's scale
    mean = torch.full((1, 1, 2, 2, 3), 0.25)
    assert models.image_nll(mean, image).item() == 12 * 0.5 * 0.25**2


def test_scalar_nll():
    assert models.scalar_nll(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).tolist() == [2.0, 0.0]


def gaussian_rssm() -> RSSM:
    return RSSM(4, 2, stoch=1, deter=3, hidden=3, discrete=0, min_std=0.1, act="ELU")


def test_balanced_kl_of_two_gaussians_and_its_gradients_by_hand():
    def state(mean: float) -> dict[str, torch.Tensor]:
        return {"mean": torch.full((2, 3, 1), mean, requires_grad=True), "std": torch.ones(2, 3, 1)}

    post, prior = state(2.0), state(0.0)
    loss, plain = models.balanced_kl(gaussian_rssm(), post, prior, balance=0.8, free_nats=1.0)
    assert loss.item() == pytest.approx(2.0)  # 0.5 * (2 - 0)^2, in both directions
    assert plain.item() == pytest.approx(2.0)
    loss.backward()
    assert prior["mean"].grad.sum().item() == pytest.approx(0.8 * -2.0)
    assert post["mean"].grad.sum().item() == pytest.approx(0.2 * 2.0)


def test_balanced_kl_below_the_free_nats_has_no_gradient():
    post = {"mean": torch.full((1, 1, 1), 1.0, requires_grad=True), "std": torch.ones(1, 1, 1)}
    prior = {"mean": torch.zeros(1, 1, 1), "std": torch.ones(1, 1, 1)}
    loss, plain = models.balanced_kl(gaussian_rssm(), post, prior, balance=0.8, free_nats=1.0)
    loss.backward()
    assert (loss.item(), plain.item()) == pytest.approx((1.0, 0.5))
    assert post["mean"].grad.item() == 0


def test_balanced_kl_of_categorical_latents_sums_over_the_variables():
    rssm = RSSM(4, 2, stoch=3, deter=3, hidden=3, discrete=2, min_std=0.1, act="ELU")
    post = {"logit": torch.tensor([0.9, 0.1]).log().expand(1, 1, 3, 2)}
    prior = {"logit": torch.tensor([0.5, 0.5]).log().expand(1, 1, 3, 2)}
    loss, _ = models.balanced_kl(rssm, post, prior, balance=0.5, free_nats=0.0)
    assert loss.item() == pytest.approx(3 * (0.9 * math.log(1.8) + 0.1 * math.log(0.2)), rel=1e-5)


def test_state_alignment_by_hand():
    source = torch.tensor([0.0, math.log(3.0)])  # softmax: 1/4, 3/4
    target = torch.tensor([0.0, 0.0])  # softmax: 1/2, 1/2
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert models.state_alignment(source.expand(2, 5, 2), target.expand(2, 5, 2)).item() == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_state_alignment_does_not_grow_with_the_sequence(steps: int):
    source, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 1.0, 2.0])
    one = models.state_alignment(source.expand(1, 1, 3), target.expand(1, 1, 3))
    many = models.state_alignment(source.expand(4, steps, 3), target.expand(4, steps, 3))
    torch.testing.assert_close(many, one)


def test_state_alignment_gives_the_source_no_gradient():
    source = torch.randn(2, 3, 4, requires_grad=True)
    target = torch.randn(2, 3, 4, requires_grad=True)
    models.state_alignment(source, target).backward()
    assert source.grad is None
    assert target.grad.abs().sum() > 0


def test_distribution_alignment_compares_mean_softmaxes():
    source = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]], requires_grad=True)  # mean of 1/2, 1/2 and 1/4, 3/4
    target = torch.tensor([[[0.0, 0.0]]])
    expected = 0.375 * math.log(0.375 / 0.5) + 0.625 * math.log(0.625 / 0.5)
    loss = models.distribution_alignment(source, target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert not loss.requires_grad


def test_relabelled_reward_and_reward_alignment_by_hand():
    predicted = torch.tensor([4.0], requires_grad=True)
    relabelled = models.relabel_reward(predicted, torch.tensor([2.0]), k=0.3)
    assert relabelled.item() == pytest.approx(0.7 * 4 + 0.3 * 2)
    assert not relabelled.requires_grad
    assert models.reward_alignment(torch.tensor(2.0), torch.tensor(10.0), eta=0.75).item() == pytest.approx(4.0)


def test_value_constraint_has_no_gradient_where_the_source_critic_is_larger():
    value = torch.tensor([1.0, 5.0], requires_grad=True)
    source = torch.tensor([3.0, 3.0], requires_grad=True)
    constraint = models.value_constraint(value, models.value_bound(source, "minmax"))
    assert constraint.tolist() == [3.0, 5.0]
    constraint.sum().backward()
    assert value.grad.tolist() == [0.0, 1.0]
    assert source.grad is None


def test_value_constraint_without_max_has_a_gradient_everywhere():
    value = torch.tensor([1.0, 5.0], requires_grad=True)
    models.value_constraint(value, models.value_bound(torch.tensor([3.0, 3.0]), "brute")).sum().backward()
    assert value.grad.tolist() == [1.0, 1.0]


def test_the_constant_value_constraint_compares_with_the_mean_source_value():
    value = torch.tensor([1.0, 4.0, 5.0], requires_grad=True)
    constraint = models.value_constraint(value, models.value_bound(torch.tensor([0.0, 9.0, 0.0]), "constant"))
    assert constraint.tolist() == [3.0, 4.0, 5.0]
    constraint.sum().backward()
    assert value.grad.tolist() == [0.0, 1.0, 1.0]


def test_alpha_may_be_a_share_of_the_mean_source_value():
    source_value = torch.tensor([-6.0, 2.0])
    assert models.alpha(source_value, tiny(value_constraint_scale=0.5)) == 0.5
    relative = tiny(value_constraint_scale=0.5, value_constraint_relative=True)
    assert models.alpha(source_value, relative).item() == 1.0


def test_weighted_sum_raises_key_error_if_losses_and_scales_differ():
    losses = {"image": torch.tensor(2.0), "kl": torch.tensor(3.0)}
    assert models.weighted_sum(losses, {"image": 1.0, "kl": 0.5}).item() == 3.5
    with pytest.raises(KeyError, match="rewrd"):
        models.weighted_sum(losses, {"image": 1.0, "kl": 0.5, "rewrd": 1.0})


def test_critic_loss_by_hand():
    """Eq. 6: weight * (1/2 (v - V)^2 + alpha * constraint), mean over states."""
    behavior = models.ActorCritic(tiny(), feat=3, action_dim=2)
    with torch.no_grad():
        behavior.critic.layers[-1].weight.zero_()
        behavior.critic.layers[-1].bias.fill_(2.0)
    feat, returns, weight = torch.randn(2, 1, 3), torch.tensor([[1.0], [4.0]]), torch.tensor([[1.0], [0.5]])
    plain, nothing = behavior.critic_loss(behavior.critic.prediction(feat), returns, weight, None, "minmax", alpha=3.0)
    assert plain.item() == pytest.approx((1 * 0.5 + 0.5 * 2.0) / 2)
    assert nothing == {}
    source_value = torch.tensor([[1.5], [7.0]])  # the constraint has a gradient at the first state
    constrained, metrics = behavior.critic_loss(
        behavior.critic.prediction(feat), returns, weight, source_value, "minmax", alpha=3.0
    )
    assert constrained.item() == pytest.approx((1 * (0.5 + 3 * 2) + 0.5 * (2.0 + 3 * 7)) / 2)
    assert metrics["value_constraint"].item() == pytest.approx(4.5)
    assert metrics["constraint_active"].item() == pytest.approx(0.5)
    brute, metrics = behavior.critic_loss(
        behavior.critic.prediction(feat), returns, weight, source_value, "brute", alpha=3.0
    )
    assert brute.item() == pytest.approx((1 * (0.5 + 3 * 2) + 0.5 * (2.0 + 3 * 2)) / 2)
    assert metrics["constraint_active"].item() == 1


@pytest.mark.parametrize(("grad", "rho"), [("dynamics", 1.0), ("reinforce", 0.0), ("both", 0.25)])
def test_actor_loss_by_hand(grad: str, rho: float):
    """Eq. 7 and 10: action t affects the return of state t + 1; the last action affects none."""
    config = tiny(actor_grad=grad, actor_grad_mix=0.25, actor_entropy=0.1)
    behavior = models.ActorCritic(config, feat=3, action_dim=2)
    imagined = models.ImaginedTrajectory(
        torch.zeros(3, 1, 3), torch.zeros(2, 1, 1), torch.tensor([[-1.0], [-2.0]]), torch.tensor([[0.5], [0.7]])
    )
    returns, baseline, weight = (
        torch.tensor([[9.0], [4.0]]),
        torch.tensor([[1.0], [8.0]]),
        torch.tensor([[0.5], [0.2]]),
    )
    loss = behavior.actor_loss(imagined, returns, baseline, weight, config)
    expected = 0.5 * (0.1 * 0.5 + rho * 4.0 + (1 - rho) * -1.0 * (4.0 - 1.0))
    assert loss.item() == pytest.approx(-expected)
