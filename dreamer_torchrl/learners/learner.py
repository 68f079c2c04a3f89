"""Updates: losses, gradients, optimizer, target critic, and fresh latents for the replay."""

import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.backend import attach, decide
from dreamer_torchrl.agents.capturing import CudaGraphs
from dreamer_torchrl.learners.cuda_graph import CapturedUpdate, Outcome
from dreamer_torchrl.learners.distributed import Ranks
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.laprop import LaProp
from dreamer_torchrl.learners.losses import Networks, can_compile, make_behaviour, make_world_model_loss
from dreamer_torchrl.modules.heads import Cost
from dreamer_torchrl.modules.spaces import Continuous, Space
from dreamer_torchrl.objectives.action_mask import ActionMaskLoss
from dreamer_torchrl.objectives.actor_loss import ActorLoss
from dreamer_torchrl.objectives.batch import FLAG, check_steps
from dreamer_torchrl.objectives.common import Behaviour, DreamerLoss, ExtraLoss
from dreamer_torchrl.objectives.value import SlowUpdate, ValueLoss
from dreamer_torchrl.ranges import part

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Descent(NamedTuple):
    """One step of an optimizer."""

    losses: TensorDict  # and metrics
    data: TensorDictBase  # [B, T], with all that was computed
    gradient_norms: Tensor  # [P]
    finite: Tensor  # whether all of these are


class Learner:
    """Train an `Agent`: owns the losses, the target critic, the return normalizer, the optimizer and the noise.

    Args:
        agent: what is trained, on the device where it is to be trained.
        hyperparameters: those of ``train`` if left out.
        seed: of the noise; the same seed and batches give the same weights.
        compile: let ``torch.compile`` fuse networks and loops. None: on a GPU where Triton works.
        native: let kernels in C do the loops on a CPU. None: where they can be built.
        optimizer: from parameters to an optimizer, such as ``lambda params: Adam(params, lr=1e-4)``; `LaProp` if left
            out. One without LaProp's ``step_where`` costs a read of one flag in each update, and no CUDA graph.
        extra_losses: further ones (`ExtraLoss`); the parameters of those that are modules are trained, too.
        priorities: whether latents come with ``priority`` ``[B, T]``, the world model's loss of each step.
        cuda_graph: capture the update on a GPU. None: where it can be captured; otherwise a warning says why not.
        ranks: of several learners that share each batch: its parts are equally large, the noise is each one's own.

    Example:
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> learner = Learner(agent)
        >>> metrics, latents = learner.update(example_batch(agent, batch=2, length=4))
        >>> latents["belief"].shape, latents["state"].shape, latents["state"].dtype
        (torch.Size([2, 4, 256]), torch.Size([2, 4, 16]), torch.uint8)
    """

    imagined_gradient = False  # whether the actor's loss needs the gradient of imagined states
    world_model_options: Mapping[str, Any] = MappingProxyType({})  # of `WorldModelLoss`, beside the hyperparameters
    graphs: CudaGraphs | None = None  # on a GPU, after the first update
    captured: CapturedUpdate | None = None

    def __init__(
        self,
        agent: Agent,
        hyperparameters: Hyperparameters | None = None,
        seed: int = 0,
        compile: bool | None = None,
        native: bool | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
        extra_losses: Sequence[ExtraLoss] = (),
        priorities: bool = False,
        cuda_graph: bool | None = None,
        ranks: Ranks | None = None,
    ):
        self.ranks = ranks or Ranks()
        self.agent, self.hyperparameters = agent, hyperparameters or Hyperparameters()
        self.device = next(agent.parameters()).device
        self.native, self.priorities = decide(native, self.device), priorities
        compile = can_compile(self.device) if compile is None else compile
        length = self.hyperparameters.imagination_length
        self.networks = Networks.of(agent, length, compile, gradient=self.imagined_gradient)
        self.loss = loss = self.make_loss(compile)
        masks = [] if agent.mask is None else [ActionMaskLoss(agent.mask)]
        for term in (*masks, *extra_losses):
            if hasattr(term, "setup"):
                term.setup(self)
            loss.add(term)
        self.world_model_loss, self.actor_loss, self.value_loss = loss.world_model, loss.actor, loss.value
        behaviours = [term for term in loss.extra if isinstance(term, Behaviour)]
        actor_losses = [self.actor_loss, *(term.actor_loss for term in behaviours)]
        for module in (agent, loss, *(network for each in actor_losses for network in each.networks.values())):
            attach(module, self.native)
        scaled = [*(each.normalizer for each in actor_losses), *behaviours]
        self.normalizers = [buffer for each in scaled for buffer in each.buffers()]
        extra = self.loss.extra_modules.named_parameters("extra_losses")
        self.trained = dict(agent.named_parameters()) | {
            name: parameter for name, parameter in extra if not any(parameter is own for own in agent.parameters())
        }
        self.optimizer = (optimizer or self.make_optimizer)(self.trained.values())
        capturable = self.device.type == "cuda" and hasattr(self.optimizer, "step_where")
        if cuda_graph and not capturable:
            found = f"the agent is on {self.device} and its optimizer a {type(self.optimizer).__name__}"
            remedy = "it takes a GPU and an optimizer with step_where, such as LaProp."
            raise ValueError(f"cuda_graph=True, but {found}: {remedy}")
        self.must_capture, self.cuda_graph = bool(cuda_graph), capturable if cuda_graph is None else cuda_graph
        self.slow_update = self.make_target_update(self.value_loss)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        for module in (module for owner in (loss, *scaled) for module in owner.modules()):
            for name in ("gather", "gather_with_gradient"):
                if hasattr(module, name):
                    setattr(module, name, getattr(self.ranks, name))
        self.ranks.share([*agent.state_dict().values(), *loss.state_dict().values()])

    def make_loss(self, compile: bool) -> DreamerLoss:
        """The losses of each update; a subclass may change or `add` some."""
        options = {"priorities": self.priorities, **self.world_model_options}
        world_model_loss = make_world_model_loss(self.agent, self.networks, self.hyperparameters, **options)
        behaviour = self.make_behaviour(self.networks, self.agent.value.cost)
        return DreamerLoss(world_model_loss, *behaviour).to(self.device)

    def make_behaviour(self, networks: Networks, cost: Cost, replayed: bool = True) -> tuple[ActorLoss, ValueLoss]:
        """The losses of an actor and a critic, whose head has this ``cost``; without ``replayed``, in imagination."""
        h = self.hyperparameters
        return make_behaviour(networks, h if replayed else replace(h, replay_value_scale=0.0), cost)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> LaProp:
        h, on_gpu = self.hyperparameters, self.device.type == "cuda"
        rate = torch.tensor(h.learning_rate, dtype=torch.float64, device=self.device) if on_gpu else h.learning_rate
        options = {"warmup": h.warmup, "capturable": on_gpu, "native": self.native}
        return LaProp(parameters, rate, h.betas, h.eps, h.clip, **options)

    def make_target_update(self, value_loss: ValueLoss) -> SlowUpdate:
        return SlowUpdate(value_loss, self.hyperparameters.slow_rate)

    def update(self, batch: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """Learn from steps ``[B, context + T]``; returns metrics and latents ``[B, T]`` to write back to the replay.

        Where a loss or a gradient is not finite, the metric ``finite`` is 0 and nothing that is learned changes.
        """
        check_steps(batch, self._spaces(batch))
        if (device := next(self.agent.parameters()).device) != self.device:
            fault = f"The agent was moved from {self.device} to {device} after its Learner was built"
            remedy = "Move the agent first, then build the Learner and load its state_dict."
            raise RuntimeError(f"{fault}: the optimizer and the target critic stayed. {remedy}")
        with part("update"), torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            outcome = self._update_captured(batch) if self.cuda_graph else self.step(self._sent(batch))
        self.gradient_norms = outcome.gradient_norms
        return outcome.metrics, outcome.latents

    def step(self, batch: TensorDictBase) -> Outcome:
        """One update from an unchecked batch on the device, in place and without reading back, as CUDA graphs need."""
        self.zero_grad()
        before = [buffer.clone() for buffer in self.normalizers]
        losses, data, norms, finite = self.descend(batch, self.draw_noise(*batch.shape))
        self.slow_update.step(where=finite)
        for term in self.loss.extra:
            if isinstance(term, Behaviour):
                term.slow_update.step(where=finite)
        for now, then in zip(self.normalizers, before, strict=True):
            now.copy_(torch.where(finite, now, then))
        metrics = losses.detach().set("objective", total(losses).detach()).set("finite", finite.float())
        belief, state = data["belief"].detach(), data["state"].detach()
        latents = {"belief": belief.float(), "state": self.agent.rssm.latent.pack(state)}
        if self.priorities:
            latents["priority"] = data["priority"]
        self.zero_grad()
        return Outcome(metrics, TensorDict(latents, batch_size=data.batch_size), norms)

    def descend(self, batch: TensorDictBase, noise: TensorDictBase) -> Descent:
        """Step the optimizer from an unchecked batch on the device under given noise."""
        losses, data = self.losses(batch, noise)
        with part("backward"):
            total(losses).backward()
        self.with_gradient = [name for name, parameter in self.trained.items() if parameter.grad is not None]
        gradients = [self.trained[name].grad for name in self.with_gradient]
        losses = self.ranks.average(gradients, losses)
        norms = torch.stack(torch._foreach_norm(gradients))  # [P]
        finite = norms.isfinite().all() & total(losses).detach().isfinite()
        step_where(self.optimizer, finite)
        return Descent(losses, data, norms, finite)

    def _sent(self, batch: TensorDictBase) -> TensorDictBase:
        return batch.to(self.device, non_blocking=True)

    def zero_grad(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def _update_captured(self, batch: TensorDictBase) -> Outcome:
        """Update by a graph, captured anew for a batch of another form; where none can be captured, without."""
        if self.captured is None or not self.captured.fits(self, batch):
            self.graphs = self.graphs or CudaGraphs()
            self.captured = None  # the new graph needs its memory
            try:
                self.captured = CapturedUpdate(self, batch, self.graphs)
            except RuntimeError as error:
                if self.must_capture:
                    raise
                self.cuda_graph = False
                warnings.warn(f"Updates are slow, since no CUDA graph can hold them: {error}", stacklevel=3)
                return self.step(self._sent(batch))
        return self.captured(batch)

    def fault(self, metrics: TensorDictBase, gradient_norms: Tensor | None = None) -> str:
        """Name what was not finite in an update with these metrics and norms; the norms of the last one if left out."""
        losses = [key for key, value in metrics.items() if key.startswith("loss_") and not value.isfinite()]
        if losses:
            return ", ".join(sorted(losses))
        norms = self.gradient_norms if gradient_norms is None else gradient_norms
        bad = (~norms.isfinite()).nonzero().flatten().tolist()
        return "gradient of " + ", ".join(self.with_gradient[index] for index in bad[:5])

    def _spaces(self, batch: TensorDictBase) -> dict[NestedKey, Space]:
        rssm = self.agent.rssm
        acted = self.agent.action_space
        spaces = self.agent.spaces | acted.masks | acted.spaces | {"reward": Continuous((1,))}
        spaces |= dict.fromkeys(("is_init", "terminated", "done"), FLAG)
        if self.hyperparameters.context and self.world_model_loss.stored_latents:
            spaces |= {"belief": Continuous((rssm.belief_size,)), "state": rssm.latent.stored(batch.get("state", None))}
        return spaces

    def losses(self, batch: TensorDictBase, noise: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Losses and metrics of a batch under given noise, and the data with everything that was computed."""
        return self.loss(batch.copy().set("noise", noise))

    def draw_noise(self, batch: int, steps: int) -> TensorDict:
        """All randomness of an update of ``[batch, steps]``."""
        latent, length = self.agent.rssm.latent, self.hyperparameters.imagination_length
        how = {"generator": self.generator, "device": self.device}
        noise = {
            "posterior": latent.noise(batch, steps, **how),
            "prior": latent.noise(batch, steps, length, **how),
            "action": self.agent.action_space.noise(batch, steps, length, **how),
        }
        return TensorDict(noise, batch_size=[batch, steps])

    def state_dict(self) -> dict[str, Any]:
        extra = self.loss.extra_modules.state_dict()
        return {
            "agent": self.agent.state_dict(),
            "slow_value": self.slow_update.state_dict(),
            "return_normalizer": self.actor_loss.normalizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        } | ({"extra_losses": extra} if extra else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.slow_update.load_state_dict(state["slow_value"])
        self.actor_loss.normalizer.load_state_dict(state["return_normalizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_generator_state(self.generator, state["generator"])
        self.loss.extra_modules.load_state_dict(state.get("extra_losses", {}))


def set_generator_state(generator: torch.Generator, state: Tensor) -> None:
    """Go on with the random numbers of ``state``, or, from another kind of device, with ones that it seeds."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().tobytes()))


def step_where(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Step where ``finite``, without reading it back if the optimizer can."""
    with part("optimizer"):
        if hasattr(optimizer, "step_where"):
            optimizer.step_where(finite)
        elif finite:
            optimizer.step()


def total(losses: TensorDictBase) -> Tensor:
    return sum(value for key, value in losses.items() if key.startswith("loss_"))


def example_batch(agent: Agent, batch: int = 16, length: int = 64, seed: int = 0) -> TensorDict:
    """Random steps ``[batch, 1 + length]`` of the form that `Learner.update` takes, for examples and measurements."""
    generator = torch.Generator().manual_seed(seed)
    shape, rssm = (batch, 1 + length), agent.rssm
    steps = {key: space.random(shape, generator) for key, space in agent.spaces.items()}
    steps |= {key: space.random(shape, generator) for key, space in agent.action_space.masks.items()}
    steps |= {key: space.random(shape, generator) for key, space in agent.action_space.spaces.items()}
    flag = torch.rand(*shape, 3, generator=generator) < 0.01  # [B, 1 + T, 3]
    steps["reward"] = torch.randn(*shape, 1, generator=generator)
    steps["terminated"], steps["done"] = flag[..., :1], flag[..., :2].any(-1, keepdim=True)
    steps["is_init"] = torch.cat([flag[:, :1, 2:], steps["done"][:, :-1]], 1)
    steps["belief"] = torch.randn(*shape, rssm.belief_size, generator=generator).tanh()
    stored = rssm.latent.stored()
    steps["state"] = stored.random(shape, generator).to(stored.dtype)
    return TensorDict(steps, batch_size=shape)
