"""The systems of `race.py`: with which command and which published settings each of them trains a task."""

from __future__ import annotations

from dataclasses import dataclass

ENDLESS = 10**9
"""Steps: the race ends a training."""


@dataclass(frozen=True)
class System:
    """One contestant: its name in files and pictures, the packages that it needs, and what its interpreter runs.

    In the command, RECIPE stands for TorchRL's recipe in its wheel, and BENCHMARKS for the folder of this file.
    """

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]


def ours(task: str, seed: int) -> System:
    """Our preset for the task, but without evaluations and without an end."""
    env = f"env={task} env.id=race_tasks:race/{task}-v0"
    limits = f"total_steps={ENDLESS} replay.capacity=100000 eval.every=0"
    command = f"-m dreamer_torchrl.train {env} {limits} seed={seed} run_dir=run"
    return System("dreamer_torchrl", ("dreamer_torchrl", "torch", "gymnasium"), tuple(command.split()))


def sheeprl(task: str, seed: int) -> list[System]:
    """Its smallest DreamerV3 of each generation, with the replay ratio of its control experiments."""
    pixels, vectors = ("[rgb]", "[]") if task == "grid_reach" else ("[]", "[state]")
    common = [
        *(f"algo.cnn_keys.{side}={pixels}" for side in ("encoder", "decoder")),
        *(f"algo.mlp_keys.{side}={vectors}" for side in ("encoder", "decoder")),
        *f"env=gym env.id=race_tasks:race/{task}-v0 env.sync_env=True env.capture_video=False seed={seed}".split(),
        *f"algo.total_steps={ENDLESS} algo.run_test=False algo.replay_ratio=0.5 metric.log_level=0".split(),
        *f"checkpoint.every={ENDLESS} checkpoint.save_last=False fabric.accelerator=cpu".split(),
        *"buffer.size=100000 buffer.memmap=False buffer.checkpoint=False".split(),
    ]
    variants = {
        "size1m": "exp=dreamer_v3_5 algo=dreamer_v3_5_1M env.num_envs=4 algo.learning_starts=1024",
        "xs": "exp=dreamer_v3 algo=dreamer_v3_XS env.num_envs=4 algo.learning_starts=1300",
    }
    packages = ("sheeprl", "torch", "gymnasium")
    return [
        System(f"sheeprl-{name}", packages, ("-m", "sheeprl", *told.split(), *common))
        for name, told in variants.items()
    ]


def torchrl(task: str, seed: int) -> list[System]:
    """Its recipe with the settings for walker_walk and, on the pendulum, also with those for the pendulum."""
    keys = "env.vector_key=null env.pixels_key=pixels" if task == "grid_reach" else ""
    common = f"RECIPE --config-path BENCHMARKS --config-name race_torchrl hydra.run.dir=. env.seed={seed}"
    variants = {"size1m": ""}
    if task == "pendulum":
        variants["pendulum"] = (
            "collector.backend=sync collector.num_envs=1 collector.frames_per_batch=200 env.max_episode_steps=200 "
            "collector.count_reset_records=false replay_buffer.seq_len=16 networks.rnn_hidden_dim=32 "
            "networks.num_categoricals=4 optimization.train_ratio=null optimization.updates_per_batch=8 "
            "optimization.deferred_policy_sync=false optimization.separate_policy_rng=false"
        )
    packages = ("torchrl", "torch", "gymnasium", "hydra-core")
    return [
        System(f"torchrl-{name}", packages, tuple(f"{common} env.factory_kwargs.task={task} {keys} {told}".split()))
        for name, told in variants.items()
    ]


def sb3(task: str, seed: int) -> list[System]:
    """The RL Zoo's algorithms for the task."""
    algorithms = {"cartpole": ("ppo", "dqn"), "pendulum": ("ppo", "sac"), "grid_reach": ("ppo",)}[task]
    packages = ("stable_baselines3", "rl_zoo3", "torch", "gymnasium")
    command = f"BENCHMARKS/race_sb3.py --task {task} --seed {seed} --algorithm"
    return [System(f"sb3-{name}", packages, (*command.split(), name)) for name in algorithms]


PEERS = {"sheeprl": sheeprl, "torchrl": torchrl, "sb3": sb3}
