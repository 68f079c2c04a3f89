"""Every number of an update, with its official name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hyperparameters:
    """The official numbers, all of them; official names in brackets where they differ."""

    context: int = 1  # replay_context
    imagination_length: int = 15  # imag_length
    horizon: float = 333
    discount_in_continue: bool = True  # contdisc
    return_lambda: float = 0.95  # imag_loss.lam
    replay_lambda: float = 0.95  # repl_loss.lam
    slow_target: bool = False  # imag_loss.slowtar
    slow_scale: float = 1.0  # imag_loss.slowreg and repl_loss.slowreg
    slow_rate: float = 0.02  # slowvalue.rate
    entropy_scale: float = 3e-4  # imag_loss.actent
    free_nats: float = 1.0
    reward_grad: bool = True
    replay_value_grad: bool = True  # repval_grad
    return_percentiles: tuple[float, float] = (5.0, 95.0)  # retnorm.perclo, perchi
    return_rate: float = 0.01  # retnorm.rate
    return_limit: float = 1.0  # retnorm.limit
    reconstruction_scale: float = 1.0  # loss_scales.rec
    reward_scale: float = 1.0  # loss_scales.rew
    continue_scale: float = 1.0  # loss_scales.con
    dynamics_scale: float = 1.0  # loss_scales.dyn
    representation_scale: float = 0.1  # loss_scales.rep
    actor_scale: float = 1.0  # loss_scales.policy
    value_scale: float = 1.0  # loss_scales.value
    replay_value_scale: float = 0.3  # loss_scales.repval
    learning_rate: float = 4e-5  # opt.lr
    betas: tuple[float, float] = (0.9, 0.999)  # opt.beta1, beta2
    eps: float = 1e-20  # opt.eps
    clip: float = 0.3  # opt.agc
    warmup: int = 1000  # opt.warmup
