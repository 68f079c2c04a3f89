"""The networks of the TorchRL peer: its own, but for two that it does not ship (continuous actor, vector decoder)."""

import torch
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.modules import (
    DreamerV3DiscreteActor,
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
)
from torchrl.modules.distributions.continuous import IndependentNormal
from torchrl.objectives import symexp, symlog
from workloads import Workload

from dreamer_torchrl import Size

BINS = 255
UNIMIX = 0.01
LATENT = ["state", "belief"]
NEXT_LATENT = [("next", "state"), ("next", "belief")]


class Symlog(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return symlog(value)


class VectorDecoder(nn.Module):
    """Predicts a vector in its own units; the loss compares in symlog space."""

    def __init__(self, features: int, out_features: int, units: int):
        super().__init__()
        self.network = DreamerV3MLP(features, out_features, depth=3, num_cells=units)

    def forward(self, state: Tensor, belief: Tensor) -> Tensor:
        return symexp(self.network(state, belief))


class ContinuousActor(nn.Module):
    """The parameters of DreamerV3's bounded normal policy."""

    def __init__(self, features: int, actions: int, units: int):
        super().__init__()
        self.body = DreamerV3MLP(features, None, depth=3, num_cells=units)
        self.head = DreamerV3MLP(units, 2 * actions, depth=0, outscale=0.01)

    def forward(self, state: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self.head(self.body(belief, state)).float().chunk(2, -1)
        return mean.tanh(), 0.9 * torch.sigmoid(deviation + 2) + 0.1


def feature_size(size: Size) -> int:
    """Width of the latent that all heads read."""
    return size.stochastic * size.classes + size.belief


def rssm(workload: Workload, embedding: int) -> tuple[RSSMPriorV3, RSSMRolloutV3]:
    """Builds the dynamics for imagination, and the observed sequence that they are part of."""
    size = workload.size
    prior = RSSMPriorV3(
        action_shape=workload.action_spec.shape,
        action_dim=workload.action_spec.shape[-1],
        hidden_dim=size.hidden,
        rnn_hidden_dim=size.belief,
        num_categoricals=size.stochastic,
        num_classes=size.classes,
        recurrent_model="block_gru",
        num_blocks=size.blocks,
        unimix=UNIMIX,
    )
    posterior = RSSMPosteriorV3(
        hidden_dim=size.hidden,
        rnn_hidden_dim=size.belief,
        num_categoricals=size.stochastic,
        num_classes=size.classes,
        obs_embed_dim=embedding,
        use_rms_norm=True,
        unimix=UNIMIX,
    )
    rollout = RSSMRolloutV3(
        TensorDictModule(prior, [*LATENT, "action"], [("next", "prior_logits"), *NEXT_LATENT]),
        TensorDictModule(
            posterior,
            [("next", "belief"), ("next", "encoded_latents")],
            [("next", "posterior_logits"), ("next", "state")],
        ),
    )
    return prior, rollout


def vector_networks(workload: Workload) -> tuple[nn.Module, int, nn.Module]:
    size = workload.size
    width = workload.observation_spec[workload.observation].shape[-1]
    encoder = nn.Sequential(Symlog(), DreamerV3MLP(width, None, depth=3, num_cells=size.units))
    return encoder, size.units, VectorDecoder(feature_size(size), width, size.units)


def image_networks(workload: Workload) -> tuple[nn.Module, int, nn.Module]:
    size = workload.size
    height, width, channels = workload.observation_spec[workload.observation].shape
    shape = (channels, height, width)
    encoder = DreamerV3ImageEncoder(channels, depth=size.depth)
    decoder = DreamerV3ImageDecoder(feature_size(size), shape, depth=size.depth, num_blocks=size.blocks)
    return encoder, encoder.output_features(shape), decoder


def actor(workload: Workload) -> ProbabilisticTensorDictSequential:
    size = workload.size
    features, actions, units = feature_size(size), workload.action_spec.shape[-1], size.units
    if workload.image:
        return DreamerV3DiscreteActor(features, actions, depth=3, num_cells=units)
    return ProbabilisticTensorDictSequential(
        TensorDictModule(ContinuousActor(features, actions, units), LATENT, ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"],
            out_keys=["action"],
            distribution_class=IndependentNormal,
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
            log_prob_key="action_log_prob",
        ),
    )


def two_hot(network: nn.Module, in_keys: list, logits: str | tuple, value: str | tuple) -> TensorDictSequential:
    """A head that predicts a scalar through symexp two-hot logits."""
    return TensorDictSequential(
        TensorDictModule(network, in_keys, [logits]), TensorDictModule(SymExpTwoHot(BINS), [logits], [value])
    )
