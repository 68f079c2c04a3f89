"""One-step models whose disagreement is a reward for exploring."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.modules.heads import Head
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

SPREADS: dict[str, Callable[[Tensor], Tensor]] = {
    "std": lambda predictions: predictions.std(0, correction=0),
    "variance": lambda predictions: predictions.var(0, correction=0),
}


class Ensemble(nn.ModuleList):
    """Heads that predict the same from features and the action that led to them.

    Example:
        >>> from dreamer_torchrl.modules.heads import NormalHead
        >>> ensemble = Ensemble(lambda: NormalHead(8, units=4, outputs=6), count=3)
        >>> ensemble(torch.ones(5, 6), torch.ones(5, 2)).shape
        torch.Size([3, 5, 6])
    """

    def __init__(self, make_head: Callable[[], Head], count: int):
        super().__init__(make_head() for _ in range(count))

    def forward(self, features: Tensor, previous_action: Tensor) -> Tensor:
        """Features ``[..., F]`` and actions ``[..., A]`` to the predictions of all models ``[M, ..., N]``."""
        inputs = torch.cat([features, previous_action], -1)
        return torch.stack([head(inputs)[1] for head in self])


class Disagreement(nn.Module, AsTensorDictModule):
    """How much an `Ensemble` disagrees, averaged over what it predicts: a reward ``[..., H + 1, 1]`` of imagined steps.

    ``spread`` over the models is ``std`` (DreamerV2's code) or ``variance``.
    """

    in_keys, out_keys = ("features", "action"), ("predicted_reward",)

    def __init__(self, ensemble: Ensemble, spread: str = "std"):
        super().__init__()
        if spread not in SPREADS:
            raise ValueError(f"spread={spread!r} is unknown: choose one of {', '.join(SPREADS)}.")
        self.ensemble, self.spread = ensemble, spread

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Features ``[..., H + 1, F]`` and the actions ``[..., H + 1, A]`` that were chosen there."""
        previous = F.pad(action[..., :-1, :], (0, 0, 1, 0))  # nothing led to the start
        return SPREADS[self.spread](self.ensemble(features, previous)).mean(-1, keepdim=True)
