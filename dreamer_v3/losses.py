"""Losses of DreamerV3 as pure functions, and the range of its returns.

Symbols: B sequences, T steps, H imagined steps, N start states. Values have this project's convention: v(s_t) includes
r_t, the reward on arrival in s_t (`models.ImaginedTrajectory`); DreamerV3's begin with r_{t+1}.
"""

import torch
from torch import Tensor, nn

from networks import State, StateSpaceModel


def separate_kl(
    rssm: StateSpaceModel, post: State, prior: State, representation: float, free_nats: float
) -> tuple[Tensor, Tensor]:
    """ "World model learning": max(f, KL[sg(q) || p]) + representation * max(f, KL[q || sg(p)]), f the free nats.

    Each state's KL is clipped by itself; `models.balanced_kl` clips the mean. Means over B and T. Returns (loss, the
    unclipped mean KL), both scalars.
    """
    detached = [{k: v.detach() for k, v in state.items()} for state in (post, prior)]
    dynamics, to_post = rssm.kl(detached[0], prior), rssm.kl(post, detached[1])
    loss = dynamics.clamp(min=free_nats).mean() + representation * to_post.clamp(min=free_nats).mean()
    return loss, dynamics.detach().mean()


class ReturnRange(nn.Module):
    """S of "Actor learning": the range of the returns from their 5th to their 95th percentile, a moving average.

    `scale` divides returns. It is at least 1, so that small returns, which may be noise, are not enlarged.
    """

    RATE = 0.01

    def __init__(self):
        super().__init__()
        self.register_buffer("ends", torch.zeros(2))

    @property
    def scale(self) -> Tensor:
        """max(1, S), a scalar."""
        return (self.ends[1] - self.ends[0]).clamp(min=1.0)

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Move the average towards the percentiles of ``returns``, of any shape."""
        ends = torch.linspace(0.05, 0.95, 2, device=self.ends.device)  # made there: no copy from the host
        self.ends.lerp_(torch.quantile(returns.float().flatten(), ends), self.RATE)


def constrained_returns(returns: Tensor, value: Tensor, bound: Tensor, alpha: Tensor | float) -> Tensor:
    """CoWorld's Eq. 6 as a change of the critic's target, elementwise: V - alpha where v >= the bound, else V.

    With a squared error the gradient is that of (v - V)^2 / 2 + alpha max(v, bound). A cross-entropy plus alpha v would
    have its minimum at the outermost bin: a share p of the probability there costs -ln(1 - p) and lowers v by 4.85e8 p.
    """
    return returns - alpha * (value >= bound)


def normalised_advantage(returns: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """(V_t - v(s_t)) / S, "Actor learning": what a_t is better than the policy. (H, N) each, without gradient.

    In DreamerV3's convention it is gamma_t (R_t - v_t) / S; gamma_t, which has the probability to continue, is a factor
    of the weight there. V_t depends on a_t by v(s_{t+1}) and V_{t+1}.
    """
    return ((returns - value) / scale).detach()


def replay_returns(
    reward: Tensor, discount: Tensor, imagined: Tensor, first: Tensor | None, lambda_: float
) -> tuple[Tensor, Tensor]:
    """ "Critic learning", the replay loss: lambda-returns of stored rewards, and their weights, (B, T) each.

        V_t = r_t + gamma_t ((1 - lambda) b_{t+1} + lambda V_{t+1}),  V_{T-1} = b_{T-1}

    Args:
        discount: gamma times the stored discount, 0 where the task terminated.
        imagined: the return of the trajectory imagined from state t, which replaces what the stored policy did. It is
            b_t, but where the task terminated b_t is r_t: nothing follows.
        first: true where an episode begins, or None. The row before one has no successor: unless the task terminated
            there, V_t is b_t.

    The weight is 0 where V_t is b_t: there is nothing to learn from the data.
    """
    imagined = torch.where(discount > 0, imagined, reward)
    returns, weights = [imagined[:, -1]], [torch.zeros_like(imagined[:, -1])]
    for t in reversed(range(reward.shape[1] - 1)):
        following = (1 - lambda_) * imagined[:, t + 1] + lambda_ * returns[-1]
        value, weight = reward[:, t] + discount[:, t] * following, torch.ones_like(weights[-1])
        if first is not None:
            cut = first[:, t + 1] & (discount[:, t] > 0)
            value, weight = torch.where(cut, imagined[:, t], value), weight.masked_fill(cut, 0.0)
        returns.append(value)
        weights.append(weight)
    return torch.stack(returns[::-1], 1), torch.stack(weights[::-1], 1)
