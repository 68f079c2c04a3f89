"""sheeprl's Dreamers as children of `learner.py` and `policy.py`; run by the interpreter that has sheeprl.

    python benchmarks/sheeprl_peer.py --steps steps.pt --size 1M --threads 2
    python benchmarks/sheeprl_peer.py --steps steps.pt --size 1M --threads 2 --act 50
    python benchmarks/sheeprl_peer.py --steps steps.pt --algorithm dreamer_v2 --threads 2

Makes one update of its learner, or acts 50 times, for each line it reads and answers with a line of JSON, as
`child.py` wants it. It imports nothing of ours, so sheeprl's environment needs none of it. The steps, `[B, 1 + T]` as
`Learner.update` takes them, come in a file: both sides see the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import gymnasium

STREAM = {"reward": "rewards", "is_init": "is_first", "terminated": "terminated"}
PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def sheeprl_update(
    steps: dict[str, Tensor], size: str, mode: str, dtype: str
) -> tuple[Callable[[], None], int, list[str]]:
    """Builds the learner for steps `[B, 1 + T]`; returns one update, the number of trained parameters, and notes."""
    import hydra
    from sheeprl.algos.dreamer_v3_5 import dreamer_v3_5 as algorithm

    data = stream_of(steps)
    settings = compose_settings(data, sized(size), mode, dtype)
    if mode == "compiled":
        leave_loop_eager(algorithm)
    fabric, (model, actor, critic, slow_critic, _) = agent_for(data, settings)
    trained = [*model.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = hydra.utils.instantiate(settings.algo.optimizer, params=trained, _convert_="all")
    optimizer = fabric.setup_optimizers(optimizer)
    scale = settings.algo.actor.moments
    moments = algorithm.Moments(scale.decay, scale.max, scale.percentile.low, scale.percentile.high)

    def update() -> None:
        algorithm.train(
            fabric,
            settings,
            model,
            actor,
            critic,
            slow_critic,
            optimizer,
            moments,
            dict(data),  # it takes keys out
            None,
            (data["actions"].shape[-1],),
        )
        algorithm.update_target_critic(critic, slow_critic, settings.algo.critic.tau)

    notes = [versions()]
    if mode == "compiled":
        notes.append("sheeprl's imagination and its actor and critic losses are compiled, its observed sequence is not")
    return update, sum(parameter.numel() for parameter in trained), notes


def sheeprl_acting(
    steps: dict[str, Tensor], size: str, mode: str, dtype: str, count: int
) -> tuple[Callable[[], None], int, list[str]]:
    """Builds the player for B environments that show the observations of steps `[B, 1 + T]` one after another.

    Returns what acts `count` times, the number of parameters it acts with, and notes.
    """
    data = stream_of(steps)
    settings = compose_settings(data, sized(size), mode, dtype)
    _, (*_, player) = agent_for(data, settings)
    seen = [
        {"rgb": pixels / 255 - 0.5} if "rgb" in data else {"state": pixels}
        for pixels in data["rgb" if "rgb" in data else "state"].unsqueeze(1).unbind()  # [1, B, ...]
    ]
    player.init_states()

    def act() -> None:
        with torch.inference_mode():
            for number in range(count):
                player.get_actions(seen[number % len(seen)])

    notes = [versions()]
    return act, sum(parameter.numel() for parameter in player.parameters()), notes


def family(
    steps: dict[str, Tensor], algorithm: str, mode: str, dtype: str
) -> tuple[Callable[[], None], int, list[str]]:
    """As `sheeprl_update`, of DreamerV1 or V2, from steps `[B, T]` without replay context."""
    from sheeprl_family import OFFICIAL, family_update

    data = stream_of(steps)
    settings = compose_settings(data, [f"exp={algorithm}", *OFFICIAL[algorithm]], mode, dtype, context=0)
    update, parameters = family_update(algorithm, data, settings, observation_space(data))
    return (
        update,
        parameters,
        [versions()],
    )


def versions() -> str:
    return f"sheeprl ran with its own torch {torch.__version__}, {torch.get_num_threads()} threads"


def sized(size: str) -> list[str]:
    """sheeprl's overrides for DreamerV3 of a size."""
    return ["exp=dreamer_v3_5", f"algo=dreamer_v3_5_{size}"]


def agent_for(data: dict[str, Tensor], settings: Any) -> tuple[Any, Any]:
    """Lightning's fabric, and sheeprl's networks, target critic and player for a batch `[1 + T, B]`."""
    from lightning.fabric import Fabric
    from sheeprl.algos.dreamer_v3_5.agent import build_agent

    torch.distributions.Distribution.set_default_validate_args(settings.distribution.validate_args)
    fabric = Fabric(accelerator="cpu", devices=1, precision=settings.fabric.precision)
    actions = (data["actions"].shape[-1],)
    return fabric, build_agent(fabric, actions, "rgb" not in data, settings, observation_space(data))


def stream_of(steps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns steps `[B, 1 + T]` into sheeprl's batch `[1 + T, B]`: floats for flags, half precision for beliefs."""
    first = {name: value.transpose(0, 1).contiguous() for name, value in steps.items()}
    data = {theirs: first[ours].float() for ours, theirs in STREAM.items()}
    data["truncated"] = (first["done"] & ~first["terminated"]).float()
    data["actions"] = first["action"].float()
    if "belief" in first:
        data["deter"], data["stoch"] = first["belief"].half(), first["state"]
    if "pixels" in first:
        data["rgb"] = first["pixels"].movedim(-1, -3).contiguous()
    else:
        data["state"] = first["observation"]
    return data


def compose_settings(data: dict[str, Tensor], algorithm: Sequence[str], mode: str, dtype: str, context: int = 1) -> Any:
    """sheeprl's settings with the overrides of an algorithm, for the observations in `data`."""
    import sheeprl
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from sheeprl.utils.utils import dotdict

    length, batch = data["rewards"].shape[:2]
    pixels, vectors = ("[rgb]", "[]") if "rgb" in data else ("[]", "[state]")
    overrides = [
        *(*algorithm, "env=dummy", f"env.num_envs={batch}"),
        *("fabric.accelerator=cpu", f"fabric.precision={PRECISION[dtype]}"),
        *(f"algo.per_rank_batch_size={batch}", f"algo.per_rank_sequence_length={length - context}"),
        *(f"algo.compile.enabled={mode == 'compiled'}", "algo.compile.mode=default", "algo.compile.player=False"),
    ]
    for side in ("encoder", "decoder"):
        overrides += [f"algo.cnn_keys.{side}={pixels}", f"algo.mlp_keys.{side}={vectors}"]
    folder = Path(sheeprl.__file__).parent / "configs"
    with initialize_config_dir(str(folder), version_base="1.3"):
        whole = compose("config", overrides=overrides)
    rooms = ("algo", "env", "fabric", "distribution")  # the others ask for the names of a run
    return dotdict({room: OmegaConf.to_container(whole[room], resolve=True) for room in rooms})


def observation_space(data: dict[str, Tensor]) -> gymnasium.spaces.Dict:
    """What sheeprl's agent is built for."""
    import numpy
    from gymnasium.spaces import Box, Dict

    if "rgb" in data:
        return Dict({"rgb": Box(0, 255, tuple(data["rgb"].shape[2:]), numpy.uint8)})
    return Dict({"state": Box(-1, 1, tuple(data["state"].shape[2:]))})


def leave_loop_eager(algorithm: Any) -> None:
    """Of the three parts that sheeprl compiles, spare the unrolled sequence: it takes seconds per step to compile."""
    compiled = algorithm.compiled

    def compiled_but_the_loop(function: Callable, fabric: Any, settings: Any) -> Callable:
        return function if function is algorithm.world_model_loss else compiled(function, fabric, settings)

    algorithm.compiled = compiled_but_the_loop


def measured(update: Callable[[], None]) -> dict[str, float]:
    """Makes an update; its seconds and the most bytes that this process held meanwhile."""
    with suppress(OSError):  # not on Linux, or not allowed: then the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    update()
    seconds = time.perf_counter() - start
    try:  # `ru_maxrss` would not do: Linux lets it begin at what the parent held
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        peak = int(found[1]) * 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak_memory": peak}


def answers(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Protocol of this process: describe itself once, then answer each line read."""
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    steps = torch.load(arguments.steps, weights_only=True)
    how = steps, arguments.algorithm or arguments.size, arguments.mode, arguments.dtype
    if arguments.algorithm:
        update, parameters, notes = family(*how)
    else:
        update, parameters, notes = sheeprl_acting(*how, arguments.act) if arguments.act else sheeprl_update(*how)
    yield {"name": f"sheeprl {version('sheeprl')} {arguments.mode}", "parameters": parameters, "notes": notes}
    for _ in sys.stdin:
        yield measured(update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=Path, required=True, metavar="FILE", help="a dictionary of tensors [B, 1 + T]")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--size", help="of DreamerV3, as sheeprl names it, such as 1M")
    kind.add_argument("--algorithm", choices=["dreamer_v1", "dreamer_v2"], help="at its official size for DMC")
    parser.add_argument("--mode", choices=["eager", "compiled"], default="eager")
    parser.add_argument("--dtype", choices=PRECISION, default="float32")
    parser.add_argument("--act", type=int, metavar="N", help="chooses actions N times instead of making an update")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    arguments = parser.parse_args()
    with os.fdopen(os.dup(1), "w") as answer_stream:
        os.dup2(2, 1)  # what sheeprl or its libraries print is no answer
        for answer in answers(arguments):
            print(json.dumps(answer), file=answer_stream, flush=True)


if __name__ == "__main__":
    main()
