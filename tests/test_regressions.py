"""The classic mistakes of a DreamerV3, one test each: named after the mistake, with a word on what goes wrong with it.

None of them stops training; each only makes another, mostly weaker, agent. So each has a test of its own, with numbers
that can be checked by hand.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import OneHot

from dreamer_torchrl.modules.actor import ActionDistribution, ActionSpace
from dreamer_torchrl.modules.latents import CategoricalLatent
from dreamer_torchrl.objectives import ActorLoss
from dreamer_torchrl.objectives.actor_loss import reinforce_loss
from dreamer_torchrl.objectives.value import replay_return
from dreamer_torchrl.objectives.world_model import kl

# --- World model ------------------------------------------------------------------------------------------------------


def logits_with_kl(nats: float) -> tuple[Tensor, Tensor]:
    """Posterior and prior logits ``[2, 3]`` of two variables, each this far apart: a sure one and one that doubts."""
    sure = torch.tensor([40.0, 0.0, 0.0]).repeat(2, 1)
    probability = torch.tensor(-nats).exp()
    return sure, torch.stack([probability, (1 - probability) / 2, (1 - probability) / 2]).log().repeat(2, 1)


@pytest.mark.parametrize(("each", "expected"), [(0.3, 1.0), (0.6, 1.2), (2.0, 4.0)])
def test_free_nats_before_the_sum(each: float, expected: float) -> None:
    """The KL of all variables together has one free nat.

    With a floor under each of 32 variables, 32 nats are free, and the prior learns next to nothing.
    """
    for side in kl(CategoricalLatent(2, 3, unimix=0.0), *logits_with_kl(each), free_nats=1.0):
        assert_close(side, torch.tensor(expected))


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


class Scripted:
    """An `ActorLoss` around one dream ``[1, H + 1]`` in which everything is given."""

    def __init__(
        self, reward: list[float], continuation: list[float], value: list[float], action: list[int], **options: Any
    ):
        self.reward, self.continuation, self.value = (
            torch.tensor(numbers).view(1, -1, 1).requires_grad_() for numbers in (reward, continuation, value)
        )
        self.logits = torch.linspace(-1, 1, 2 * len(action)).view(1, -1, 2).requires_grad_()
        self.action = nn.functional.one_hot(torch.tensor([action]), 2).float()
        features = torch.zeros(1, len(action), 1)
        self.loss = ActorLoss(
            TensorDictModule(lambda *_: (features, self.action), ["belief", "state"], ["features", "action"]),
            ProbabilisticTensorDictSequential(
                TensorDictModule(lambda _: self.logits, ["features"], ["action_parameters"]),
                ProbabilisticTensorDictModule(
                    in_keys={"parameters": "action_parameters"},
                    out_keys=["action"],
                    distribution_class=ActionDistribution,
                    distribution_kwargs={"space": ActionSpace(OneHot(2))},
                ),
            ),
            TensorDictModule(lambda _: self.reward * 1, ["features"], ["predicted_reward"]),
            TensorDictModule(lambda _: self.continuation * 1, ["features"], ["continuation"]),
            TensorDictModule(lambda _: self.value * 1, ["features"], ["state_value"]),
            **options,
        )

    def run(self) -> tuple[Tensor, TensorDict]:
        """The loss and the data that go on to the value loss."""
        losses, data = self.loss(TensorDict({"belief": torch.zeros(1, 1), "state": torch.zeros(1, 1)}, [1]))
        return losses["loss_actor"], data


def test_imagined_return_off_by_one() -> None:
    """The start's own reward, continuation and value are no part of its return; its value is the baseline."""
    dream = Scripted([999.0, 1.0, 2.0], [0.9, 0.5, 0.25], [3.0, 10.0, 20.0], [0, 1, 0], return_lambda=0.6)
    imagined = dream.run()[1]["imagination"]
    last = 2 + 0.25 * 20
    first = 1 + 0.5 * (0.4 * 10 + 0.6 * last)
    assert_close(imagined["lambda_target"][0, :2, 0], torch.tensor([first, last]))
    assert_close(imagined["advantage"][0, :2, 0], torch.tensor([first - 3, last - 10]))
    assert_close(imagined["discount_weight"][0, :, 0], torch.tensor([0.9, 0.45, 0.1125]))


def test_replay_return_off_by_one() -> None:
    """The reward that came with an observation is for the action before it; an end stands at the step where it ends."""
    reward, bootstrap = torch.tensor([[999.0, 1.0, 2.0, 4.0]]), torch.tensor([[999.0, 10.0, 20.0, 30.0]])
    ends = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    returns = replay_return(reward, bootstrap, ends, ends, gamma=0.5, return_lambda=1.0)
    last = 4 + 0.5 * 30
    assert_close(returns, torch.tensor([[1.0, 2 + 0.5 * last, last]]))


# --- Actor and critic -------------------------------------------------------------------------------------------------

DREAM = ([0.0, 1.0, 2.0, 3.0], [0.9, 0.8, 0.7, 0.6], [1.0, 0.5, -1.0, 2.0], [0, 1, 0, 1])


def test_missing_stop_gradients_in_reinforce() -> None:
    """Only the actor's own numbers have a gradient.

    Otherwise the advantage is made larger by spoiling the critic, and the weight by dreaming of shorter lives.
    """
    log_prob, advantage, entropy, weight = (torch.randn(5, requires_grad=True) for _ in range(4))
    reinforce_loss(log_prob, advantage, entropy, weight, entropy_scale=0.1).sum().backward()
    assert advantage.grad is None and weight.grad is None
    assert_close(log_prob.grad, -(weight * advantage).detach())
    assert_close(entropy.grad, -0.1 * weight.detach())


def test_gradient_through_returns_and_baseline() -> None:
    """What goes on to the value loss is fixed: a target with a gradient would run towards the prediction."""
    _, data = Scripted(*DREAM).run()
    for key in ("lambda_target", "advantage", "discount_weight", "action_log_prob"):
        assert not data["imagination", key].requires_grad
    assert not data["bootstrap"].requires_grad


def test_last_imagined_action() -> None:
    """Nothing follows the last dreamed step: its action has no return and must not be reinforced."""
    first, other = (Scripted(*DREAM[:3], actions) for actions in (DREAM[3], [*DREAM[3][:-1], 0]))
    loss, _ = first.run()
    assert loss == other.run()[0]
    loss.backward()
    assert first.logits.grad[0].abs().sum(-1).bool().tolist() == [True, True, True, False]
