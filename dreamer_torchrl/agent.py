"""From specs and a size to world model, actor, critic and policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from dreamer_torchrl.modules.actor import ActionSpace, Actor
from dreamer_torchrl.modules.decoder import Decoder
from dreamer_torchrl.modules.distributions import OneHot
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.heads import ContinueHead, TwoHotHead
from dreamer_torchrl.modules.native_step import NativeStep
from dreamer_torchrl.modules.native_weights import actor_fits
from dreamer_torchrl.modules.rssm import RSSM, features_of
from dreamer_torchrl.modules.spaces import Image, Space, key_name, spaces_from_spec
from dreamer_torchrl.native.calls import fits
from dreamer_torchrl.settings import Size

LATENTS = ("belief", "state", "previous_action")
"""What the policy carries from step to step."""

WRITTEN = (
    *("noise", "previous", "encoded_latents", "prior_logits", "posterior_logits", "features", "reconstruction"),
    *("reward_logits", "predicted_reward", "continue_logits", "continuation", "imagination", "bootstrap"),
)
"""What an update writes beside the observations."""

NOT_OBSERVED = ("reward", "is_init", "terminated", "truncated", "done", "action", *LATENTS)
"""Keys of a step that are no observation, wherever a spec lists them."""

MakeEncoder = Callable[[Mapping[NestedKey, Space]], nn.Module]
"""From what each key holds to a module with ``in_keys`` and ``out_features``, as `Encoder` has them."""


class Agent(nn.Module):
    """World model, actor and critic, sized to the specs of one environment.

    Its parameters are the trained ones, its ``policy`` acts. The slow critic and the return normalizer belong to the
    `Learner`.

    Args:
        observation_spec: what the environment shows, without batch dimensions or with those of the spec itself.
        action_spec: one leaf or a `Composite` of leaves.
        size: numbers of units.
        dtype: precision computed in; parameters, statistics and losses are float32 all the same.
        unimix: share of the uniform distribution in the state.
        actor_unimix: share of the uniform distribution in discrete actions (0 in the official code, 0.01 in the paper).
        encoder: makes an encoder other than the official one from the spaces of the observations.
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        size: Size,
        dtype: torch.dtype = torch.float32,
        unimix: float = 0.01,
        actor_unimix: float = 0.0,
        encoder: MakeEncoder | None = None,
    ):
        super().__init__()
        if not isinstance(observation_spec, Composite):
            raise TypeError(
                f"observation_spec is a {type(observation_spec).__name__}: give the whole Composite, "
                "such as env.observation_spec_unbatched."
            )
        there = set(observation_spec.keys())
        primed = there.issuperset(LATENTS)  # all three: the agent's own primer put them there
        taken = sorted(there.intersection(WRITTEN if primed else (*WRITTEN, *LATENTS)))
        if taken:
            raise ValueError(
                f"The environment has an observation {taken[0]!r}, a name that the agent needs for itself: append "
                f"RenameTransform([{taken[0]!r}], ['observed_{taken[0]}']) to the environment."
            )
        self.spaces = spaces_from_spec(observation_spec, "observation", exclude=NOT_OBSERVED)
        self.image_order = [key for key in observation_spec.keys(True, True) if isinstance(self.spaces.get(key), Image)]
        """Images as the spec lists them, which is how the official decoder lays out its channels."""
        self.action_space = ActionSpace(action_spec, tuple(observation_spec.shape))
        self.size = size
        if encoder is None:
            self.encoder = Encoder(self.spaces, size.units, size.depth, dtype=dtype)
        else:
            self.encoder = _fitted(encoder(self.spaces), self.spaces)
        self.rssm = RSSM(
            self.action_space.size,
            self.encoder.out_features,
            size.belief,
            size.hidden,
            size.stochastic,
            size.classes,
            size.blocks,
            unimix,
        )
        features = self.rssm.feature_size
        self.decoder = Decoder(self.spaces, size.belief, self.rssm.state_size, size.units, size.depth)
        self.reward = TwoHotHead(features, size.units, layers=1)
        self.continuation = ContinueHead(features, size.units)
        self.actor = Actor(features, self.action_space, size.units, unimix=actor_unimix)
        self.value = TwoHotHead(features, size.units, layers=3)

    @property
    def policy(self) -> Policy:
        """The acting part, sharing this agent's weights."""
        return Policy(self.encoder, self.rssm, self.actor)

    @property
    def latent_spec(self) -> Composite:
        """What the policy carries from step to step, without batch dimensions."""
        rssm = self.rssm
        return Composite(
            belief=Unbounded((rssm.belief_size,)),
            state=Bounded(0, 1, (rssm.stochastic, rssm.classes)),
            previous_action=Unbounded((self.action_space.size,)),
        )

    def primer(self) -> TensorDictPrimer:
        """A transform that puts the latents into the environment's own specs and zeroes them at each reset."""
        return TensorDictPrimer(self.latent_spec.clone(), default_value=0.0, reset_key="_reset", expand_specs=True)


class Policy(TensorDictModuleBase):
    """Observation and latents in, action and latents out, for any batch shape.

    Latents that are missing start at zero, and where ``is_init`` is set they are forgotten. With TorchRL's exploration
    type RANDOM latents and actions are drawn (from ``generator``, torch's own if it is None), else both are modes.
    The new latents take the place of the old ones and so stay with the observation that they saw.
    """

    def __init__(self, encoder: Encoder, rssm: RSSM, actor: Actor, generator: torch.Generator | None = None):
        super().__init__()
        self.encoder, self.rssm, self.actor, self.generator = encoder, rssm, actor, generator
        self._native_step = NativeStep(rssm, actor)
        self.in_keys: list[NestedKey] = [*encoder.in_keys, "is_init", *LATENTS]
        self.out_keys: list[NestedKey] = [*actor.space.keys, *LATENTS]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write action, ``belief``, ``state`` and ``previous_action`` (the flat form of the action)."""
        if tensordict.get("is_init", None) is None:
            raise KeyError("The policy needs is_init to know where episodes start: append InitTracker() to the env.")
        encoded = self.encoder(*[self._observation(tensordict, key) for key in self.encoder.in_keys])
        belief, state, action = (rows_of(tensordict, key) for key in LATENTS)
        zeros, none = self.rssm.initial(len(encoded))
        belief, state, action = self.step(
            encoded,
            zeros.new_zeros(len(encoded), self.actor.space.size) if action is None else action,
            rows_of(tensordict, "is_init"),
            zeros if belief is None else belief,
            none if state is None else self.rssm.one_hot(state),
        )
        shape = tensordict.batch_size
        tensordict.set("belief", belief.float().reshape(*shape, -1))
        tensordict.set("state", state.float().reshape(*shape, *state.shape[1:]))
        tensordict.set("previous_action", action.reshape(*shape, -1))
        for key, value in self.actor.space.restore(tensordict["previous_action"]).items():
            tensordict.set(key, value)
        return tensordict

    def step(
        self,
        encoded: torch.Tensor,
        previous_action: torch.Tensor,
        is_init: torch.Tensor,
        belief: torch.Tensor,
        state: torch.Tensor,
        noise: torch.Tensor | None = None,
        action_noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step on plain tensors ``[N, ...]`` to belief, state and flat action; noise may be given."""
        explore = exploration_type() is ExplorationType.RANDOM
        if explore and noise is None:
            noise = torch.rand(len(belief), self.rssm.stochastic, generator=self.generator, device=belief.device)
        native = self.rssm.native and fits(encoded) and actor_fits(self.actor)
        native = native and self._native_step.takes(encoded, previous_action, belief, state)
        if explore and native and not torch.is_grad_enabled():
            if action_noise is None:
                action_noise = self.actor.space.noise(len(belief), generator=self.generator)
            return self._native_step(encoded, previous_action, ~is_init, belief, state, noise, action_noise)
        belief, sampled, logits = self.rssm(encoded, previous_action, is_init, belief, state, noise)
        state = sampled if noise is not None else OneHot(logits, self.rssm.unimix).mode.to(sampled.dtype)
        policy = self.actor.distribution(self.actor(features_of(belief, state)))
        if action_noise is None:
            if not explore:
                return belief, state, policy.mode
            action_noise = self.actor.space.noise(len(belief), generator=self.generator, device=belief.device)
        return belief, state, policy.sample(action_noise)

    def _observation(self, tensordict: TensorDictBase, key: NestedKey) -> torch.Tensor:
        value = rows_of(tensordict, key)
        if value is None:
            there = ", ".join(sorted(key_name(key) for key in tensordict.keys(True, True)))
            raise KeyError(f"The policy needs the observation {key_name(key)!r}, but the data holds {there}.")
        return value


def rows_of(tensordict: TensorDictBase, key: NestedKey) -> torch.Tensor | None:
    """An entry with one batch dimension, ``[N, ...]``; None if it is not there.

    Example:
        >>> from tensordict import TensorDict
        >>> rows_of(TensorDict({"reward": torch.ones(2, 3, 1)}, [2, 3]), "reward").shape
        torch.Size([6, 1])
    """
    value = tensordict.get(key, None)
    return value if value is None or tensordict.ndim == 1 else value.reshape(-1, *value.shape[tensordict.ndim :])


def build_agent(
    observation_spec: Composite,
    action_spec: TensorSpec,
    size: str | Size = "size1m",
    dtype: torch.dtype = torch.float32,
    unimix: float = 0.01,
    actor_unimix: float = 0.0,
    encoder: MakeEncoder | None = None,
) -> Agent:
    """Build an `Agent` for an environment; ``size`` is a name from ``configs/size`` or a `Size`.

    ``encoder`` makes one of your own from the spaces of the observations, for instance its class.

    Example:
        >>> from torchrl.data import Bounded, Composite, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((24,))), Bounded(-1, 1, (6,)), "size1m")
        >>> sum(parameter.numel() for parameter in agent.parameters())
        640867
    """
    size = Size.named(size) if isinstance(size, str) else size
    return Agent(observation_spec, action_spec, size, dtype, unimix, actor_unimix, encoder)


def _fitted(encoder: nn.Module, spaces: Mapping[NestedKey, Space]) -> nn.Module:
    """The encoder, which then knows what its keys hold, if it says what the rest of the agent asks it."""
    for name in ("in_keys", "out_features"):
        if not hasattr(encoder, name):
            raise TypeError(
                f"The encoder {type(encoder).__name__} has no {name}: give it in_keys (observation keys in the order "
                "in which forward takes them) and out_features (the width of its output)."
            )
    for key in encoder.in_keys:
        if key not in spaces:
            there = ", ".join(map(key_name, spaces))
            raise ValueError(f"The encoder reads {key_name(key)!r}, which is no observation: there are {there}.")
    encoder.spaces = {key: spaces[key] for key in encoder.in_keys}
    return encoder
