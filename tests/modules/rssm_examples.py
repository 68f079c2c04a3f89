"""A small RSSM and inputs for it, for the tests of its steps and of its sequences."""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.modules import RSSM

few = settings(max_examples=20, derandomize=True, deadline=None)
A, E, D, S, K, BLOCKS = 3, 5, 16, 4, 3, 4
F_SIZE = D + S * K


def model(dtype: torch.dtype = torch.float64, unimix: float = 0.01) -> RSSM:
    """A small RSSM without any parameter that is 0 or 1."""
    torch.manual_seed(0)
    rssm = RSSM(A, E, belief_size=D, hidden=6, stochastic=S, classes=K, blocks=BLOCKS, unimix=unimix)
    for parameter in rssm.parameters():
        nn.init.normal_(parameter, std=0.6)
    return rssm.to(dtype)


def one_hots(*batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.one_hot(torch.randint(K, (*batch, S)), K).to(dtype)


def step_inputs(*batch: int) -> tuple[Tensor, ...]:
    """Encoding, previous action, belief, state and noise, all random."""
    double = {"dtype": torch.float64}
    numbers = [torch.randn(*batch, size, **double) for size in (E, A, D)]
    return *numbers, one_hots(*batch), torch.rand(*batch, S, **double)
