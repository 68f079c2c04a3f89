"""The loss of the critic, on imagined and on replayed returns, and its target network."""

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModule, TensorDictParams
from torch import Tensor
from torchrl.objectives.utils import TargetNetUpdater

from dreamer_torchrl.modules.heads import Cost, TwoHotCost
from dreamer_torchrl.modules.tensordict_module import TensorModule
from dreamer_torchrl.objectives.common import StepLoss, entries
from dreamer_torchrl.objectives.returns import lambda_return


class ValueLoss(StepLoss):
    """Train the critic on imagination and on replay; the target critic is its target parameters.

    Step a ``torchrl.objectives.SoftUpdate(value_loss, tau=0.02)`` after each update. The replay term needs sequences
    ``[B, T]`` with rewards and ``bootstrap``.

    Args:
        value: head on ``features``.
        slow_scale: weight of the regularizer towards the target critic (``slowreg``).
        horizon, return_lambda: of the replay return; gamma is 1 - 1 / horizon.
        replay_grad: whether the replay term has a gradient for the latents, and so the model (``repval_grad``).
        scale, replay_scale: of the two terms; a ``replay_scale`` of 0 leaves the replay term out.
        cost: loss of the head (`Head.cost`); two-hot if left out.

    Example:
        >>> from dreamer_torchrl import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> loss = ValueLoss(agent.value.tensordict_module(), replay_scale=0)
        >>> target = torch.ones(2, 6, 1)
        >>> imagined = {"features": torch.ones(2, 6, 320), "lambda_target": target, "discount_weight": target}
        >>> losses, _ = loss(TensorDict(imagination=TensorDict(imagined, batch_size=[2, 6]), batch_size=[2]))
        >>> losses["loss_value"].backward()
    """

    class _AcceptedKeys(
        entries(
            "imagination bootstrap features reward terminated done state_value state_value_logits "
            "lambda_target discount_weight priority_weight"
        )
    ): ...

    default_keys = _AcceptedKeys
    value: TensorDictModule
    value_params: TensorDictParams
    target_value_params: TensorDictParams

    def __init__(
        self,
        value: TensorDictModule,
        *,
        slow_scale: float = 1.0,
        horizon: float = 333,
        return_lambda: float = 0.95,
        replay_grad: bool = True,
        scale: float = 1.0,
        replay_scale: float = 0.3,
        cost: Cost | None = None,
    ):
        super().__init__()
        self.convert_to_functional(value, "value", create_target_params=True)
        self.slow_scale, self.return_lambda, self.replay_grad = slow_scale, return_lambda, replay_grad
        self.gamma, self.scale, self.replay_scale = 1 - 1 / horizon, scale, replay_scale
        self.cost = TwoHotCost() if cost is None else cost

    @property
    def in_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        replay = [keys.features, keys.reward, keys.terminated, keys.done, keys.bootstrap] if self.replay_scale else []
        imagined = [keys.features, keys.lambda_target, keys.discount_weight]
        return [*(unravel_key((keys.imagination, key)) for key in imagined), *replay]

    @property
    def out_keys(self) -> list[str]:
        return ["loss_value", "loss_replay_value"] if self.replay_scale else ["loss_value"]

    def forward(self, tensordict: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        self.check(tensordict)
        imagined = self._imagined(tensordict.get(self.tensor_keys.imagination))  # [..., H]
        losses = {"loss_value": self.mean(imagined, tensordict) * self.scale}
        if self.replay_scale:
            replayed = self._replayed(tensordict)  # [B, T - 1]
            losses["loss_replay_value"] = self.mean(replayed, tensordict) * self.replay_scale
        return TensorDict(losses), tensordict

    def slow_value(self) -> TensorDictModule:
        """The target critic as a module of its own, for `ActorLoss`; its parameters stay the loss's."""
        keys = self.tensor_keys
        return TensorModule(self._slow, [keys.features], [keys.state_value_logits, keys.state_value])

    def _imagined(self, imagined: TensorDictBase) -> Tensor:
        keys = self.tensor_keys
        logits = imagined.get(keys.state_value_logits, None)
        if logits is None:
            features = imagined.get(keys.features).detach()
            logits = self._predict(self.value_params, features).get(keys.state_value_logits)
        slow, target = self.predict_slow(imagined.get(keys.features))[1], imagined.get(keys.lambda_target)
        weight = imagined.get(keys.discount_weight).squeeze(-1)
        loss = self._loss(logits, target, slow)
        return (weight.detach() * loss)[..., :-1]  # the last step has a value, but no return

    def _replayed(self, data: TensorDictBase) -> Tensor:
        keys = self.tensor_keys
        if data.ndim != 2 or data.shape[1] < 2:
            found = f"needs sequences [B, T] of at least 2 steps, the data is {list(data.shape)}"
            raise ValueError(f"The replay term {found}: give it so, or leave the term out with replay_scale=0.")
        features = data.get(keys.features)  # [B, T, F]
        features = features if self.replay_grad else features.detach()
        logits = self._predict(self.value_params, features).get(keys.state_value_logits)
        slow = self.predict_slow(features.detach())[1]
        reward, bootstrap = data.get(keys.reward).squeeze(-1), data.get(keys.bootstrap).squeeze(-1)  # [B, T]
        terminated, done = (data.get(key).squeeze(-1).to(logits.dtype) for key in (keys.terminated, keys.done))
        returns = replay_return(reward, bootstrap, terminated, done, self.gamma, self.return_lambda).unsqueeze(-1)
        return (1 - done[:, :-1]) * self._loss(logits[:, :-1], returns, slow[:, :-1])

    def _loss(self, logits: Tensor, target: Tensor, slow: Tensor) -> Tensor:
        """The head's loss to the return and, as a regularizer, to the target critic's value, ``[..., 1]`` each."""
        return self.cost(logits, torch.cat([target, slow], -1), (1.0, self.slow_scale))

    def _predict(self, params: TensorDictParams, features: Tensor) -> TensorDictBase:
        data = TensorDict({self.tensor_keys.features: features}, batch_size=features.shape[:-1])
        # The module is only borrowed: put back with its state preserved, target parameters would come to require grad.
        with params.to_module(self.value, preserve_module_state=False):
            return self.value(data)

    @torch.no_grad()
    def predict_slow(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and value of the target critic, ``[..., bins]`` and ``[..., 1]``."""
        return self._slow(features)

    def _slow(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """With the gradient of features, if they have one."""
        found = self._predict(self.target_value_params, features)
        return found.get(self.tensor_keys.state_value_logits), found.get(self.tensor_keys.state_value)


def replay_return(
    reward: Tensor, bootstrap: Tensor, terminated: Tensor, done: Tensor, gamma: float, return_lambda: float
) -> Tensor:
    """Lambda-return ``[B, T - 1]`` of a recorded sequence, which bootstraps from the imagined return of each step."""
    discount, lambda_ = (1 - terminated[:, 1:]) * gamma, return_lambda * (1 - done[:, 1:])
    return lambda_return(reward[:, 1:], bootstrap[:, 1:], discount, lambda_)


class SlowUpdate(TargetNetUpdater):
    """TorchRL's `SoftUpdate` and `HardUpdate` in one operation; the loss may not move any more.

    Nothing is read back: not the mask of a `step`, nor the number of updates.

    Args:
        tau: share of the critic in an update.
        every: updates of the critic per update of the target; its number, ``updates``, is a tensor.
        copy_first: the first update copies the critic whole, whatever ``tau`` (V2).
    """

    def __init__(self, value_loss: ValueLoss, tau: float, every: int = 1, copy_first: bool = False):
        super().__init__(value_loss)
        slow, fast = value_loss.target_value_params.data, value_loss.value_params
        self.slow = {".".join(key): value for key, value in slow.items(True, True)}  # looked up once: it takes long
        self.fast = [fast.get(key) for key in slow.keys(True, True)]  # parameters: their data may be exchanged
        self.tau, self.every, self.copy_first = tau, every, copy_first
        counted = every > 1 or copy_first
        self.updates = torch.zeros((), dtype=torch.int64, device=self.fast[0].device) if counted else None

    @torch.no_grad()
    def step(self, where: Tensor | None = None) -> None:
        weight = self.tau if where is None else [where * self.tau] * len(self.fast)
        if self.updates is not None:
            tau = torch.where(self.updates == 0, 1.0, self.tau) if self.copy_first else self.tau
            now = (self.updates % self.every == 0) * tau * (1 if where is None else where)
            weight = [now.to(self.fast[0].dtype)] * len(self.fast)
            self.updates += 1 if where is None else where
        torch._foreach_lerp_(list(self.slow.values()), self.fast, weight)

    def state_dict(self) -> dict[str, Tensor]:
        return self.slow | ({} if self.updates is None else {"updates": self.updates})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` gave into the target, in place."""
        for key, value in self.state_dict().items():
            value.copy_(state[key])
