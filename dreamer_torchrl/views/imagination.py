"""Open-loop prediction: the world model sees the first steps of an episode and predicts the rest from actions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Generator, Tensor
from torch.nn import functional as F

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.decoder import observation_from, reconstruction_key
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence, imagine
from dreamer_torchrl.modules.spaces import Continuous, Image, Space, key_name
from dreamer_torchrl.objectives.batch import check_keys, split_context

STEPS, CONTEXT = 64, 5  # length of an open-loop prediction, and how many of these steps the model sees
HORIZONS = (1, 5, 15, 45)  # steps ahead at which the prediction error is measured


@dataclass(frozen=True)
class Predictions:
    # Of the keys that the decoder predicts: pixels in [0, 1] [T, h, w, c]; floats, or numbers of classes [T, V]
    observation: dict[NestedKey, Tensor]
    reward: Tensor  # [T], received on arrival
    continuation: Tensor  # [T], probability that the episode goes on, the discount included
    value: Tensor  # [T]
    entropy: Tensor  # [T], of the policy


@dataclass(frozen=True)
class OpenLoop:
    spaces: Mapping[NestedKey, Space]
    start: int  # index of the first step in its episode
    context: int  # the open loop sees so many steps, then none
    observation: dict[NestedKey, Tensor]  # what was recorded, of all keys, as `Predictions` has it
    reward: Tensor  # [T], received on arrival
    terminated: Tensor  # [T], 1 where the task itself ended, else 0
    kl: Tensor  # [T], of the posterior from the prior, in nats
    reconstruction: Predictions  # from the posterior of each step, which has seen it
    prediction: Predictions  # the same during the context, then from the prior
    imagined: bool = False  # by the policy's actions: what was recorded, and the reconstruction, end with the context

    def __len__(self) -> int:
        return len(self.prediction.reward)

    @property
    def error(self) -> dict[NestedKey, Tensor]:
        """Prediction minus recorded observation; of classes, whether they differ."""
        pairs = ((key, predicted, self.observation[key]) for key, predicted in self.prediction.observation.items())
        return {key: deviation(self.spaces[key], predicted[: len(seen)], seen) for key, predicted, seen in pairs}


@dataclass(frozen=True)
class PredictionError:
    horizons: tuple[int, ...]
    model: dict[str, list[float]]  # mean errors at these, for the reward and each observation key
    unchanged: dict[str, list[float]]  # of predicting that nothing changes from the last step seen


class Posterior(NamedTuple):
    belief: Tensor  # [T, D]
    state: Tensor  # [T, S, K]
    action: Tensor  # [T, A], flat, done at each step
    kl: Tensor  # [T]


def context_for(steps: int) -> int:
    """How many steps of an episode are seen: fewer than usual of a very short one."""
    return max(1, min(CONTEXT, steps // 3))


@torch.no_grad()
def open_loop(
    agent: Agent, steps: TensorDictBase, context: int = CONTEXT, start: int = 0, seed: int = 0, imagine: int = 0
) -> OpenLoop:
    """Reconstruct an episode, and predict it from the end of the context on; torch's random state does not change.

    Args:
        steps: the first ones of one episode, ``[T]``, as `Evaluation` keeps them.
        context: observed steps, at least 1; with all of them the prediction is the reconstruction.
        start: observed steps before the context, which are not part of the result.
        imagine: if above 0, the policy acts for so many steps after the context instead of the recorded actions.
    """
    if start < 0 or not 1 <= context <= len(steps) - start:
        needed = f"at least 1 step of context and {start + context} steps"
        raise ValueError(f"The episode has {len(steps)} steps: start {start} and context {context} need {needed}.")
    generator = Generator().manual_seed(seed)
    posterior = observe(agent, steps, generator)
    last = start + context - 1
    part = slice(start, last + 1 if imagine else len(steps))
    if imagine:
        noise = state_noise(agent, 1, imagine, generator)[0]
        action_noise = agent.action_space.noise(imagine, generator=generator).to(noise.device)
        by_policy = ImagineRollout(agent.rssm, agent.actor, imagine, mask=agent.mask)
        mask = None if agent.mask is None else steps[MASK][last].to(noise.device)
        latents = posterior.belief[last], posterior.state[last]
        ahead, *_ = by_policy(*latents, noise, action_noise, mask)  # [imagine + 1, F]
    else:
        noise = state_noise(agent, 1, len(steps) - last - 1, generator)
        ahead = predict(agent, posterior, torch.tensor([last]), posterior.action[None, last:-1], noise)[0]
    features = agent.rssm.latent.features(posterior.belief[part], posterior.state[part])  # [T, F]
    reward, terminated = (steps[key][part].squeeze(-1).float().cpu() for key in ("reward", "terminated"))
    recorded = {key: readable(space, steps[key][part].cpu()) for key, space in agent.spaces.items()}
    seen, predicted = predictions(agent, features), predictions(agent, torch.cat([features[:context], ahead[1:]]))
    truth = (recorded, reward, terminated, posterior.kl[part].cpu())
    return OpenLoop(agent.spaces, start, context, *truth, seen, predicted, imagined=imagine > 0)


@torch.no_grad()
def prediction_error(
    agent: Agent, steps: TensorDictBase, context: int = CONTEXT, horizons: tuple[int, ...] = HORIZONS, seed: int = 0
) -> PredictionError:
    """Predict from each step of an episode at once, and compare with what was recorded so many steps later.

    Errors are absolute: rewards as they are, pixels in [0, 1], floats in standard deviations, the share of classes.
    """
    error = PredictionError(tuple(ahead for ahead in horizons if context + ahead <= len(steps)), {}, {})
    if not error.horizons:
        return error
    generator = Generator().manual_seed(seed)
    posterior = observe(agent, steps, generator)
    starts, longest = torch.arange(context - 1, len(steps) - 1), max(error.horizons)
    beyond = F.pad(posterior.action, (0, 0, 0, longest))  # predictions beyond the end are not compared
    actions = torch.stack([beyond[start : start + longest] for start in starts.tolist()])  # [N, H, A]
    noise = state_noise(agent, len(starts), longest, generator)
    features = predict(agent, posterior, starts, actions, noise)  # [N, H + 1, F]
    truth = {key: readable(space, steps[key].cpu()) for key, space in agent.spaces.items()}
    for ahead in error.horizons:
        seen = starts[: len(steps) - context - ahead + 1]
        guess = predictions(agent, features[: len(seen), ahead])
        compared = [("reward", guess.reward, steps["reward"].squeeze(-1).cpu(), Continuous((1,)), torch.ones(()))]
        for key in guess.observation:
            space = agent.spaces[key]
            spread = truth[key].std(0) if isinstance(space, Continuous) else torch.ones(())
            spread = torch.where(spread > 0, spread, 1.0)
            compared.append((key_name(key), guess.observation[key], truth[key], space, spread))
        for name, predicted, real, space, spread in compared:
            for errors, value in ((error.model, predicted), (error.unchanged, real[seen])):
                off = deviation(space, value, real[seen + ahead]).abs() / spread
                errors.setdefault(name, []).append(off.mean().item())
    return error


def observe(agent: Agent, steps: TensorDictBase, generator: Generator) -> Posterior:
    needed = [*agent.spaces, *agent.action_space.keys, "is_init", "reward", "terminated"]
    check_keys(steps, needed, "Open-loop prediction")
    if steps.ndim != 1 or not steps["is_init"][0].item() or steps["is_init"][1:].any():
        raise ValueError(f"Open-loop prediction needs the first steps [T] of one episode; got {list(steps.shape)}.")
    batch = steps.select(*needed).to(next(agent.parameters()).device).unsqueeze(0)  # [1, T]
    sequence = split_context(batch, 0, agent.action_space, None)
    encoded = agent.encoder(*[sequence[key] for key in agent.encoder.in_keys])  # [1, T, E]
    previous, noise = sequence["previous_action"].to(encoded.dtype), state_noise(agent, 1, len(steps), generator)
    model = ObserveSequence(agent.rssm)
    belief, state, posterior, prior, _ = model(encoded, previous, sequence["is_init"], noise=noise)
    action = agent.action_space.flatten({key: sequence[key] for key in agent.action_space.keys})
    kl, _ = agent.rssm.latent.kl(posterior, prior)
    return Posterior(belief[0], state[0], action[0].to(belief.dtype), kl[0])


def predict(agent: Agent, posterior: Posterior, starts: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """Features ``[N, H + 1, F]`` from N of the steps on along actions ``[N, H, A]``; the start is the first."""
    belief, state = posterior.belief[starts], posterior.state[starts]
    if not action.shape[1]:
        return agent.rssm.latent.features(belief, state).unsqueeze(1)
    return imagine(agent.rssm, belief, state, action, noise)[0]


def predictions(agent: Agent, features: Tensor) -> Predictions:
    decoded = agent.decoder(features)
    decoded = decoded if isinstance(decoded, tuple) else (decoded,)  # as tensordict modules return one
    decoded = dict(zip(agent.decoder.out_keys, decoded, strict=True))
    observation = {}
    for key, space in agent.spaces.items():
        if (name := reconstruction_key(key)) in decoded:
            seen = observation_from(space, decoded[name], agent.decoder.symlog)
            observation[key] = readable(space, seen).cpu()
    numbers = (agent.reward(features)[1], agent.continuation(features)[1], agent.value(features)[1])
    mask = None if agent.mask is None else agent.mask(features)[1]
    entropy = agent.actor.distribution(agent.actor(features), mask).entropy()
    return Predictions(observation, *(number.squeeze(-1).cpu() for number in numbers), entropy.cpu())


def state_noise(agent: Agent, count: int, length: int, generator: Generator) -> Tensor:
    """Noise for the states of ``count`` sequences, the same on every device."""
    return agent.rssm.latent.noise(count, length, generator=generator).to(next(agent.parameters()).device)


def readable(space: Space, observation: Tensor) -> Tensor:
    """An observation as `Predictions` has it; pixels may be bytes or in [0, 1] already."""
    if isinstance(space, Image):
        pixels = space.to_channels_last(observation)
        return pixels / 255 if pixels.dtype is torch.uint8 else pixels
    flat = space.flatten(observation)
    if isinstance(space, Continuous):
        return flat
    return torch.stack([part.argmax(-1) for part in flat.split(list(space.classes), -1)], -1).float() + space.low


def deviation(space: Space, predicted: Tensor, seen: Tensor) -> Tensor:
    return predicted - seen if isinstance(space, Image | Continuous) else (predicted != seen).float()
