"""One update: losses, gradients, optimizer, slow critic, from a batch of steps to metrics and fresh latents."""

from __future__ import annotations

import copy
import shutil
import sysconfig
import warnings
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import nn

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.kernels.calls import decide, use_native
from dreamer_torchrl.learners.cuda_graph import CapturedUpdate, CudaGraphs, Outcome
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.laprop import LaProp
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence
from dreamer_torchrl.modules.spaces import Continuous, Discrete, Space
from dreamer_torchrl.modules.tensordict_module import TensorModule
from dreamer_torchrl.objectives.actor_loss import ActorLoss
from dreamer_torchrl.objectives.batch import FLAG, check_steps
from dreamer_torchrl.objectives.returns import ReturnNormalizer
from dreamer_torchrl.objectives.value import SlowUpdate, ValueLoss
from dreamer_torchrl.objectives.world_model import WorldModelLoss


class Learner:
    """Train an `Agent`: owns the losses, the slow critic, the return normalizer, the optimizer and the noise.

    Args:
        agent: what is trained.
        hyperparameters: the official ones if left out.
        seed: of the noise; the same seed and batches give the same weights.
        compile: let ``torch.compile`` fuse the networks and one step each of the two loops (never the unrolled loop);
            None for on a GPU where Triton can work.
        native: whether kernels in C do the loops where they can, which is on a CPU; None for where they can be built.

    Example:
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> learner = Learner(agent)
        >>> metrics, latents = learner.update(example_batch(agent, batch=2, length=4))
        >>> latents["belief"].shape, latents["state"].shape, latents["state"].dtype
        (torch.Size([2, 4, 256]), torch.Size([2, 4, 16]), torch.uint8)
    """

    _graphs: CudaGraphs | None = None  # on a GPU, after the first update
    _captured: CapturedUpdate | None = None
    _capturable = True  # until a capture failed

    def __init__(
        self,
        agent: Agent,
        hyperparameters: Hyperparameters | None = None,
        seed: int = 0,
        compile: bool | None = None,
        native: bool | None = None,
    ):
        h = hyperparameters or Hyperparameters()
        self.agent, self.hyperparameters = agent, h
        self.device = next(agent.parameters()).device
        native = decide(native, self.device)
        encoder, decoder, actor = agent.encoder, agent.decoder, agent.actor
        heads = [agent.reward, agent.continuation, agent.value]
        observe = ObserveSequence(agent.rssm)
        imagine = ImagineRollout(agent.rssm, actor, h.imagination_length)
        if can_compile(self.device) if compile is None else compile:
            observe.step, imagine.step = torch.compile(observe.step), torch.compile(imagine.step)
            encoder, decoder, actor, *heads = (compiled_twin(network) for network in (encoder, decoder, actor, *heads))
        reward = heads[0].tensordict_module(out_keys=("reward_logits", "predicted_reward"))
        continuation, value = (head.tensordict_module() for head in heads[1:])
        self.world_model_loss = WorldModelLoss(
            TensorModule(encoder, encoder.in_keys, ["encoded_latents"]),
            observe.tensordict_module(),
            decoder.tensordict_module(),
            reward,
            continuation,
            agent.spaces,
            agent.action_space,
            context=h.context,
            free_nats=h.free_nats,
            unimix=agent.rssm.unimix,
            horizon=h.horizon,
            discount_in_continue=h.discount_in_continue,
            reward_grad=h.reward_grad,
            scales={
                "reconstruction": h.reconstruction_scale,
                "reward": h.reward_scale,
                "continue": h.continue_scale,
                "dynamics": h.dynamics_scale,
                "representation": h.representation_scale,
            },
        )
        self.value_loss = ValueLoss(
            value,
            slow_scale=h.slow_scale,
            horizon=h.horizon,
            return_lambda=h.replay_lambda,
            replay_grad=h.replay_value_grad,
            scale=h.value_scale,
            replay_scale=h.replay_value_scale,
        )
        self.actor_loss = ActorLoss(
            imagine.tensordict_module(),
            actor.probabilistic_module(),
            reward,
            continuation,
            value,
            slow_value=self.value_loss.slow_value() if h.slow_target else None,
            horizon=h.horizon,
            discount_in_continue=h.discount_in_continue,
            return_lambda=h.return_lambda,
            entropy_scale=h.entropy_scale,
            scale=h.actor_scale,
            normalizer=ReturnNormalizer(h.return_percentiles, h.return_rate, h.return_limit),
        )
        for loss in (self.world_model_loss, self.actor_loss, self.value_loss):
            loss.to(self.device)
        for module in (agent, imagine, self.world_model_loss, self.actor_loss, self.value_loss):
            use_native(module, native)
        self.optimizer = LaProp(
            agent.parameters(),
            h.learning_rate,
            h.betas,
            h.eps,
            h.clip,
            warmup=h.warmup,
            capturable=self.device.type == "cuda",
            native=native,
        )
        self.slow_update = SlowUpdate(self.value_loss, h.slow_rate)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def update(self, batch: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """Learn from steps ``[B, context + T]``.

        Returns the metrics (0-dim tensors; the objective is the sum of its ``loss_*``) and the latents ``[B, T]`` to
        write back to the replay: ``belief`` and the class indices of ``state``, one byte each.

        Where a loss or a gradient is not finite, the metric ``finite`` is 0 and nothing that is learned changes.
        """
        check_steps(batch, self._spaces(batch))
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                outcome = self._update_captured(batch)
        else:
            outcome = self.step(batch.to(self.device))
        self.gradient_norms = outcome.gradient_norms
        return outcome.metrics, outcome.latents

    def step(self, batch: TensorDictBase) -> Outcome:
        """One update from a batch on the device, which is not checked.

        It reads no value back and changes all that is learned in place, so that a CUDA graph can repeat it.
        """
        normalizer = list(self.actor_loss.normalizer.buffers())
        before = [buffer.clone() for buffer in normalizer]
        losses, data = self.losses(batch, self.draw_noise(*batch.shape))
        objective = total(losses)
        objective.backward()
        norms = torch.stack(torch._foreach_norm([p.grad for p in self._with_gradient()]))  # [P]
        finite = norms.isfinite().all() & objective.detach().isfinite()
        self.optimizer.step(where=finite)
        self.slow_update.step(where=finite)
        for now, then in zip(normalizer, before, strict=True):
            now.copy_(torch.where(finite, now, then))
        metrics = losses.detach().set("objective", objective.detach()).set("finite", finite.float())
        state = data["state"].detach().argmax(-1).to(torch.uint8)
        latents = TensorDict({"belief": data["belief"].detach().float(), "state": state}, batch_size=data.batch_size)
        self.optimizer.zero_grad()
        return Outcome(metrics, latents, norms)

    def _update_captured(self, batch: TensorDictBase) -> Outcome:
        """Update by a graph; a batch of another form takes the time of another capture.

        Where nothing can be captured, which the first attempt shows, updates are launched one by one.
        """
        if self._capturable and (self._captured is None or not self._captured.fits(self, batch)):
            self._graphs = self._graphs or CudaGraphs()
            self._captured = None  # the new graph needs its memory
            try:
                self._captured = CapturedUpdate(self, batch, self._graphs)
            except RuntimeError as error:
                self._capturable = False
                warnings.warn(f"Updates are slow, since no CUDA graph can hold them: {error}", stacklevel=3)
        return self._captured(batch) if self._captured else self.step(batch.to(self.device))

    def fault(self, metrics: TensorDictBase) -> str:
        """Name what was not finite in the last update, whose metrics these are."""
        losses = [key for key, value in metrics.items() if key.startswith("loss_") and not value.isfinite()]
        if losses:
            return ", ".join(sorted(losses))
        names = [name for name, parameter in self.agent.named_parameters() if parameter.requires_grad]
        bad = (~self.gradient_norms.isfinite()).nonzero().flatten().tolist()
        return "gradient of " + ", ".join(names[index] for index in bad[:5])

    def _with_gradient(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.agent.parameters() if parameter.grad is not None]

    def _spaces(self, batch: TensorDictBase) -> dict[NestedKey, Space]:
        """What a batch must hold."""
        rssm = self.agent.rssm
        spaces = self.agent.spaces | self.agent.action_space.spaces | {"reward": Continuous((1,))}
        spaces |= dict.fromkeys(("is_init", "terminated", "done"), FLAG)
        if self.hyperparameters.context:
            state = batch.get("state", None)
            one_hot = state is not None and state.is_floating_point()
            shape = (rssm.stochastic, rssm.classes) if one_hot else (rssm.stochastic,)
            stored = Discrete((rssm.classes,) * rssm.stochastic, shape, torch.uint8, one_hot)
            spaces |= {"belief": Continuous((rssm.belief_size,)), "state": stored}
        return spaces

    def losses(self, batch: TensorDictBase, noise: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """All losses and metrics of a batch under given noise, and the data with everything that was computed."""
        world_model, data = self.world_model_loss(batch.copy().set("noise", noise))
        actor, data = self.actor_loss(data)
        value, data = self.value_loss(data)
        return world_model.update(actor).update(value), data

    def draw_noise(self, batch: int, steps: int) -> TensorDict:
        """All randomness of an update of ``[batch, steps]``: uniforms for states, the actor's noise for actions."""
        variables, length = self.agent.rssm.stochastic, self.hyperparameters.imagination_length
        uniform = {"generator": self.generator, "device": self.device}
        noise = {
            "posterior": torch.rand(batch, steps, variables, **uniform),
            "prior": torch.rand(batch, steps, length, variables, **uniform),
            "action": self.agent.action_space.noise(batch, steps, length, **uniform),
        }
        return TensorDict(noise, batch_size=[batch, steps])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, each thing once."""
        return {
            "agent": self.agent.state_dict(),
            "slow_value": dict(self.slow_update.slow),
            "return_normalizer": self.actor_loss.normalizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.agent.load_state_dict(state["agent"])
        for key, value in self.slow_update.slow.items():
            value.copy_(state["slow_value"][key])
        self.actor_loss.normalizer.load_state_dict(state["return_normalizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_generator_state(self.generator, state["generator"])


def compiled_twin(network: nn.Module) -> nn.Module:
    """The same network, compiled: all parameters are shared, and whoever acts with the first one does as without it."""
    twin = copy.copy(network)
    twin.compile()
    return twin


def can_compile(device: torch.device) -> bool:
    """Whether compiling is worth its minute: on a GPU, with Triton and the C compiler and headers that it needs."""
    compilers = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return device.type == "cuda" and find_spec("triton") is not None and compilers and headers


def set_generator_state(generator: torch.Generator, state: torch.Tensor) -> None:
    """Go on with the random numbers of ``state``, or, where it comes from another kind of device, with ones it seeds.

    Example:
        >>> generator, other = torch.Generator(), torch.Generator()
        >>> set_generator_state(other, generator.get_state())
        >>> torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other))
        True
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().tobytes()))


def total(losses: TensorDictBase) -> torch.Tensor:
    """The objective: the sum of all ``loss_*``."""
    return sum(value for key, value in losses.items() if key.startswith("loss_"))


def example_batch(agent: Agent, batch: int = 16, length: int = 64, seed: int = 0) -> TensorDict:
    """Random steps ``[batch, 1 + length]`` of the form that `Learner.update` takes, for examples and measurements."""
    generator = torch.Generator().manual_seed(seed)
    shape, rssm = (batch, 1 + length), agent.rssm
    steps = {key: space.random(shape, generator) for key, space in agent.spaces.items()}
    steps |= {key: space.random(shape, generator) for key, space in agent.action_space.spaces.items()}
    flag = torch.rand(*shape, 3, generator=generator) < 0.01  # [B, 1 + T, 3]
    steps["reward"] = torch.randn(*shape, 1, generator=generator)
    steps["terminated"], steps["done"] = flag[..., :1], flag[..., :2].any(-1, keepdim=True)
    steps["is_init"] = torch.cat([flag[:, :1, 2:], steps["done"][:, :-1]], 1)
    steps["belief"] = torch.randn(*shape, rssm.belief_size, generator=generator).tanh()
    steps["state"] = torch.randint(rssm.classes, (*shape, rssm.stochastic), generator=generator, dtype=torch.uint8)
    return TensorDict(steps, batch_size=shape)
