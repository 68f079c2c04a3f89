"""The numbers of an update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from dreamer_torchrl.limits import Within

Share = Annotated[float, Within(ge=0, le=1)]
Scale = Annotated[float, Within(ge=0)]
Percent = Annotated[float, Within(ge=0, le=100)]
Beta = Annotated[float, Within(ge=0, lt=1)]


@dataclass(frozen=True)
class Hyperparameters:
    """All numbers of an update, described in ``configs/config.yaml``, whose defaults are the same.

    Names of the official code stand in brackets where they differ; `official` has its numbers.
    """

    learning_rate: Scale = 1e-3  # opt.lr
    warmup: Annotated[int, Within(ge=0)] = 1000  # opt.warmup
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # opt.beta1, beta2
    eps: Annotated[float, Within(gt=0)] = 1e-20  # opt.eps
    clip: Annotated[float, Within(gt=0, allow_inf_nan=True)] = 0.3  # opt.agc
    context: Annotated[int, Within(ge=0, le=1)] = 1  # replay_context
    imagination_length: Annotated[int, Within(ge=1)] = 15  # imag_length
    horizon: Annotated[float, Within(ge=1)] = 100.0
    discount_in_continue: bool = True  # contdisc
    return_lambda: Share = 0.95  # imag_loss.lam
    replay_lambda: Share = 0.95  # repl_loss.lam
    slow_target: bool = False  # imag_loss.slowtar
    slow_scale: Scale = 1.0  # imag_loss.slowreg and repl_loss.slowreg
    slow_rate: Share = 0.02  # slowvalue.rate
    entropy_scale: Scale = 3e-3  # imag_loss.actent
    free_nats: Scale = 1.0
    reward_grad: bool = True
    replay_value_grad: bool = True  # repval_grad
    return_percentiles: tuple[Percent, Percent] = (5.0, 95.0)  # retnorm.perclo, perchi
    return_rate: Share = 0.01  # retnorm.rate
    return_limit: Annotated[float, Within(gt=0)] = 1.0  # retnorm.limit
    reconstruction_scale: Scale = 1.0  # loss_scales.rec
    reward_scale: Scale = 1.0  # loss_scales.rew
    continue_scale: Scale = 1.0  # loss_scales.con
    dynamics_scale: Scale = 1.0  # loss_scales.dyn
    representation_scale: Scale = 0.1  # loss_scales.rep
    actor_scale: Scale = 1.0  # loss_scales.policy
    value_scale: Scale = 1.0  # loss_scales.value
    replay_value_scale: Scale = 0.3  # loss_scales.repval

    def __post_init__(self) -> None:
        low, high = self.return_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"return_percentiles=[{low}, {high}] is impossible: give a lower and a higher, 0 to 100.")

    @classmethod
    def official(cls) -> Hyperparameters:
        return replace(cls(), learning_rate=4e-5, horizon=333.0, entropy_scale=3e-4)
