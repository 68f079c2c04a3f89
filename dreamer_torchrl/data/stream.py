"""Any environment as one endless stream of steps."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

FLAGS = ("is_init", "terminated", "done")


class StreamEnv(EnvBase):
    """Show each step as it is seen on arrival, and go on after an episode's end with the start of the next one.

    A step is the observation together with ``reward`` (received on arrival, 0 on the first step), ``is_init``,
    ``terminated`` (the task itself ended here) and ``done`` (last step of the episode, for any reason). The terminal
    observation is a step of its own; whatever is done there starts the next episode. To TorchRL all of these are
    observations of an environment that never ends: its own reward and done stand, unused, under ``stream``.

    Float actions are clipped to their bounds at this door, while the step keeps what the policy chose.

    Args:
        env: one environment, without batch dimensions.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> steps = StreamEnv(GymEnv("CartPole-v1")).rollout(100)
        >>> bool(steps["is_init"].sum() > 1), steps.shape
        (True, torch.Size([100]))
    """

    def __init__(self, env: EnvBase):
        if env.batch_size:
            raise ValueError(
                f"StreamEnv takes one environment, this one has batch size {list(env.batch_size)}: "
                "make a stream of each and batch the streams, with SerialEnv for example."
            )
        super().__init__(device=env.device, batch_size=env.batch_size)
        self.env = env
        self._observed = list(env.observation_spec.keys(True, True))
        taken = sorted({"reward", *FLAGS} & set(env.observation_spec.keys()))
        if taken:
            raise ValueError(
                f"The environment has an observation {taken[0]!r}, a name that a step needs for itself: "
                f"append RenameTransform([{taken[0]!r}], ['observed_{taken[0]}']), or leave InitTracker out."
            )
        observation_spec = env.observation_spec.clone()
        observation_spec["reward"] = Unbounded((1,), device=env.device)
        for key in FLAGS:
            observation_spec[key] = _flag(env.device)
        self.observation_spec = observation_spec
        self.action_spec = env.full_action_spec.clone()
        self._bounds = {
            key: (leaf.space.low, leaf.space.high)
            for key, leaf in env.full_action_spec.items(True, True)
            if isinstance(leaf, Bounded) and leaf.dtype.is_floating_point
        }
        self.reward_spec = Composite(stream=Composite(reward=Unbounded((1,), device=env.device)))
        self.done_spec = Composite(stream=Composite(done=_flag(env.device), terminated=_flag(env.device)))
        self._arrived: TensorDictBase | None = None  # what the inner environment showed last

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        return self._begin().set("stream", self._never())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._arrived["done"].any():
            step = self._begin()
        else:
            action = tensordict.select(*self.env.action_keys)
            for key, (low, high) in self._bounds.items():
                action[key] = action[key].clamp(low, high)
            self._arrived = self.env.step(self._arrived.copy().update(action))["next"]
            step = self._seen(self._arrived["reward"], first=False)
        never = self._never().set("reward", torch.zeros_like(step["reward"]))
        return step.set("stream", never)

    def _set_seed(self, seed: int | None) -> None:
        self.env.set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the inner environment."""
        super().close(raise_if_closed=raise_if_closed)
        if not self.env.is_closed:
            self.env.close()

    def _begin(self) -> TensorDictBase:
        self._arrived = self.env.reset()
        return self._seen(torch.zeros(1, device=self.device), first=True)

    def _seen(self, reward: torch.Tensor, first: bool) -> TensorDictBase:
        step = self._arrived.select(*self._observed)
        step["reward"] = reward.reshape(1).float()
        step["is_init"] = torch.tensor([first], device=self.device)
        for key in ("terminated", "done"):
            step[key] = self._arrived[key].reshape(1)
        return step

    def _never(self) -> TensorDictBase:
        return self.full_done_spec["stream"].zero()


def _flag(device: torch.device | None) -> Binary:
    return Binary(1, dtype=torch.bool, device=device)
