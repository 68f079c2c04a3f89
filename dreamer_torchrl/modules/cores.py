"""The recurrences of DreamerV1 and V2, each after one hidden layer on state and action."""

import torch
from torch import Tensor, nn

from dreamer_torchrl.modules.layers import KERAS_EPS, DenseLinear, Layers, dense_layers


class HiddenInputCore(nn.Module):
    """A recurrence whose ``inputs`` are one hidden layer on state and action."""

    def __init__(
        self,
        belief_size: int,
        state_size: int,
        action_size: int,
        hidden: int,
        layers: Layers = dense_layers(),  # noqa: B008
    ):
        super().__init__()
        self.belief_size = belief_size
        self.inputs = layers.hidden(state_size + action_size, hidden)
        self.make_recurrence(belief_size, hidden)

    def make_recurrence(self, belief_size: int, hidden: int) -> None:
        """What a subclass adds."""
        raise NotImplementedError


class PlainGRU(HiddenInputCore):
    """DreamerV1's recurrence: a GRU without norms.

    Example:
        >>> core = PlainGRU(belief_size=16, state_size=6, action_size=2, hidden=8)
        >>> core(torch.zeros(5, 16), torch.zeros(5, 6), torch.zeros(5, 2)).shape
        torch.Size([5, 16])
    """

    def make_recurrence(self, belief_size: int, hidden: int) -> None:
        self.gru = nn.GRUCell(hidden, belief_size)
        nn.init.xavier_uniform_(self.gru.weight_ih)
        nn.init.orthogonal_(self.gru.weight_hh)
        nn.init.zeros_(self.gru.bias_ih)
        nn.init.zeros_(self.gru.bias_hh)

    def forward(self, belief: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """``[N, D]``, ``[N, S*K]``, ``[N, A]`` to the next belief ``[N, D]``."""
        return self.gru(self.inputs(torch.cat([state, action], -1)), belief)


class LayerNormGRU(HiddenInputCore):
    """DreamerV2's recurrence: a GRU of one matrix, whose three parts share a layer norm.

    Example:
        >>> core = LayerNormGRU(belief_size=16, state_size=6, action_size=2, hidden=8)
        >>> core(torch.zeros(5, 16), torch.zeros(5, 6), torch.zeros(5, 2)).shape
        torch.Size([5, 16])
    """

    def make_recurrence(self, belief_size: int, hidden: int) -> None:
        self.gates = DenseLinear(hidden + belief_size, 3 * belief_size)
        self.norm = nn.LayerNorm(3 * belief_size, eps=KERAS_EPS)

    def forward(self, belief: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """``[..., D]``, ``[..., S*K]``, ``[..., A]`` to the next belief ``[..., D]``."""
        inputs = self.inputs(torch.cat([state, action], -1))
        reset, candidate, update = self.norm(self.gates(torch.cat([inputs, belief], -1))).chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(belief, candidate, torch.sigmoid(update - 1))  # starts by remembering
