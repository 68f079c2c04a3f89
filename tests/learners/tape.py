"""A graph for the CPU, and modes that raise where a GPU would have to wait for the host or the host for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamer_torchrl.agents.capturing import CudaGraphs


class Tape(TorchDispatchMode):
    """A graph for the CPU: writes down each operation with the tensors it works on, and does the same work again.

    As with a CUDA graph no Python runs in a replay, numbers are those of the recording, and results come to where they
    were then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace != "profiler":
            self.operations.append((function, args, kwargs or {}, tensors_in(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, then in self.operations:
            for old, new in zip(then, tensors_in(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Watch:
    """An event that knows whether the staging memory was written while it was still being read."""

    def __init__(self, staging: list[Tensor]):
        self.staging, self.pending, self.waited = staging, False, 0

    def record(self) -> None:
        self.pending, self.versions = True, [tensor._version for tensor in self.staging]

    def synchronize(self) -> None:
        if self.pending:
            assert self.versions == [tensor._version for tensor in self.staging], "written before the copy was done"
            self.waited += 1
        self.pending = False


class TapeGraphs(CudaGraphs):
    """`CudaGraphs` for the CPU."""

    def __init__(self) -> None:
        self.staged: list[Tensor] = []
        self.watched = 0  # of these, by events so far

    def record(self, body: Callable[[], Any], generator: torch.Generator) -> tuple[Callable[[], None], Any]:
        body()
        tape = Tape()
        with tape:
            outputs = body()
        return tape.replay, outputs

    def staging(self, like: Tensor) -> Tensor:
        self.staged.append(torch.empty_like(like))
        return self.staged[-1]

    def event(self) -> Watch:
        own, self.watched = self.staged[self.watched :], len(self.staged)
        return Watch(own)


class OnDevice(TorchDispatchMode):
    """Raises on each operation that takes or makes a tensor on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(tensor.device.type == "cpu" for tensor in tensors_in((args, kwargs or {}, result))):
            raise AssertionError(f"{function} works on the host")
        return result


class NoLiterals(TorchFunctionMode):
    """Raises on tensors made of Python's numbers, lists as indices included: they are copied from the host."""

    makers = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = function in (Tensor.__getitem__, Tensor.__setitem__) and args[1]
        lists = any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))
        if function in self.makers or lists:
            raise AssertionError(f"{function.__name__} copies from the host")
        return function(*args, **(kwargs or {}))


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


class NoHostReads(TorchFunctionMode):
    """Raises where the host reads a tensor's numbers, or needs them for a shape; the CPU stands for a GPU."""

    methods = frozenset(getattr(Tensor, name) for name in METHODS)

    def __enter__(self) -> NoHostReads:
        self.below = _NoReads()
        self.below.__enter__()
        return super().__enter__()

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        self.below.__exit__(*how)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args[1:], *(kwargs or {}).values()]
        to_host = function is Tensor.to and any(str(each) == "cpu" for each in given if not isinstance(each, Tensor))
        if function in self.methods or (to_host and not (kwargs or {}).get("non_blocking")):
            raise AssertionError(f"{function.__name__} reads a tensor on the host")
        self.below.checks_classes = function is torch.nn.functional.one_hot
        return function(*args, **(kwargs or {}))


class _NoReads(TorchDispatchMode):
    checks_classes = False  # `one_hot` does, on the CPU alone

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        by_mask = name in ("index", "index_put_") and any(x is not None and x.dtype is torch.bool for x in args[1])
        if (name in READS and not self.checks_classes) or by_mask:
            raise AssertionError(f"{function} reads a tensor on the host")
        return function(*args, **(kwargs or {}))


class NoWaits(TorchDispatchMode):
    """Raises where the host would wait for a device that is not the CPU: reads, and copies that block."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function._schema.name.partition("::")[2], kwargs or {}
        result = function(*args, **kwargs)
        kinds = {tensor.device.type for tensor in tensors_in((args, kwargs, result))}
        if len(kinds) == 1:
            if kinds != {"cpu"} and name in READS:
                raise AssertionError(f"{function} waits for the device")
        elif kinds and not (name in ("_to_copy", "copy_") and (kwargs.get("non_blocking") or args[2:] == (True,))):
            raise AssertionError(f"{function} works on {kinds} and waits for one")
        return result
