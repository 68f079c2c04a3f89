"""The parts of the agent, each usable alone."""

from dreamer_torchrl.modules.actor import ActionDistribution, ActionSpace, Actor
from dreamer_torchrl.modules.decoder import Decoder, NoDecoder
from dreamer_torchrl.modules.distributions import BernoulliDist, BoundedNormal, OneHotDist, TwoHotDist, symexp, symlog
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.heads import ContinueHead, TwoHotHead
from dreamer_torchrl.modules.latents import CategoricalLatent, GaussianLatent
from dreamer_torchrl.modules.layers import MLP, BlockLinear, Conv, Linear, RMSNorm
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence, imagine, observe
from dreamer_torchrl.modules.rssm import RSSM, BlockGRU, PriorStep
from dreamer_torchrl.modules.spaces import Continuous, Discrete, Image
from dreamer_torchrl.modules.squashed import TanhNormal, TruncatedNormal

__all__ = ["MLP", "RSSM", "ActionDistribution", "ActionSpace", "Actor", "BernoulliDist", "BlockGRU", "BlockLinear"]
__all__ += ["BoundedNormal", "CategoricalLatent", "ContinueHead", "Continuous", "Conv", "Decoder", "Discrete"]
__all__ += ["Encoder", "GaussianLatent", "Image", "ImagineRollout", "Linear", "NoDecoder", "OneHotDist"]
__all__ += ["PriorStep", "RMSNorm", "TanhNormal", "TruncatedNormal", "TwoHotDist", "TwoHotHead", "imagine", "observe"]
__all__ += ["ObserveSequence", "symexp", "symlog"]
