"""A plain module as TensorDictModule: where its inputs come from and where its outputs go."""

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor


class TensorModule(TensorDictModule):
    """A TensorDictModule whose outputs are tensors: to find that out, TensorDict 0.14 searches the disk for pandas."""

    def _write_to_tensordict(
        self,
        tensordict: TensorDictBase,
        tensors: Sequence[Tensor],
        tensordict_out: TensorDictBase | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> TensorDictBase:
        out_keys = self.out_keys_source if out_keys is None else out_keys
        if tensordict_out is None and self.inplace is True and len(tensors) == len(out_keys):
            for key, tensor in zip(out_keys, tensors, strict=True):
                tensordict.set(key, tensor)
            return tensordict
        return super()._write_to_tensordict(tensordict, tensors, tensordict_out, out_keys)


class AsTensorDictModule:
    """Mixin of a plain ``nn.Module`` that knows the keys of its inputs and outputs."""

    in_keys: Sequence[NestedKey]
    out_keys: Sequence[NestedKey]

    def tensordict_module(
        self, in_keys: Sequence[NestedKey] | None = None, out_keys: Sequence[NestedKey] | None = None
    ) -> TensorDictModule:
        """Wrap this module; other keys may be given in the order of the inputs and outputs of ``forward``."""
        in_keys, out_keys = in_keys or self.in_keys, out_keys or self.out_keys
        return TensorModule(self, in_keys=list(in_keys), out_keys=list(out_keys))
