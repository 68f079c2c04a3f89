"""The TensorDictModule face of a plain module: where its inputs come from and where its outputs go."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey
from tensordict.nn import TensorDictModule


class Face:
    """Mixin of a plain ``nn.Module`` that knows the usual keys of its inputs and outputs."""

    in_keys: Sequence[NestedKey]
    out_keys: Sequence[NestedKey]

    def tensordict_module(
        self, in_keys: Sequence[NestedKey] | None = None, out_keys: Sequence[NestedKey] | None = None
    ) -> TensorDictModule:
        """Wrap this module; other keys may be given in the order of the inputs and outputs of ``forward``."""
        return TensorDictModule(
            self,
            in_keys=list(self.in_keys if in_keys is None else in_keys),
            out_keys=list(self.out_keys if out_keys is None else out_keys),
        )
