"""Updates of world model, actor and critic with a loss and an optimizer group each, as in DreamerV1 and V2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.adam import ClippedAdam
from dreamer_torchrl.learners.distributed import Ranks
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.learner import Descent, Learner, step_where, total
from dreamer_torchrl.learners.losses import Networks, same
from dreamer_torchrl.modules.heads import Cost
from dreamer_torchrl.objectives.common import Behaviour, ExtraLoss
from dreamer_torchrl.objectives.dynamics import DynamicsActorLoss
from dreamer_torchrl.objectives.returns import RewardNormalizer
from dreamer_torchrl.objectives.value import SlowUpdate, ValueLoss
from dreamer_torchrl.ranges import part

Shared = float | Mapping[str, float]  # one for all groups, or by the name of a group
ROLES = {"explorer": "actor", "critic": "value"}  # whose numbers the parts of a behaviour have
LossStage = Callable[[TensorDictBase], tuple[TensorDict, TensorDictBase]]


class SeparateLearner(Learner):
    """A `Learner` whose world model, actor and critic share no loss: each has its own group of a `ClippedAdam`.

    Of the `Hyperparameters` it does not read those of LaProp, of the return normalizer and of the replayed critic loss.

    Args:
        rates: learning rates of ``model``, ``actor`` and ``value``, and ``ensemble`` (the model's, if left out).
        adam_eps, max_norm, decay: ``eps``, ``clip`` and ``decay`` of `ClippedAdam`, or of each of ``rates``.
        model_first: whether imagination uses the world model after its step (DreamerV2), or before it (V1).
        gradient_mix: ``mix`` of `DynamicsActorLoss`; None: 0 (REINFORCE) where all actions are classes, else 1.
        imagined_start, true_start, last_start: ``start`` and so on of `DynamicsActorLoss`.
        target_every: updates between two copies of the critic to its target network; 0: no target network.
        target_fraction: share of the critic in the new target network.
        free_average, stored_latents, reward_tanh, continue_grad: see `WorldModelLoss`.
        reward_momentum, reward_factor: ``momentum`` and ``scale`` of the `RewardNormalizer` of imagined rewards.

    Example:
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from dreamer_torchrl.learners.learner import example_batch
        >>> from torchrl.data import Bounded, Composite, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), Bounded(-1, 1, (2,)), "nano")
        >>> learner = SeparateLearner(agent, rates={"model": 1e-3, "actor": 1e-4, "value": 1e-4})
        >>> metrics, latents = learner.update(example_batch(agent, batch=2, length=4))
        >>> bool(metrics["finite"])
        True
    """

    def __init__(
        self,
        agent: Agent,
        hyperparameters: Hyperparameters | None = None,
        seed: int = 0,
        compile: bool | None = None,
        native: bool | None = None,
        *,
        rates: Mapping[str, float],
        adam_eps: Shared = 1e-5,
        max_norm: Shared = 100.0,
        decay: Shared = 0.0,
        model_first: bool = True,
        gradient_mix: float | None = None,
        imagined_start: bool = True,
        true_start: bool = True,
        last_start: bool = True,
        target_every: int = 100,
        target_fraction: float = 1.0,
        free_average: bool = True,
        stored_latents: bool = False,
        reward_tanh: bool = False,
        continue_grad: bool = True,
        reward_momentum: float = 1.0,
        reward_factor: float = 1.0,
        extra_losses: Sequence[ExtraLoss] = (),
        priorities: bool = False,
        cuda_graph: bool | None = None,
        ranks: Ranks | None = None,
    ):
        if missing := {"model", "actor", "value"} - set(rates):
            raise ValueError(f"rates has no {', '.join(sorted(missing))}: give one of model, actor and value each.")
        self.adam = {"lr": rates, "eps": adam_eps, "clip": max_norm, "decay": decay}
        self.model_first, self.target_every, self.target_fraction = model_first, target_every, target_fraction
        if gradient_mix is None:
            gradient_mix = 0.0 if all(classes for _, classes in agent.action_space.parts) else 1.0
        self.imagination = {
            "mix": gradient_mix,
            "start": imagined_start,
            "true_start": true_start,
            "last_start": last_start,
        }
        self.reward_normalizer = {"momentum": reward_momentum, "scale": reward_factor}
        self.imagined_gradient = gradient_mix > 0
        self.world_model_options = {
            "free_average": free_average,
            "stored_latents": stored_latents,
            "reward_tanh": reward_tanh,
            "continue_grad": continue_grad,
        }
        options = {"extra_losses": extra_losses, "priorities": priorities, "cuda_graph": cuda_graph, "ranks": ranks}
        super().__init__(agent, hyperparameters, seed, compile, native, **options)

    def make_behaviour(
        self, networks: Networks, cost: Cost, replayed: bool = False
    ) -> tuple[DynamicsActorLoss, ValueLoss]:
        """See `Learner`; no critic learns from replayed steps here."""
        h = self.hyperparameters
        value_loss = ValueLoss(networks.value, slow_scale=0.0, scale=h.value_scale, replay_scale=0.0, cost=cost)
        actor_loss = DynamicsActorLoss(
            *(networks.imagine, networks.actor, networks.reward, networks.continuation, networks.value),
            slow_value=value_loss.slow_value() if self.target_every else None,
            **same(h, "horizon", "discount_in_continue", "return_lambda", "entropy_scale"),
            scale=h.actor_scale,
            normalizer=RewardNormalizer(**self.reward_normalizer),
            **self.imagination,
        )
        return actor_loss, value_loss

    def make_target_update(self, value_loss: ValueLoss) -> SlowUpdate:
        return SlowUpdate(value_loss, self.target_fraction, every=self.target_every or 1, copy_first=True)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> ClippedAdam:
        self.groups: dict[str, list[str]] = {}
        for name in self.trained:
            self.groups.setdefault(self._group(name), []).append(name)
        on_gpu, groups = self.device.type == "cuda", []
        for group, names in self.groups.items():
            part = group.rpartition(".")[-1]
            role = ROLES.get(part, part)
            formula = {name: _share(value, role) for name, value in self.adam.items()}
            if on_gpu:
                formula["lr"] = torch.tensor(formula["lr"], dtype=torch.float64, device=self.device)
            groups.append({"params": [self.trained[name] for name in names], **formula})
        return ClippedAdam(groups, capturable=on_gpu)

    def _group(self, name: str) -> str:
        """Actor and critic, and each part of a behaviour, have a group of their own; all else is the model's."""
        first, *rest = name.split(".")
        if first == "extra_losses" and isinstance(self.loss.extra_modules[int(rest[0])], Behaviour):
            return f"extra_losses.{rest[0]}.{rest[1]}"
        return first if first in ("actor", "value") else "model"

    def descend(self, batch: TensorDictBase, noise: TensorDictBase) -> Descent:
        """Each loss is stepped before the next one, or, unless ``model_first``, all of them at the end."""
        self.with_gradient, norms, finite = [], [], torch.ones((), dtype=torch.bool, device=self.device)
        losses, data = TensorDict(), batch.copy().set("noise", noise)
        for group, loss in self.stages():
            with part(group):
                more, data = loss(data)
                group_norms, more = self.differentiate(group, more)
            norms.append(group_norms)
            finite = finite & norms[-1].isfinite().all() & total(more).detach().isfinite()
            losses.update(more.detach())
            data = data.detach()
            if self.model_first:
                step_where(self.optimizer, finite)
                self.zero_grad()
        if not self.model_first:
            step_where(self.optimizer, finite)
        return Descent(losses, data, torch.cat(norms), finite)

    def stages(self) -> list[tuple[str, LossStage]]:
        """Groups of parameters in the order in which they learn, each with its loss."""
        stages = [("model", self._model), ("actor", self.actor_loss), ("value", self.value_loss)]
        for index, term in enumerate(self.loss.extra_modules):
            if isinstance(term, Behaviour):
                stages += [(f"extra_losses.{index}.{part}", loss) for part, loss in term.stages]
        return stages

    def _model(self, batch: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        losses, data = self.world_model_loss(batch)
        for term in self.loss.extra:
            if not isinstance(term, Behaviour):
                losses.update(term(data))
        return losses, data

    def differentiate(self, group: str, losses: TensorDictBase) -> tuple[Tensor, TensorDictBase]:
        """Give the parameters of a group the gradients of their own losses; norms ``[P]``, and the losses."""
        names = self.groups[group]
        gradients = torch.autograd.grad(total(losses), [self.trained[name] for name in names], allow_unused=True)
        found = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        for name, gradient in found.items():
            self.trained[name].grad = gradient
        self.with_gradient += found
        losses = self.ranks.average([*found.values()], losses)
        return torch.stack(torch._foreach_norm(list(found.values()))), losses


def _share(value: Shared, role: str) -> float:
    return value.get(role, value["model"]) if isinstance(value, Mapping) else value
