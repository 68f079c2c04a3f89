"""TorchRL's own DreamerV3 learner with the paper's settings, at our sizes: the peer of `learner.py --against torchrl`.

Its image networks are smaller than the official ones (strided convolutions instead of full ones with pooling), which
flatters it in the vision workloads.
"""

from typing import Literal

import torch
import torchrl
from contest import LocalContestant
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import DreamerV3MLP, RSSMRolloutV3, WorldModelWrapper
from torchrl.objectives import DreamerV3ActorLoss, DreamerV3Loss, DreamerV3ModelLoss, DreamerV3ValueLoss, SoftUpdate
from torchrl.objectives.utils import ValueEstimators
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer
from torchrl_networks import (
    BINS,
    LATENT,
    NEXT_LATENT,
    UNIMIX,
    actor,
    feature_size,
    image_networks,
    rssm,
    two_hot,
    vector_networks,
)
from workloads import CONTEXT, HORIZON, Workload

PeerMode = Literal["eager", "step", "full", "graph"]


def torchrl_learner(workload: Workload, steps: TensorDictBase, dtype: torch.dtype, mode: PeerMode) -> LocalContestant:
    """Builds TorchRL's learner for the same `steps` as ours.

    `mode` is how it runs: "eager"; "step" compiles one step of the observed sequence; "full" compiles the whole
    forward and backward pass, and captures it in a CUDA graph where there is one; "graph" captures it uncompiled.
    """
    device = steps.device
    with device:  # all of it is born there: buffers that several modules share would not follow a move
        loss, rollout = build_loss(workload, device)
    if mode == "step":
        rollout.compile_rollout("step")
    stepper = DreamerV3OptimizationStepper(
        loss,
        DreamerV3Optimizer(loss.parameters(), warmup_steps=1000),
        SoftUpdate(loss.value_loss, tau=0.02),
        compile_train_step=mode == "full",
        cudagraph=mode in ("full", "graph") and device.type == "cuda",
        mixed_precision=dtype is torch.bfloat16,
    )
    sample = transitions(workload, steps)
    prepared = mode in ("eager", "step")

    def step() -> None:
        nonlocal prepared
        if not prepared:
            stepper.warmup(sample)
            prepared = True
        stepper.step(None, sample)

    notes = []
    if workload.image:
        notes.append("TorchRL's image networks are smaller than the official ones: a lighter task than ours")
    if dtype is torch.bfloat16 and device.type == "cpu":
        notes.append("TorchRL's learner has bfloat16 on CUDA only: it ran in float32")
    trained = sum(parameter.numel() for parameter in loss.parameters() if parameter.requires_grad)
    return LocalContestant(f"torchrl {torchrl.__version__} {mode}", trained, step, device, notes)


def transitions(workload: Workload, steps: TensorDictBase) -> TensorDictBase:
    """Turns steps `[B, 1 + T]` into `[B, T]` transitions in TorchRL's layout: latents one-hot, channels first."""
    root, arrival = steps[:, :-CONTEXT], steps[:, CONTEXT:]
    observation = arrival[workload.observation]
    return TensorDict(
        {
            "state": nn.functional.one_hot(root["state"].long(), workload.size.classes).flatten(-2).float(),
            "belief": root["belief"],
            "action": root["action"].float(),
            "is_init": root["is_init"],
            "next": arrival.select("reward", "done", "terminated").set(
                workload.observation, observation.movedim(-1, -3) if workload.image else observation
            ),
        },
        root.batch_size,
    ).contiguous()


def build_loss(workload: Workload, device: torch.device) -> tuple[DreamerV3Loss, RSSMRolloutV3]:
    """Builds the whole objective, and the observed sequence within it (which can be compiled on its own)."""
    units, features = workload.size.units, feature_size(workload.size)
    encoder, embedding, decoder = (image_networks if workload.image else vector_networks)(workload)
    prior, rollout = rssm(workload, embedding)
    reward = DreamerV3MLP(features, BINS, depth=1, num_cells=units, outscale=0.0)
    continuation = DreamerV3MLP(features, 1, depth=1, num_cells=units)
    critic = DreamerV3MLP(features, BINS, depth=3, num_cells=units, outscale=0.0)
    value = two_hot(critic, LATENT, "state_value_logits", "state_value")

    world_model = TensorDictSequential(
        TensorDictModule(encoder, [("next", workload.observation)], [("next", "encoded_latents")]),
        rollout,
        TensorDictModule(decoder, NEXT_LATENT, [("next", "reconstruction")]),
        two_hot(reward, NEXT_LATENT, ("next", "reward_logits"), ("next", "reward")),
        TensorDictModule(continuation, NEXT_LATENT, [("next", "continue_pred")]),
    )
    model_loss = DreamerV3ModelLoss(
        world_model,
        num_reward_bins=BINS,
        kl_mode="separate",
        unimix=UNIMIX,
        lambda_continue=1.0,
        continue_target_scale=1 - 1 / 333,
        reco_symlog=not workload.image,
        detach_output=False,  # the replay value loss trains the representation
    )
    model_loss.set_keys(pixels=workload.observation, reco_pixels="reconstruction")

    dynamics = TensorDictModule(prior, [*LATENT, "action"], ["_", *LATENT])
    actor_loss = DreamerV3ActorLoss(
        actor(workload),
        value,
        _imagination(workload, dynamics, two_hot(reward, LATENT, "reward_logits", "reward"), device),
        continuation_model=TensorDictSequential(
            TensorDictModule(continuation, LATENT, ["continue_logits"]),
            TensorDictModule(nn.Sigmoid(), ["continue_logits"], ["continuation"]),
        ),
        imagination_horizon=HORIZON,
        use_reinforce=True,
    )
    actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=0.95)
    value_loss = DreamerV3ValueLoss(
        value, value_loss="two_hot", num_value_bins=BINS, actor_loss=actor_loss, slow_critic_regularization=1.0
    )
    return DreamerV3Loss(model_loss, actor_loss, value_loss).to(device), rollout


def _imagination(
    workload: Workload, dynamics: TensorDictModule, reward: TensorDictSequential, device: torch.device
) -> DreamerEnv:
    """The environment that the actor imagines in: the learned dynamics and reward, with latents for observations."""
    state, belief = workload.size.stochastic * workload.size.classes, workload.size.belief
    environment = DreamerEnv(
        WorldModelWrapper(dynamics, reward), prior_shape=(state,), belief_shape=(belief,), device=device
    )
    environment.observation_spec = Composite(state=Unbounded(state), belief=Unbounded(belief)).to(device)
    environment.state_spec = environment.observation_spec.clone()
    environment.action_spec = workload.action_spec.to(device)
    environment.reward_spec = Unbounded((1,), device=device)
    return environment
