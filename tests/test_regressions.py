"""Classic mistakes of a DreamerV3 that no test of one part shows: each only makes another, mostly weaker, agent."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from dreamer_torchrl.modules.latents import CategoricalLatent
from dreamer_torchrl.objectives.actor_loss import reinforce_loss
from dreamer_torchrl.objectives.world_model import kl


def test_missing_stop_gradients_in_the_kl() -> None:
    """Dynamics moves the prior alone, representation the posterior alone.

    Without this the ratio of their scales, 1 to 0.1, means nothing, and the posterior is dragged to a prior that knows
    nothing yet.
    """
    posterior, prior = torch.randn(2, 5, 4, 3).unbind()
    posterior.requires_grad_(), prior.requires_grad_()
    dynamics, representation = kl(CategoricalLatent(4, 3), posterior, prior, free_nats=0.0)
    for loss, pupil, teacher in ((dynamics, prior, posterior), (representation, posterior, prior)):
        gradients = torch.autograd.grad(loss.sum(), (pupil, teacher), allow_unused=True)
        assert gradients[0].count_nonzero() == gradients[0].numel()
        assert gradients[1] is None or not gradients[1].count_nonzero()


def test_missing_stop_gradients_in_reinforce() -> None:
    """Only the actor's own numbers have a gradient.

    Otherwise the advantage is made larger by spoiling the critic, and the weight by dreaming of shorter lives.
    """
    log_prob, advantage, entropy, weight = (torch.randn(5, requires_grad=True) for _ in range(4))
    reinforce_loss(log_prob, advantage, entropy, weight, scale=0.1).sum().backward()
    assert advantage.grad is None and weight.grad is None
    assert_close(log_prob.grad, -(weight * advantage).detach())
    assert_close(entropy.grad, -0.1 * weight.detach())
