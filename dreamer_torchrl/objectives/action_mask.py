"""The loss of the head that predicts action masks."""

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.heads import MaskHead
from dreamer_torchrl.modules.spaces import by_variable


class ActionMaskLoss:
    """Cross entropy to the recorded masks, summed over classes; an extra loss (`DreamerLoss.add`).

    As in acting, a variable without an allowed class has no mask.
    """

    def __init__(self, head: MaskHead):
        self.head = head

    def __call__(self, data: TensorDictBase) -> TensorDict:
        logits, predicted = self.head(data["features"])  # [B, T, n]
        target = self.target(data[MASK].bool())
        loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(-1)
        weight = data.get("priority_weight", None)
        loss = loss if weight is None else loss * weight.reshape(loss.shape)
        return TensorDict(loss_action_mask=loss.mean(), action_mask_error=(predicted != target).float().mean())

    def target(self, mask: Tensor) -> Tensor:
        parts = by_variable(mask, self.head.groups)
        return torch.cat([(part | ~part.any(-1, keepdim=True)).flatten(-2) for part in parts], -1)
