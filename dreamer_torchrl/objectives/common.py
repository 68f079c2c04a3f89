"""What the three losses share, and the three of them as one module."""

from collections.abc import Callable, Iterable
from dataclasses import fields, make_dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from dreamer_torchrl.objectives.batch import TRANSITIONS, check_keys, refuse_transitions
from dreamer_torchrl.ranges import part

ExtraLoss = Callable[[TensorDictBase], TensorDictBase]
"""From the data of an update to a TensorDict of ``loss_*``, which are summed up, and of metrics."""


def entries(names: str) -> type:
    """What TorchRL calls `_AcceptedKeys`: the entries that a loss reads and writes, each under its own name."""
    return make_dataclass("Entries", [(name, NestedKey, name) for name in names.split()])


class StepLoss(LossModule):
    """A `LossModule` on steps, whose losses are means over steps and whose errors name the remedy."""

    def set_keys(self, **keys: NestedKey | None) -> None:
        """Rename entries; None gives the default back."""
        known = [field.name for field in fields(self.default_keys)]
        for name, key in keys.items():
            if name not in known:
                near = "".join(f" Did you mean {match!r}?" for match in get_close_matches(name, known, 1))
                raise ValueError(f"{type(self).__name__} has no key {name!r}.{near} It has {', '.join(known)}.")
            if isinstance(key, tuple) and key[0] == "next":
                raise ValueError(f"{type(self).__name__}.set_keys({name}={key!r}) {TRANSITIONS}")
        super().set_keys(**keys)

    def make_value_estimator(self, value_type: Any = None, **hyperparameters: Any) -> NoReturn:
        remedy = "its lambda-return is set by horizon and return_lambda, arguments of ActorLoss and ValueLoss."
        raise NotImplementedError(f"{type(self).__name__} takes no value estimator: {remedy}")

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None: ...

    def check(self, data: TensorDictBase) -> None:
        refuse_transitions(data, type(self).__name__)
        check_keys(data, self.in_keys, type(self).__name__)

    def mean(self, loss: Tensor, data: TensorDictBase) -> Tensor:
        """Mean of ``[..., H]`` or ``[...]``, each step times the weight that a prioritized sampler gave it, if any."""
        weight = data.get(self.tensor_keys.priority_weight, None)
        if weight is None:
            return loss.mean()
        weight = weight.reshape(data.shape)
        weight = weight if loss.shape[: data.ndim] == data.shape else weight[..., :-1]  # the last step has no loss
        return (loss * weight.reshape(*weight.shape, *[1] * (loss.ndim - weight.ndim))).mean()


class BorrowingLoss(StepLoss):
    """A `StepLoss` that calls ``networks`` without training them: no submodules, they move with it all the same."""

    networks: dict[str, nn.Module]

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> "BorrowingLoss":
        for network in self.networks.values():
            network._apply(fn)
        return super()._apply(fn)


class Behaviour(nn.Module):
    """An extra loss with an actor and a critic of its own beside those of the task, such as an exploring one.

    ``setup(learner)`` makes its parts. ``stages`` are losses in the order in which they may be stepped, each a pair of
    the name of a part, whose parameters it trains, and a function from data to losses and data.
    """

    explorer: nn.Module  # the actor
    actor_loss: LossModule
    value_loss: LossModule
    slow_update: TargetNetUpdater
    stages: list[tuple[str, Callable[[TensorDictBase], tuple[TensorDict, TensorDictBase]]]]

    def forward(self, data: TensorDictBase) -> TensorDict:
        losses = TensorDict()
        for _, stage in self.stages:
            found, data = stage(data)
            losses.update(found)
        return losses


class DreamerLoss(nn.Module):
    """World model, actor and critic loss of one batch, each on what the one before wrote, and further ones (`add`)."""

    def __init__(self, world_model: LossModule, actor: LossModule, value: LossModule, extra: Iterable[ExtraLoss] = ()):
        super().__init__()
        self.world_model, self.actor, self.value = world_model, actor, value
        self.extra: list[ExtraLoss] = []
        self.extra_modules = nn.ModuleList()
        for loss in extra:
            self.add(loss)

    def add(self, loss: ExtraLoss) -> None:
        """One more loss on the data of all three: a function or a module, whose parameters are trained as well."""
        self.extra.append(loss)
        if isinstance(loss, nn.Module):
            self.extra_modules.append(loss)

    def forward(self, batch: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Steps ``[B, context + T]`` to all losses and metrics, and the data ``[B, T]`` with all that was computed."""
        with part("world model"):
            losses, data = self.world_model(batch)
        with part("actor"):
            actor, data = self.actor(data)
        with part("critic"):
            value, data = self.value(data)
        losses = losses.update(actor).update(value)
        for term in self.extra:
            found = term(data)
            if twice := set(found.keys()) & set(losses.keys()):
                raise ValueError(f"The extra loss {term} gives {', '.join(sorted(twice))}, which is there: rename it.")
            losses.update(found)
        return losses, data
