"""The source's side of Eq. 6: its critic's values of what the target imagines, which bound the target's values."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import ImaginedTrajectory, WorldModel
from networks import State, pad_action
from ops.one_hot import Features


@dataclass
class ValueBound:
    """The critic v_xi' of the source that an update of the target follows, and the latents that it reads.

    Attributes:
        critic: without gradients.
        world: with ``constraint_latents: source``, the source's world model, without gradients; else None.
        post: with it, the states stoch and deter (B, T, ...) that this model infers from the target's batch.
    """

    critic: nn.Module
    world: WorldModel | None = None
    post: State | None = None

    def noise(self, starts: int, horizon: int) -> Tensor:
        """The random numbers of `follow`'s latents, (N, H - 1, ...), if there is a ``world``."""
        return self.world.rssm.noise(starts, horizon - 1)

    @torch.no_grad()
    def values(
        self, visited: Features, trajectory: ImaginedTrajectory, start: State | None, noise: Tensor | None
    ) -> Tensor:
        """v_xi' of the imagined states s_0 .. s_{H-1}, (H, N).

        Args:
            visited: the target's features of these states, (H, N, F): the paper's z^(T) in Eq. 6.
            start: the source's own states (N, ...) at the starts of the trajectories; None with `visited` alone.
            noise: of `noise`.
        """
        if self.world is None:
            return self.critic(visited)
        return self.critic(self.world.rssm.sampled(self.follow(trajectory.action, start, noise)))

    def follow(self, action: Tensor, start: State, noise: Tensor) -> Tensor:
        """Features (H, N, F) of the source's prior: s'_0 is ``start``, s'_{t+1} ~ p_phi'(s'_t, a_t).

        action (H, N, A): the target's imagined ones; the last one leads to no state that has a value.
        """
        rssm, state = self.world.rssm, start
        feats = [rssm.feat(state)]
        for a, latent in zip(action[:-1], noise.unbind(1), strict=True):
            state = rssm.imagine_step(state, pad_action(a.clamp(-1, 1), self.world.action_dim), latent)
            feats.append(rssm.feat(state))
        return torch.stack(feats)
