"""TorchRL's `Trainer`, collector and replay buffer around our agent and learner."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import GymEnv
from torchrl.trainers import Trainer

from dreamer_torchrl import Hyperparameters, Learner, build_agent
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.learners.stepper import LearnerStepper
from tests.learners.learner_examples import weights
from tests.objectives.examples import TINY

LENGTH, SLICES = 6, 4


def test_a_torchrl_trainer_uses_our_learner() -> None:
    """Steps come from a TorchRL collector over a `StreamEnv`, batches and fresh latents go through a TorchRL buffer."""
    env = StreamEnv(GymEnv("CartPole-v1"))
    agent = build_agent(env.observation_spec, env.action_spec, TINY)
    learner = Learner(agent, Hyperparameters(imagination_length=3, warmup=0, learning_rate=1e-3))
    sampler = SliceSampler(num_slices=SLICES, end_key="cut", init_key=None, truncated_key=None)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(500), sampler=sampler, batch_size=SLICES * LENGTH)

    def store(transitions: TensorDictBase) -> None:
        steps = transitions.exclude("next", "collector")  # the root of what a `StreamEnv` gives is a step
        replay.extend(steps.set("cut", torch.zeros_like(steps["done"])))

    def refresh(batch: TensorDictBase, latents: TensorDict) -> None:
        """Class indices become one-hot again, as this buffer has them."""
        index = batch["index"][:, 1:].reshape(-1)
        replay[index] = replay[index].update(
            {"belief": latents["belief"].flatten(0, 1), "state": agent.rssm.one_hot(latents["state"]).flatten(0, 1)}
        )

    collector = Collector(env, agent.policy, frames_per_batch=20, total_frames=100)
    before = weights(agent)
    trainer = Trainer(
        collector=collector,
        total_frames=100,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=learner.loss,
        optimization_stepper=LearnerStepper(learner, refresh),
        progress_bar=False,
        log_interval=1,
    )
    trainer.register_op("batch_process", store)
    trainer.register_op("process_optim_batch", lambda _: replay.sample().reshape(SLICES, LENGTH))
    trainer.train()
    assert not (weights(agent) == before).all()
    assert learner.optimizer.state_dict()["state"][0]["step"] == 10
    assert {"loss_dynamics", "loss_actor", "loss_replay_value"} <= trainer._log_dict.keys()
    other = LearnerStepper(Learner(build_agent(env.observation_spec, env.action_spec, TINY), learner.hyperparameters))
    other.load_state_dict(trainer.optimization_stepper.state_dict())
    assert (weights(other.learner.agent) == weights(agent)).all()
