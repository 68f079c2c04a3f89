"""The kernels' arguments: the only description of them, from which the C header is written when kernels are built."""

from __future__ import annotations

import ctypes
import re
from typing import ClassVar

import torch
from torch import Tensor

LONG, POINTER, REAL = ctypes.c_long, ctypes.c_void_p, ctypes.c_double
LIMITS = {"MOST_LAYERS": 8, "MOST_HEADS": 32, "MOST_THREADS": 64}
"""Of a network, of an actor (twice its parts), and of threads beside the caller's."""
MOST_LAYERS, MOST_HEADS = LIMITS["MOST_LAYERS"], LIMITS["MOST_HEADS"]


def each(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of one kind."""
    return [(name, kind) for name in names.split()]


class Source(ctypes.Structure):
    """A matrix somewhere in a tensor: element (k, j) of a block lies at k * stride_in + j * stride_out.

    With ``shared``, all blocks multiply the same x, instead of each its own chunk of it.
    """

    _fields_: ClassVar = [("at", POINTER), *each(LONG, "blocks in out stride_block stride_in stride_out shared")]

    @classmethod
    def of(cls, matrix: Tensor, dtype: torch.dtype, shared: bool = False) -> Source:
        """Describe a view ``[in, out]`` or ``[blocks, in, out]``, however it lies in memory."""
        view = matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
        return cls(address("matrix", matrix, dtype, contiguous=False), *view.shape, *view.stride(), shared)


class Sizes(ctypes.Structure):
    """Of an RSSM."""

    _fields_: ClassVar = each(LONG, "belief hidden variables classes blocks")


class CoreWeights(ctypes.Structure):
    """Of the belief's recurrence."""

    _fields_: ClassVar = [
        *each(Source, "belief_in state_in mix_own mix_recurrent gates"),
        *each(POINTER, "belief_bias belief_scale state_bias state_scale mix_scale gates_bias"),
    ]


class TraceTensors(ctypes.Structure):
    """What the recurrence keeps for the backward pass, or the gradients there."""

    _fields_: ClassVar = each(POINTER, "inner recurrent mixed hidden gates")


class ObserveArguments(ctypes.Structure):
    """Of ``observe`` and ``observe_backward``."""

    _fields_: ClassVar = [
        ("size", Sizes),
        *each(LONG, "batch time threads"),
        ("unimix", REAL),
        ("core", CoreWeights),
        *each(Source, "posterior_own posterior_logits"),
        *each(POINTER, "posterior_scale posterior_logits_bias kept action_share encoded_share noise belief state"),
        *each(POINTER, "beliefs states logits"),
        ("trace", TraceTensors),
        *each(POINTER, "posterior_inner posterior_hidden probs d_beliefs d_states d_logits"),
        ("d_trace", TraceTensors),
        *each(POINTER, "d_posterior_inner d_belief d_state d_scales"),
    ]


class LayerWeights(ctypes.Structure):
    """A hidden layer: linear, norm, silu; without a scale nothing comes after the linear part."""

    _fields_: ClassVar = [("weight", Source), *each(POINTER, "bias scale")]

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, scale: Tensor | None, dtype: torch.dtype) -> LayerWeights:
        """Describe ``[out, in]``, ``[out]`` and ``[out]``, which must outlive what is made of them."""
        after = None if scale is None else address("scale", scale, dtype)
        return cls(Source.of(weight.t(), dtype), address("bias", bias, dtype), after)


class ActorWeights(ctypes.Structure):
    """Of the actor, and what it draws: parts of so many numbers, or of so many variables of so many classes."""

    _fields_: ClassVar = [
        *each(LONG, "layers heads parts action noise"),
        *each(REAL, "unimix smallest_deviation largest_deviation"),
        ("layer", LayerWeights * MOST_LAYERS),
        ("head", Source * MOST_HEADS),
        ("head_bias", POINTER * MOST_HEADS),
        *each(LONG * MOST_HEADS, "part_count part_classes"),
    ]


class ImagineArguments(ctypes.Structure):
    """Of ``imagine``."""

    _fields_: ClassVar = [
        ("size", Sizes),
        *each(LONG, "rows time threads prior_layers"),
        ("unimix", REAL),
        ("core", CoreWeights),
        ("actor", ActorWeights),
        ("action_in", LayerWeights),
        ("prior", LayerWeights * MOST_LAYERS),
        *each(Source, "mix_action prior_logits"),
        *each(POINTER, "mix_bias prior_logits_bias noise action_noise features actions"),
    ]


class ActArguments(ctypes.Structure):
    """Of ``act``."""

    _fields_: ClassVar = [
        ("size", Sizes),
        *each(LONG, "rows threads encoded_size"),
        ("unimix", REAL),
        ("core", CoreWeights),
        ("actor", ActorWeights),
        *each(LayerWeights, "action_in posterior"),
        *each(Source, "mix_action posterior_logits"),
        *each(POINTER, "mix_bias posterior_logits_bias encoded previous_action kept belief state noise action_noise"),
        *each(POINTER, "next_belief next_state action"),
    ]


class NormArguments(ctypes.Structure):
    """Of ``norm_silu_rows`` and ``norm_silu_backward_rows``."""

    _fields_: ClassVar = [*each(LONG, "rows width threads tile"), *each(POINTER, "x scale y d_y d_x d_scales")]


class LayerArguments(ctypes.Structure):
    """Of ``layer_rows``."""

    _fields_: ClassVar = [*each(LONG, "rows threads"), ("layer", LayerWeights), *each(POINTER, "x before after")]


class PerceptronArguments(ctypes.Structure):
    """Of ``perceptron_rows``."""

    _fields_: ClassVar = [
        *each(LONG, "rows threads layers"),
        ("layer", LayerWeights * MOST_LAYERS),
        *each(POINTER, "x y"),
    ]


class TwoHotArguments(ctypes.Structure):
    """Of ``two_hot_mean``, ``two_hot_loss`` and ``two_hot_backward``."""

    _fields_: ClassVar = [
        *each(LONG, "rows count targets threads"),
        *each(POINTER, "logits bins target"),
        ("weights", ctypes.POINTER(REAL)),
        *each(POINTER, "mean loss d_loss d_logits"),
    ]


class LapropTensor(ctypes.Structure):
    """A parameter with its state and gradient."""

    _fields_: ClassVar = [*each(POINTER, "param mu nu step grad"), ("count", LONG)]


class LapropArguments(ctypes.Structure):
    """Of ``laprop``."""

    _fields_: ClassVar = [
        *each(LONG, "tensors threads"),
        ("all", ctypes.POINTER(LapropTensor)),
        *each(REAL, "lr beta1 beta2 eps clip clip_floor warmup"),
    ]


STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    *(Source, Sizes, CoreWeights, TraceTensors, ObserveArguments, LayerWeights, ActorWeights, ImagineArguments),
    *(ActArguments, NormArguments, LayerArguments, PerceptronArguments, TwoHotArguments, LapropTensor, LapropArguments),
)


def fill(structure: ctypes.Structure, dtype: torch.dtype, tensors: dict[str, Tensor]) -> None:
    """Set the pointers of a structure to tensors, which must outlive its use."""
    for name, tensor in tensors.items():
        setattr(structure, name, address(name, tensor, dtype))


def address(name: str, tensor: Tensor, dtype: torch.dtype, contiguous: bool = True) -> int:
    """Where a tensor is, if a kernel that computes in ``dtype`` can read it there."""
    if tensor.dtype != dtype or not tensor.is_cpu or (contiguous and not tensor.is_contiguous()):
        found = f"{name!r} of {list(tensor.shape)} is {tensor.dtype} on {tensor.device}, strides {tensor.stride()}"
        raise ValueError(f"A kernel would read other numbers: {found}. Give it a contiguous one of {dtype} on the CPU.")
    return tensor.data_ptr()


def header() -> str:
    """The limits and structures in C; what is compiled checks that both languages put each field at the same place."""
    lines = ["#include <stddef.h>", *(f"#define {name} {value}" for name, value in LIMITS.items())]
    for structure in STRUCTURES:
        name = _c_name(structure)
        places = [f"sizeof({name}) == {ctypes.sizeof(structure)}"]
        for field, kind in structure._fields_:
            places.append(f"offsetof({name}, {field}) == {getattr(structure, field).offset}")
            places.append(f"sizeof((({name} *)0)->{field}) == {ctypes.sizeof(kind)}")
        fields = "".join(f"    {_declaration(kind, field)};\n" for field, kind in structure._fields_)
        lines.append(f"typedef struct {{\n{fields}}} {name};")
        lines.append(f'_Static_assert({" && ".join(places)}, "{name} lies otherwise in C than in Python");')
    return "\n".join(lines) + "\n"


def _c_name(structure: type[ctypes.Structure]) -> str:
    """`ObserveArguments` is observe_arguments there."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", structure.__name__).lower()


def _declaration(kind: type, name: str) -> str:
    plain = {LONG: "long ", REAL: "double ", POINTER: "void *"}
    if kind in plain:
        return f"{plain[kind]}{name}"
    if issubclass(kind, ctypes.Array):
        return f"{_declaration(kind._type_, name)}[{kind._length_}]"
    if issubclass(kind, ctypes.Structure):
        return f"{_c_name(kind)} {name}"
    return _declaration(kind._type_, f"*{name}")  # a pointer
