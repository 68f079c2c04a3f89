"""Our modules in TorchRL's machinery, and our losses in a plain TorchRL loop: the same words mean the same things."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.testing import assert_close
from torchrl.data import Composite, Unbounded
from torchrl.envs import ActionScaling, Compose, GymEnv, InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import WorldModelWrapper
from torchrl.objectives import DreamerV3ActorLoss, DreamerV3ModelLoss, DreamerV3ValueLoss, SoftUpdate
from torchrl.objectives.utils import ValueEstimators

from dreamer_torchrl import ActorLoss, Agent, Size, ValueLoss, build_agent
from dreamer_torchrl.data.offline import steps_from_transitions
from dreamer_torchrl.modules import ImagineRollout, ObserveSequence, PriorStep, symexp
from dreamer_torchrl.objectives.returns import ReturnNormalizer
from tests.objectives.examples import world_model_loss

TINY = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)
DREAM = 5
RATE, LIMIT = 0.5, 1e-3  # of the return normalizer: at once far above its limit
LATENTS = ("belief", "state")
every_task = pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])


def environment(name: str, count: int) -> TransformedEnv:
    scaling = [ActionScaling()] if name == "Pendulum-v1" else []
    return TransformedEnv(SerialEnv(count, lambda: GymEnv(name)), Compose(*scaling, InitTracker()))


def agent_for(env: TransformedEnv) -> Agent:
    """An agent none of whose parameters is 0, and surprised enough: below the free nats, the prior learns nothing."""
    agent = build_agent(env.observation_spec_unbatched, env.action_spec_unbatched, TINY)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        agent.rssm.posterior_logits.weight.mul_(5)
        for head in (agent.reward, agent.value):  # numbers around 0, not around a mean of bins as large as 4.85e8
            head.logits.bias.sub_(torch.linspace(-7, 7, 255).square())
    return agent


def reached(agent: Agent) -> set[str]:
    """The parts of the agent all of whose parameters got a gradient; a part that got some only is an error."""
    parts = dict(agent.named_children())
    got = {name: {p.grad is not None and bool(p.grad.any()) for p in part.parameters()} for name, part in parts.items()}
    assert all(len(each) == 1 for each in got.values()), got
    return {name for name, each in got.items() if each == {True}}


def gradients(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in agent.named_parameters() if parameter.grad is not None}


def total(losses: TensorDictBase) -> torch.Tensor:
    return sum(value.sum() for key, value in losses.items() if key.startswith("loss_"))


def inside(*keys: str) -> list[tuple[str, str]]:
    return [("next", key) for key in keys]


def torchrl_model_loss(agent: Agent) -> DreamerV3ModelLoss:
    """TorchRL's world model reads what an action led to under "next" and writes its predictions there."""
    (key,) = agent.spaces
    rssm = ObserveSequence(agent.rssm)
    world_model = TensorDictSequential(
        agent.encoder.tensordict_module(inside(key), inside("encoded_latents")),
        # The previous action of what is seen next is the one beside it.
        rssm.tensordict_module(
            [("next", "encoded_latents"), "previous_action", ("next", "is_init"), *rssm.in_keys[3:]],
            inside(*rssm.out_keys),
        ),
        agent.decoder.tensordict_module(inside("features"), inside("symlog")),
        TensorDictModule(symexp, inside("symlog"), inside("reco_pixels")),
        agent.reward.tensordict_module(inside("features"), inside("reward_logits", "reward")),
        agent.continuation.tensordict_module(inside("features"), inside("continue_pred", "continuation")),
    )
    loss = DreamerV3ModelLoss(
        world_model,
        kl_mode="separate",
        unimix=0.01,
        lambda_continue=1.0,
        continue_target_scale=1 - 1 / 333,
        detach_output=False,
    )
    loss.set_keys(pixels=key)
    return loss


def dream_environment(agent: Agent) -> DreamerEnv:
    latents = Composite({key: Unbounded(agent.latent_spec[key].shape) for key in LATENTS})
    reward = agent.reward.tensordict_module(LATENTS, ("reward_logits", "reward"))
    env = DreamerEnv(
        WorldModelWrapper(PriorStep(agent.rssm).tensordict_module(), reward),
        prior_shape=latents["state"].shape,
        belief_shape=latents["belief"].shape,
    )
    env.observation_spec, env.state_spec = latents, latents.clone()
    env.action_spec, env.reward_spec = Unbounded((agent.action_space.size,)), Unbounded((1,))
    return env


def torchrl_losses(agent: Agent) -> tuple[DreamerV3ActorLoss, DreamerV3ValueLoss]:
    value = agent.value.tensordict_module(LATENTS)
    actor_loss = DreamerV3ActorLoss(
        agent.actor.probabilistic_module(LATENTS),
        value,
        dream_environment(agent),
        continuation_model=agent.continuation.tensordict_module(LATENTS),
        imagination_horizon=DREAM,
        use_reinforce=True,
        return_normalization_rate=RATE,
        return_normalization_min_scale=LIMIT,
    )
    actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=0.95)
    value_loss = DreamerV3ValueLoss(value, "two_hot", actor_loss=actor_loss, slow_critic_regularization=1.0)
    return actor_loss, value_loss


def starts(agent: Agent, count: int) -> TensorDict:
    state = agent.rssm.one_hot(torch.randint(agent.rssm.classes, (count, agent.rssm.stochastic)))
    return TensorDict({"belief": torch.randn(count, agent.rssm.belief_size).tanh(), "state": state}, batch_size=count)


def dream_noise(agent: Agent, count: int, seed: int) -> TensorDict:
    """What a step-by-step dream draws from torch's generator: for each step an action, then a state."""
    torch.manual_seed(seed)
    draws = [(agent.action_space.noise(count), torch.rand(count, agent.rssm.stochastic)) for _ in range(DREAM)]
    action, prior = (torch.stack(noise, 1) for noise in zip(*draws, strict=True))
    return TensorDict({"action": action, "prior": prior}, batch_size=count)


def our_losses(agent: Agent, replay_scale: float = 0.3) -> tuple[ActorLoss, ValueLoss]:
    reward = agent.reward.tensordict_module(out_keys=("reward_logits", "predicted_reward"))
    continuation, value = agent.continuation.tensordict_module(), agent.value.tensordict_module()
    imagine = ImagineRollout(agent.rssm, agent.actor, DREAM).tensordict_module()
    actor, normalizer = agent.actor.probabilistic_module(), ReturnNormalizer(rate=RATE, limit=LIMIT)
    actor_loss = ActorLoss(imagine, actor, reward, continuation, value, normalizer=normalizer)
    return actor_loss, ValueLoss(value, replay_scale=replay_scale)


@every_task
def test_torchrls_actor_and_value_losses_train_our_modules(name: str) -> None:
    """And are, of the same dream, the same numbers as ours, with the same gradients."""
    agent = agent_for(environment(name, 1))
    start = starts(agent, 6)
    noise = dream_noise(agent, 6, seed=1)
    actor_loss, value_loss = our_losses(agent, replay_scale=0)
    expected, data = actor_loss(start.clone().set("noise", noise))
    expected.update(value_loss(data)[0])
    total(expected).backward()
    ours = gradients(agent)
    agent.zero_grad()

    actor_loss, value_loss = torchrl_losses(agent)
    slow_critic = SoftUpdate(value_loss, tau=0.02)
    optimizer = torch.optim.Adam([*agent.actor.parameters(), *agent.value.parameters()], lr=1e-3)
    torch.manual_seed(1)
    losses, dream = actor_loss(start.clone())
    total(losses).backward()
    assert reached(agent) == {"actor"}
    losses.update(value_loss(dream)[0])
    losses["loss_value"].backward()
    assert reached(agent) == {"actor", "value"}
    assert losses["return_scale"] > LIMIT
    for key in ("return_scale", "loss_actor", "loss_value"):
        assert_close(losses[key], expected[key])
    assert_close(gradients(agent), ours, rtol=1e-4, atol=1e-5)

    before = {key: value.clone() for key, value in agent.state_dict().items()}
    optimizer.step()
    slow_critic.step()
    changed = {key.split(".")[0] for key, value in agent.state_dict().items() if (value != before[key]).any()}
    assert changed == {"actor", "value"}


def test_torchrls_replay_value_loss_is_ours() -> None:
    """Of the same features, rewards, ends and bootstraps; its "next" is what we call arrival."""
    agent = agent_for(environment("CartPole-v1", 1))
    steps = starts(agent, 3 * 6).reshape(3, 6)
    flags = torch.rand(3, 6, 2) < 0.3
    ends = {"terminated": flags[..., :1], "done": flags.any(-1, keepdim=True)}
    arrival = {"reward": torch.randn(3, 6, 1), **ends}
    bootstrap = torch.randn(3, 6, 1)
    _, value_loss = torchrl_losses(agent)
    SoftUpdate(value_loss, tau=0.02)
    found = value_loss.replay_value_loss(steps.clone().update({"bootstrap": bootstrap, "next": arrival}))

    _, value_loss = our_losses(agent, replay_scale=1.0)
    features = agent.rssm.latent.features(steps["belief"], steps["state"])
    zeros = torch.zeros(3, 6, 2, 1)
    dream = {"features": features.unsqueeze(2).expand(3, 6, 2, -1), "lambda_target": zeros, "discount_weight": zeros}
    data = {"features": features, "bootstrap": bootstrap, **arrival, "imagination": dream}
    expected, _ = value_loss(TensorDict(data, batch_size=(3, 6)))
    assert_close(found["loss_replay_value"], expected["loss_replay_value"])


@every_task
def test_torchrls_model_loss_trains_our_modules(name: str) -> None:
    """And is, of the same steps, the same numbers as ours, with the same gradients.

    Its root/next pairs are our steps but for the first of each episode, which it never sees.
    """
    env = environment(name, 3)
    agent = agent_for(env)
    pairs = env.rollout(6, agent.policy)  # [3, 6], all within one episode
    assert pairs.shape == (3, 6)
    action = agent.action_space.flatten({"action": pairs["action"]})
    noise = TensorDict({"posterior": torch.rand(3, 6, TINY.stochastic)}, batch_size=(3, 6))

    steps = steps_from_transitions(pairs).reshape(3, 7)  # the first step is context
    steps["belief"] = torch.zeros(3, 7, TINY.belief)
    steps["state"] = torch.zeros(3, 7, TINY.stochastic, TINY.classes)
    steps["noise"] = torch.cat([noise[:, :1], noise], 1)
    expected, _ = world_model_loss(agent, context=1)(steps)
    total(expected).backward()
    ours = gradients(agent)
    agent.zero_grad()

    model_loss = torchrl_model_loss(agent)
    losses, _ = model_loss(pairs.select("next").update({"previous_action": action, "noise": noise}))
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    losses = {key: value.mean() for key, value in losses.items()}
    total(losses).backward()
    assert reached(agent) == {"encoder", "rssm", "decoder", "reward", "continuation"}
    names = {"dynamic": "dynamics", "representation": "representation", "reco": "reconstruction"}
    for theirs, ours_name in {**names, "reward": "reward", "continue": "continue"}.items():
        assert_close(losses[f"loss_model_{theirs}"], expected[f"loss_{ours_name}"])
    assert_close(gradients(agent), ours, rtol=1e-4, atol=1e-5)

    weights = [parameter.detach().clone() for parameter in agent.encoder.parameters()]
    optimizer.step()
    assert all((a != b).any() for a, b in zip(weights, agent.encoder.parameters(), strict=True))
