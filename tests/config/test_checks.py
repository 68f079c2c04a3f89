"""What cannot be is refused before anything starts, in one line that names the nearest right thing or the remedy."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from dreamer_torchrl.config.checks import ConfigError, remarks
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.modules.decoder import BLOCKS
from dreamer_torchrl.training.build import choose_device, make_agent, make_envs, make_replay

REFUSED = {
    # names
    "eval.evry=1": "There is no setting 'eval.evry'. Did you mean 'eval.every'?",
    "experiments=official": "There is no setting 'experiments'. Did you mean 'experiment'?",
    "resume=runs/x": "There is no setting 'resume'. To continue a run give run_dir=FOLDER.",
    "env=pendlum": "There is no env 'pendlum'. Did you mean 'pendulum'? There are: acrobot, ",
    "env=walker_walk": "Others: any Atari game, env=gym env.id=..., env=dmc_proprio env.task=...",
    "size=12m": "There is no size '12m'. Did you mean 'size12m'? There are: nano, size1m, size12m, ",
    "env=gym env.id=CartPol-v1": "Unknown environment id 'CartPol-v1': did you mean 'CartPole-v1'?",
    "agent.encoder.units=3": "agent.encoder._target_ is missing",
    # types
    "seed=true": "seed=true is impossible: it should be a valid integer.",
    "seed='3'": "seed=3 is impossible: it should be a valid integer.",
    "size.units=true": "size.units=true is impossible: it should be a valid integer.",
    "learner.horizon='333'": "learner.horizon=333 is impossible: it should be a valid number.",
    "train_ratio=false": "train_ratio=false is impossible: it should be a valid number.",
    "eval.video=1": "eval.video=1 is impossible: it should be a valid boolean",
    "seed=x": "seed=x is impossible: it should be a valid integer",
    "total_steps=1.5": "total_steps=1.5 is impossible: it should be a valid integer, got a number with a frac",
    "train_ratio=nan": "train_ratio=nan is impossible: it should be a finite number.",
    "learner.betas=0.9": "learner.betas=0.9 is impossible: it should be a valid tuple.",
    "learner=3": "learner=3 replaces a whole section: set entries of it",
    # values
    "dtype=float16": "dtype=float16 is impossible: it should be 'float32' or 'bfloat16'. Did you mean 'bfloat16'?",
    "env.num_envs=100000": "env.num_envs=100000 is impossible: it should be less than or equal to 4096.",
    "learner.return_percentiles=[95,5]": "learner.return_percentiles=[95.0, 5.0] is impossible: give a lower and a hi",
    "size.belief=100 size.blocks=12": "size.belief=100 does not split into 12 blocks: give a multiple of 24.",
    "env=pong env.size=84": "env.size=84 is impossible: images have a side of 48, 64, 80 and so on up to 256.",
    "env=pong env.frames_per_action=1": "an action of this game lasts 4 frames. Leave that out, and",
    "device=gpu": "device=gpu is impossible: there are auto, cpu, mps, cuda, cuda:0, cuda:1 and so on.",
    # what Hydra can and a run cannot
    "seed=1,2": "asks for several runs: add --multirun to train them all",
    "~seed": "removes a setting, but all are needed: set it",
    "env@eval=pong": "'env@eval=pong' names a package for env, but there is only one: write env=... instead.",
    "hydra/launcher=joblib": "settings of Hydra are for --multirun; the folder of a run is run_dir=...",
    "seed": "'seed' is no override: write key=value, as in seed=1 or env=pendulum.",
    "wandb.name=a(b)": "cannot be read: write key=value, or quote the value: \"wandb.name='a(b)'\".",
    "seed=${nope}": "Interpolation key 'nope' not found",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_is_wrong_is_told_in_a_line(overrides: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(overrides.split())
    assert REFUSED[overrides] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_smallest_and_oddest_settings_that_pass_can_be_made() -> None:
    for overrides in ("replay.capacity=66 env.num_envs=2", "replay.capacity=3 replay.length=2 env.num_envs=1"):
        assert not make_replay(load(overrides.split()).settings).ready
    with pytest.raises(ValueError, match=r"replay\.capacity=65 is less than one sequence of 33 steps"):
        make_replay(load(["replay.capacity=65", "env.num_envs=2"]).settings)
    settings = load(["env=grid_reach", "size.belief=24", "size.blocks=3", "size.depth=2"]).settings
    envs = make_envs(settings, "training", 1)
    assert make_agent(settings, envs).rssm.belief_size == 24
    envs.close()
    assert BLOCKS == 8  # as many as `Settings` takes the decoder of images to have


def test_a_gpu_that_torch_cannot_see() -> None:
    count = torch.cuda.device_count()
    assert choose_device("auto").type == ("cuda" if count else "cpu")
    with pytest.raises(ConfigError, match=f"device=cuda:{count}, but torch .* sees {count or 'no'} GPU"):
        choose_device(f"cuda:{count}")
    if sys.platform != "darwin":
        with pytest.raises(ConfigError, match="device=mps, but torch sees no GPU of a Mac"):
            choose_device("mps")


def test_what_is_possible_and_not_meant_is_remarked() -> None:
    assert remarks(load(["env=cartpole"]).settings) == []
    (few,) = remarks(load(["replay.batch=1000000", "total_steps=2000"]).settings)
    assert few.startswith("Nothing will be learned: updates begin after step 32,000,000 (prefill, or replay.batch")
    (slow,) = remarks(load(["threads=10_000"]).settings)
    assert slow == f"threads=10000: this machine has {os.cpu_count()} cores, and more threads are slower."
