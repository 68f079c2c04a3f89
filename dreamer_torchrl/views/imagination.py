"""What an agent's world model believes of a recorded episode: seen with open eyes, dreamt on, and imagined freely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.modules.decoder import observation_from
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence, imagine
from dreamer_torchrl.modules.rssm import features_of
from dreamer_torchrl.modules.spaces import Continuous, Image, Space, key_name
from dreamer_torchrl.objectives.batch import check_keys, split_context

STEPS, CONTEXT = 64, 5
"""How long a dream lasts, and how many of these steps are seen before it begins."""

HORIZONS = (1, 5, 15, 45)
"""Steps ahead at which predictions are measured."""


@dataclass(frozen=True)
class Beliefs:
    """What decoder, heads and actor make of T latents.

    Numbers as a reader wants them: pixels in [0, 1] ``[T, h, w, c]``, floats in their own units ``[T, V]``, classes by
    their numbers ``[T, V]``.
    """

    observation: dict[NestedKey, Tensor]
    reward: Tensor  # [T], received on arrival
    continuation: Tensor  # [T], how likely the episode goes on, with the horizon's discount in it
    value: Tensor  # [T]
    entropy: Tensor  # [T], of the policy


@dataclass(frozen=True)
class Dream:
    """T steps of an episode and what the model makes of them.

    Where there is no environment, in a free imagination after its context, what only an environment could tell is not
    a number (NaN), the reconstruction included.

    Args:
        spaces: what each observation key holds.
        start: place of the first step in its episode.
        context: the open loop sees so many steps, then none.
        observation: what was seen, as `Beliefs` has it.
        reward: what was received on arrival, ``[T]``.
        terminated: 1 where the task itself ended, else 0, ``[T]``.
        kl: of the posterior, which has seen the step, from the prior, which knows all before it; nats, ``[T]``.
        reconstruction: what the model believes with open eyes, by the posterior of each step.
        open_loop: the same during the context, then what it foresees by the prior.
        imagined: whether the policy chose the actions after the context, rather than the record.
    """

    spaces: Mapping[NestedKey, Space]
    start: int
    context: int
    observation: dict[NestedKey, Tensor]
    reward: Tensor
    terminated: Tensor
    kl: Tensor
    reconstruction: Beliefs
    open_loop: Beliefs
    imagined: bool = False

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def last_seen(self) -> int:
        """The last step that the open loop sees, counted in its episode."""
        return self.start + self.context - 1

    @property
    def difference(self) -> dict[NestedKey, Tensor]:
        """How far the open loop is from what was seen; of classes, whether it is another one."""
        pairs = {key: (self.open_loop.observation[key], seen) for key, seen in self.observation.items()}
        return {key: deviation(self.spaces[key], *pair) for key, pair in pairs.items()}


@dataclass(frozen=True)
class PredictionError:
    """Mean errors so many steps ahead, and those of a guess that nothing changes from the last step seen."""

    horizons: tuple[int, ...]
    model: dict[str, list[float]]  # for the reward and each observation key
    unchanged: dict[str, list[float]]


@dataclass(frozen=True)
class Latents:
    """The posterior of T steps."""

    belief: Tensor  # [T, D]
    state: Tensor  # [T, S, K]
    action: Tensor  # [T, A], flat, done at each step
    kl: Tensor  # [T]

    @property
    def features(self) -> Tensor:
        return features_of(self.belief, self.state)  # [T, F]


def context_for(steps: int) -> int:
    """How many steps are seen of an episode before its dream begins: fewer than usual of a very short one.

    Example:
        >>> context_for(64), context_for(8), context_for(2)
        (5, 2, 1)
    """
    return max(1, min(CONTEXT, steps // 3))


def dream(agent: Agent, steps: TensorDictBase, context: int = CONTEXT, start: int = 0, seed: int = 0) -> Dream:
    """See an episode with open eyes, and dream it along the recorded actions from the end of the context on.

    Args:
        agent: whose world model it is; neither its weights nor torch's random state change.
        steps: the first ones of one episode, ``[T]``, as `Evaluation` keeps them.
        context: steps that the open loop sees, at least 1; with all of them it is the reconstruction.
        start: steps at the front that the model sees, but that are not part of the dream.
        seed: of the states that are drawn.

    Example:
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from dreamer_torchrl.learners.learner import example_batch
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> steps = example_batch(agent, batch=1, length=11)[0].clone()
        >>> steps["is_init"] = (torch.arange(12) == 0).unsqueeze(-1)
        >>> seen = dream(agent, steps, context=5)
        >>> len(seen), seen.open_loop.observation["observation"].shape, seen.difference["observation"].shape
        (12, torch.Size([12, 3]), torch.Size([12, 3]))
    """
    check_part(len(steps), context, start)
    generator = torch.Generator().manual_seed(seed)
    latents = observe(agent, steps, generator)
    features = latents.features[start:]  # [T, F]
    last = start + context - 1
    noise = state_noise(agent, 1, len(features) - context, generator)
    ahead = foresee(agent, latents, [last], latents.action[None, last:-1], noise)[0, 1:]  # [T - context, F]
    own = steps[start:]
    return Dream(
        agent.spaces,
        start,
        context,
        {key: readable(space, own[key].cpu()) for key, space in agent.spaces.items()},
        own["reward"].squeeze(-1).float().cpu(),
        own["terminated"].squeeze(-1).float().cpu(),
        latents.kl[start:].cpu(),
        beliefs(agent, features),
        beliefs(agent, torch.cat([features[:context], ahead])),
    )


def imagined(
    agent: Agent, steps: TensorDictBase, length: int, context: int = CONTEXT, start: int = 0, seed: int = 0
) -> Dream:
    """See the context of an episode, then let the policy act in the dream for ``length`` steps: see `dream`."""
    check_part(len(steps), context, start)
    generator = torch.Generator().manual_seed(seed)
    latents = observe(agent, steps, generator)
    part = slice(start, start + context)
    features = latents.features[part]  # [context, F]
    now = start + context - 1
    ahead, _ = rollout(agent, latents.belief[now], latents.state[now], length, generator)
    seen = beliefs(agent, features)
    return Dream(
        agent.spaces,
        start,
        context,
        {key: then_nothing(readable(space, steps[key][part].cpu()), length) for key, space in agent.spaces.items()},
        then_nothing(steps["reward"][part].squeeze(-1).float().cpu(), length),
        then_nothing(steps["terminated"][part].squeeze(-1).float().cpu(), length),
        then_nothing(latents.kl[part].cpu(), length),
        Beliefs(
            {key: then_nothing(value, length) for key, value in seen.observation.items()},
            *(then_nothing(value, length) for value in (seen.reward, seen.continuation, seen.value, seen.entropy)),
        ),
        beliefs(agent, torch.cat([features, ahead[1:]])),
        imagined=True,
    )


def prediction_error(
    agent: Agent, steps: TensorDictBase, context: int = CONTEXT, horizons: Sequence[int] = HORIZONS, seed: int = 0
) -> PredictionError:
    """Dream from each step of an episode at once, and compare with what came so many steps later.

    Errors are absolute: of rewards in their own units, of pixels in [0, 1], of floats in standard deviations of each
    number over these steps, of classes the share that is wrong. A horizon that the steps do not reach is left out.
    """
    check_part(len(steps), context, 0)
    error = PredictionError(tuple(ahead for ahead in horizons if context + ahead <= len(steps)), {}, {})
    if not error.horizons:
        return error
    generator = torch.Generator().manual_seed(seed)
    latents = observe(agent, steps, generator)
    starts, longest = torch.arange(context - 1, len(steps) - 1), max(error.horizons)
    beyond = F.pad(latents.action, (0, 0, 0, longest))  # what comes after the end is not looked at
    actions = torch.stack([beyond[start : start + longest] for start in starts.tolist()])  # [N, H, A]
    noise = state_noise(agent, len(starts), longest, generator)
    features = foresee(agent, latents, starts, actions, noise)  # [N, H + 1, F]
    truth = {key: readable(space, steps[key].cpu()) for key, space in agent.spaces.items()}
    for ahead in error.horizons:
        seen = starts[: len(steps) - context - ahead + 1]
        guess = beliefs(agent, features[: len(seen), ahead])
        pairs = [("reward", guess.reward, steps["reward"].squeeze(-1).cpu(), Continuous((1,)), torch.ones(()))]
        for key, space in agent.spaces.items():
            spread = spread_of(truth[key]) if isinstance(space, Continuous) else torch.ones(())
            pairs.append((key_name(key), guess.observation[key], truth[key], space, spread))
        for name, predicted, real, space, spread in pairs:
            for table, guessed in ((error.model, predicted), (error.unchanged, real[seen])):
                off = deviation(space, guessed, real[seen + ahead]).abs() / spread
                table.setdefault(name, []).append(off.mean().item())
    return error


def spread_of(values: Tensor) -> Tensor:
    """Standard deviation of each number over time, ``[T, V]`` to ``[V]``; 1 for those that never change."""
    spread = values.std(0)
    return torch.where(spread > 0, spread, 1.0)


@torch.no_grad()
def observe(agent: Agent, steps: TensorDictBase, generator: torch.Generator) -> Latents:
    """The posterior of all steps ``[T]`` of one episode, from its start on."""
    needed = [*agent.spaces, *agent.action_space.keys, "is_init", "reward", "terminated"]
    check_keys(steps, needed, "A dream")
    if steps.ndim != 1 or not steps["is_init"][0].item() or steps["is_init"][1:].any():
        raise ValueError(f"A dream needs the first steps [T] of one episode; these are {list(steps.shape)}.")
    batch = steps.select(*needed).to(next(agent.parameters()).device).unsqueeze(0)  # [1, T]
    sequence = split_context(batch, 0, agent.action_space, "belief", "state")
    encoded = agent.encoder(*[sequence[key] for key in agent.encoder.in_keys])  # [1, T, E]
    belief, state, posterior, prior, _ = ObserveSequence(agent.rssm)(
        encoded,
        sequence["previous_action"].to(encoded.dtype),
        sequence["is_init"],
        noise=state_noise(agent, 1, len(steps), generator),
    )
    action = agent.action_space.flatten({key: sequence[key] for key in agent.action_space.keys})
    surprise, _ = agent.rssm.latent.kl(posterior, prior)
    return Latents(belief[0], state[0], action[0].to(belief.dtype), surprise[0])


def foresee(agent: Agent, latents: Latents, starts: Sequence[int] | Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """Dream from some of the latents along given actions ``[N, H, A]``: features ``[N, H + 1, F]``, the start first."""
    belief, state = latents.belief[starts], latents.state[starts]
    if not action.shape[1]:
        return features_of(belief, state).unsqueeze(1)
    return imagine(agent.rssm, belief, state, action, noise)[0]


@torch.no_grad()
def rollout(
    agent: Agent, belief: Tensor, state: Tensor, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Let the policy act in the dream, with no environment, from one latent ``[D]``, ``[S, K]`` on.

    Features ``[length + 1, F]``, the start first, and the flat actions ``[length + 1, A]``, the last of which is zero.
    """
    noise = state_noise(agent, 1, length, generator)[0]
    action_noise = agent.action_space.noise(length, generator=generator).to(belief.device)
    return ImagineRollout(agent.rssm, agent.actor, length)(belief, state, noise, action_noise)


@torch.no_grad()
def beliefs(agent: Agent, features: Tensor) -> Beliefs:
    """What decoder, heads and actor make of features ``[T, F]``."""
    decoded = agent.decoder(features)
    predictions = decoded if isinstance(decoded, tuple) else (decoded,)
    observation = {
        key: readable(space, observation_from(space, prediction)).cpu()
        for (key, space), prediction in zip(agent.spaces.items(), predictions, strict=True)
    }
    numbers = (agent.reward(features)[1], agent.continuation(features)[1], agent.value(features)[1])
    entropy = agent.actor.distribution(agent.actor(features)).entropy()
    return Beliefs(observation, *(number.squeeze(-1).cpu() for number in numbers), entropy.cpu())


def state_noise(agent: Agent, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Uniforms for the states of ``count`` sequences, the same on every device."""
    noise = torch.rand(count, length, agent.rssm.stochastic, generator=generator)
    return noise.to(next(agent.parameters()).device)


def readable(space: Space, observation: Tensor) -> Tensor:
    """An observation as `Beliefs` has it; pixels may be bytes or in [0, 1] already."""
    if isinstance(space, Image):
        pixels = space.to_channels_last(observation)
        return pixels / 255 if pixels.dtype is torch.uint8 else pixels
    flat = space.flatten(observation)
    if isinstance(space, Continuous):
        return flat
    return torch.stack([part.argmax(-1) for part in flat.split(list(space.classes), -1)], -1).float() + space.low


def deviation(space: Space, predicted: Tensor, seen: Tensor) -> Tensor:
    """Predicted minus seen; of classes, which have no distance, whether they differ (not a number stays none)."""
    difference = predicted - seen
    if isinstance(space, Image | Continuous):
        return difference
    return torch.where(difference.isnan(), difference, (difference != 0).float())


def check_part(steps: int, context: int, start: int) -> None:
    """Refuse a context or start that the steps do not have."""
    if start < 0 or not 1 <= context <= steps - start:
        raise ValueError(
            f"The episode has {steps} steps: start {start} and context {context} need at least 1 step of context and "
            f"{start + context} steps."
        )


def then_nothing(value: Tensor, length: int) -> Tensor:
    """Numbers ``[T, ...]``, and after them none: NaN."""
    return torch.cat([value, value.new_full((length, *value.shape[1:]), torch.nan)])
