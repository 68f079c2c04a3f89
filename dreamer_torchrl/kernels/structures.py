"""The kernels' arguments, field by field as kernels.c has them, and how tensors get into them."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from torch import Tensor

LONG, POINTER, REAL = ctypes.c_long, ctypes.c_void_p, ctypes.c_double
MOST_LAYERS, MOST_HEADS = 8, 32


class Source(ctypes.Structure):
    """A matrix somewhere in a tensor."""

    _fields_: ClassVar = [
        ("at", POINTER),
        *((name, LONG) for name in ("blocks", "inputs", "outputs", "stride_block", "stride_in", "stride_out")),
        ("shared", LONG),
    ]

    @classmethod
    def of(cls, matrix: Tensor, shared: bool = False) -> Source:
        """Describe a view ``[in, out]`` or ``[blocks, in, out]``, however it lies in memory.

        With ``shared``, all blocks multiply the same x, instead of each its own chunk of it.
        """
        view = matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
        return cls(matrix.data_ptr(), *view.shape, *view.stride(), shared)


class Sizes(ctypes.Structure):
    """Of an RSSM."""

    _fields_: ClassVar = [(name, LONG) for name in ("belief", "hidden", "variables", "classes", "blocks")]


class CoreWeights(ctypes.Structure):
    """Of the belief's recurrence."""

    _fields_: ClassVar = [
        *((name, Source) for name in ("belief_in", "state_in", "mix_own", "mix_recurrent", "gates")),
        *(
            (name, POINTER)
            for name in ("belief_bias", "belief_scale", "state_bias", "state_scale", "mix_scale", "gates_bias")
        ),
    ]


class Trace(ctypes.Structure):
    """What the recurrence keeps of its way, or the gradients there."""

    _fields_: ClassVar = [(name, POINTER) for name in ("inner", "recurrent", "mixed", "hidden", "gates")]


class ObserveArguments(ctypes.Structure):
    """Of ``observe`` and ``observe_backward``."""

    _fields_: ClassVar = [
        ("size", Sizes),
        *((name, LONG) for name in ("batch", "time", "threads")),
        ("unimix", REAL),
        ("core", CoreWeights),
        *((name, Source) for name in ("posterior_own", "posterior_logits")),
        *((name, POINTER) for name in ("posterior_scale", "posterior_logits_bias")),
        *((name, POINTER) for name in ("kept", "action_share", "encoded_share", "noise", "belief", "state")),
        *((name, POINTER) for name in ("beliefs", "states", "logits")),
        ("trace", Trace),
        *((name, POINTER) for name in ("posterior_inner", "posterior_hidden", "probs")),
        *((name, POINTER) for name in ("d_beliefs", "d_states", "d_logits")),
        ("d_trace", Trace),
        *((name, POINTER) for name in ("d_posterior_inner", "d_belief", "d_state", "d_scales")),
    ]


class Layer(ctypes.Structure):
    """A hidden layer: linear, norm, silu."""

    _fields_: ClassVar = [("weight", Source), ("bias", POINTER), ("scale", POINTER)]


class ActorWeights(ctypes.Structure):
    """Of the actor, and what it draws."""

    _fields_: ClassVar = [
        *((name, LONG) for name in ("layers", "heads", "parts", "action", "noise")),
        *((name, REAL) for name in ("unimix", "smallest_deviation", "largest_deviation")),
        ("layer", Layer * MOST_LAYERS),
        ("head", Source * MOST_HEADS),
        ("head_bias", POINTER * MOST_HEADS),
        ("part_count", LONG * MOST_HEADS),
        ("part_classes", LONG * MOST_HEADS),
    ]


class ImagineArguments(ctypes.Structure):
    """Of ``imagine``."""

    _fields_: ClassVar = [
        ("size", Sizes),
        *((name, LONG) for name in ("rows", "time", "threads", "prior_layers")),
        ("unimix", REAL),
        ("core", CoreWeights),
        ("actor", ActorWeights),
        ("action_in", Layer),
        ("prior", Layer * MOST_LAYERS),
        *((name, Source) for name in ("mix_action", "prior_logits")),
        *((name, POINTER) for name in ("mix_bias", "prior_logits_bias")),
        *((name, POINTER) for name in ("noise", "action_noise", "features", "actions")),
    ]


class ActArguments(ctypes.Structure):
    """Of ``act``."""

    _fields_: ClassVar = [
        ("size", Sizes),
        *((name, LONG) for name in ("rows", "threads", "encoded_size")),
        ("unimix", REAL),
        ("core", CoreWeights),
        ("actor", ActorWeights),
        *((name, Layer) for name in ("action_in", "posterior")),
        *((name, Source) for name in ("mix_action", "posterior_logits")),
        *((name, POINTER) for name in ("mix_bias", "posterior_logits_bias")),
        *(
            (name, POINTER)
            for name in ("encoded", "previous_action", "kept", "belief", "state", "noise", "action_noise")
        ),
        *((name, POINTER) for name in ("next_belief", "next_state", "action")),
    ]


class NormArguments(ctypes.Structure):
    """Of ``norm_silu_rows`` and ``norm_silu_backward_rows``."""

    _fields_: ClassVar = [
        *((name, LONG) for name in ("rows", "width", "threads", "tile")),
        *((name, POINTER) for name in ("x", "scale", "y", "d_y", "d_x", "d_scales")),
    ]


class LayerArguments(ctypes.Structure):
    """Of ``layer_rows``; without a scale nothing comes after."""

    _fields_: ClassVar = [
        *((name, LONG) for name in ("rows", "threads")),
        ("layer", Layer),
        *((name, POINTER) for name in ("x", "before", "after")),
    ]


class PerceptronArguments(ctypes.Structure):
    """Of ``perceptron_rows``."""

    _fields_: ClassVar = [
        *((name, LONG) for name in ("rows", "threads", "layers")),
        ("layer", Layer * MOST_LAYERS),
        *((name, POINTER) for name in ("x", "y")),
    ]


class TwoHotArguments(ctypes.Structure):
    """Of ``two_hot_mean``, ``two_hot_loss`` and ``two_hot_backward``."""

    _fields_: ClassVar = [
        *((name, LONG) for name in ("rows", "count", "targets", "threads")),
        *((name, POINTER) for name in ("logits", "bins", "target")),
        ("weights", ctypes.POINTER(REAL)),
        *((name, POINTER) for name in ("mean", "loss", "d_loss", "d_logits")),
    ]


class LaPropTensor(ctypes.Structure):
    """A parameter with its state and gradient."""

    _fields_: ClassVar = [*((name, POINTER) for name in ("param", "mu", "nu", "step", "grad")), ("count", LONG)]


class LaPropArguments(ctypes.Structure):
    """Of ``laprop``."""

    _fields_: ClassVar = [
        *((name, LONG) for name in ("tensors", "threads")),
        ("all", ctypes.POINTER(LaPropTensor)),
        *((name, REAL) for name in ("lr", "beta1", "beta2", "eps", "clip", "clip_floor", "warmup")),
    ]


def fill(structure: ctypes.Structure, tensors: dict[str, Tensor]) -> None:
    """Set the pointers of a structure to contiguous tensors, and keep these alive as long as the structure."""
    structure.__dict__.setdefault("tensors", []).extend(tensors.values())
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name!r} of {list(tensor.shape)} is not contiguous: a kernel would read other numbers.")
        setattr(structure, name, tensor.data_ptr())
