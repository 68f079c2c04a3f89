"""ClippedAdam is the optimizer of the official V1 and V2, saves itself, and steps inside a CUDA graph."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from dreamer_torchrl.learners.adam import ClippedAdam
from dreamer_torchrl.learners.laprop import LaProp
from tests.learners.laprop_examples import parameter, random_parameters
from tests.objectives.examples import golden, part

Params = list[nn.Parameter]
MODES = {"host": {}, "capturable": {"capturable": True}}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
CASES = {  # recorded chains and their options
    "v1/adam/0": {"lr": 0.01, "eps": 1e-7, "clip": 1.0},
    "v1/adam/1": {"lr": 0.01, "eps": 1e-7, "clip": 100.0},  # recorded with weight_decay 0.5, which did nothing
    "v2/optimizer/0": {"lr": 0.01, "eps": 1e-5, "clip": 100.0, "decay": 0.01},
    "v2/optimizer/1": {"lr": 0.03, "eps": 0.1, "clip": 1.0},
}
every_case = pytest.mark.parametrize("name", CASES)


def recorded(name: str) -> tuple[dict[str, Tensor], int]:
    table = part(golden(f"tables_{name[:2]}.npz", "golden_family"), f"{name[3:]}/")
    return table, sum(key.endswith("/ga") for key in table)


def worst_error(name: str, update: Callable[[Params, Tensor], None]) -> float:
    """Largest deviation along a recorded chain, as a share of the learning rate."""
    table, length = recorded(name)
    params = [nn.Parameter(table[f"{key}0"].clone()) for key in "ab"]
    worst = 0.0
    for i in range(length):
        for key, param in zip("ab", params, strict=True):
            param.grad = table[f"{i}/g{key}"].clone()
        finite = torch.stack([param.grad.norm().isfinite() for param in params]).all()
        update(params, finite)
        for key, param in zip("ab", params, strict=True):
            worst = max(worst, (param.detach() - table[f"{i}/{key}"]).abs().max().item() / CASES[name]["lr"])
    return worst


@every_case
@every_mode
def test_recorded_chains(name: str, mode: dict[str, bool]) -> None:
    optimizers: list[ClippedAdam] = []

    def update(params: Params, finite: Tensor) -> None:
        if not optimizers:
            optimizers.append(ClippedAdam(params, **CASES[name], **mode))
        optimizers[0].step_where(finite)

    # Clipping matters, and the last gradient of V1 is too large for float32: nothing changes.
    assert worst_error(name, update) < 3e-5
    assert optimizers[0].state[optimizers[0].param_groups[0]["params"][0]]["step"] == 4


def plain_adam(bent: str, **options: float) -> Callable[[Params, Tensor], None]:
    """The formulas number by number, one of them bent."""
    lr, eps, clip, decay = options["lr"], options["eps"], options["clip"], options.get("decay", 0.0)
    mus, nus, count = [0.0, 0.0], [0.0, 0.0], [0]

    def update(params: Params, finite: Tensor) -> None:
        if not finite:
            return
        count[0] += 1
        correction, root = 1 - 0.9 ** count[0], math.sqrt(1 - 0.999 ** count[0])
        norm = torch.stack([param.grad.norm() for param in params]).norm()
        for i, param in enumerate(params):
            own = param.grad.norm() if bent == "each tensor clipped alone" else norm
            grad = param.grad if bent == "not clipped" else param.grad * clip / own.clamp(min=clip)
            kept = 1 - decay * (lr if bent == "decay times the learning rate" else 1)
            mus[i], nus[i] = 0.9 * mus[i] + 0.1 * grad, 0.999 * nus[i] + 0.001 * grad.square()
            inside = nus[i].sqrt() / root + eps
            denominator = inside * root if bent == "eps inside the correction" else nus[i].sqrt() + eps
            step = lr * root / correction * mus[i] / denominator
            start = param.data
            param.data = (start - step) * kept if bent == "decay after the step" else start * kept - step

    return update


@every_case
def test_the_formulas_written_out(name: str) -> None:
    assert worst_error(name, plain_adam("nothing", **CASES[name])) < 3e-5


@pytest.mark.parametrize(
    ("bent", "name"),
    [
        ("eps inside the correction", "v2/optimizer/1"),
        ("not clipped", "v2/optimizer/1"),
        ("each tensor clipped alone", "v1/adam/0"),
        ("decay after the step", "v2/optimizer/0"),
        ("decay times the learning rate", "v2/optimizer/0"),
    ],
)
def test_a_bent_formula_shows(bent: str, name: str) -> None:
    assert worst_error(name, plain_adam(bent, **CASES[name])) > 2e-3


def gradients(params: Params, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator).to(param)


def groups(params: Params) -> list[dict[str, Any]]:
    return [{"params": params[:3], "lr": 1e-2}, {"params": params[3:], "clip": 0.5, "decay": 1e-3, "eps": 1e-3}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_mode
def test_groups_are_clipped_alone_and_counted_alone(dtype: torch.dtype, mode: dict[str, bool]) -> None:
    """As two optimizers of one group each; a parameter without gradient is left alone."""
    both, apart = random_parameters(dtype), random_parameters(dtype)
    for one, other in zip(apart, both, strict=True):
        one.data.copy_(other.data)
    together = ClippedAdam(groups(both), **mode)
    alone = [ClippedAdam([group], **mode) for group in groups(apart)]
    for seed in range(5):
        for params in (both, apart):
            gradients(params, seed, 3.0)
            if seed == 2:
                for param in params[3:]:
                    param.grad = None
            params[0].grad = None
        together.step()
        for optimizer in alone:
            optimizer.step()
    for one, other in zip(both, apart, strict=True):
        assert_close(one.detach(), other.detach(), rtol=0, atol=0)
    assert [int(together.state[group["params"][-1]]["step"]) for group in together.param_groups] == [5, 4]


@every_mode
def test_a_learning_rate_that_is_a_tensor(mode: dict[str, bool]) -> None:
    results = []
    for rate in (1e-2, torch.tensor(1e-2, dtype=torch.float64)):
        torch.manual_seed(0)
        params = random_parameters()
        optimizer = ClippedAdam(params, lr=rate, **mode)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=8)
        for seed in range(10):
            gradients(params, seed)
            optimizer.step()
            schedule.step()
        results.append([param.detach() for param in params])
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == pytest.approx(5e-3)
    assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)


@every_mode
def test_training_goes_on_bit_by_bit_after_loading(mode: dict[str, bool]) -> None:
    params = random_parameters()
    optimizer = ClippedAdam(groups(params), **mode)
    for seed in range(5):
        gradients(params, seed)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = ClippedAdam([{"params": copies[:3]}, {"params": copies[3:]}], lr=1.0, **mode)
    slots = {name: slot for state in resumed.state.values() for name, slot in state.items()}
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(5, 12):
        for trained, each in ((params, optimizer), (copies, resumed)):
            gradients(trained, seed)
            each.step()
    for param, copy in zip(params, copies, strict=True):
        assert torch.equal(param, copy)
        for name, slot in optimizer.state[param].items():
            assert torch.equal(slot, resumed.state[copy][name])
    assert all(resumed.state[copies[-1]][name] is slot for name, slot in slots.items())
    with pytest.raises(ValueError, match=r"'mu' of parameter 0.*Load the state of a ClippedAdam"):
        ClippedAdam([parameter(1.0)]).load_state_dict(LaProp([parameter(1.0, 2.0)]).state_dict())


@every_mode
def test_an_update_that_is_called_off(mode: dict[str, bool]) -> None:
    """Nothing changes, whatever the gradients, first or later, and the next one is as if it had never been."""
    options = {"lr": 0.1, "decay": 0.1, "clip": 1.0, **mode}
    called_off, other = (ClippedAdam([parameter(1.0, -2.0), parameter(0.5)], **options) for _ in range(2))
    for grads in ((1.0, 2.0), (-3.0, 0.5)):
        before = [x.detach().clone() for param, state in called_off.state.items() for x in (param, *state.values())]
        for bad in (math.nan, math.inf, 5.0):
            for param in called_off.state:
                param.grad = torch.full_like(param, bad)
            called_off.step_where(torch.tensor(False))
            after = [x.detach() for param, state in called_off.state.items() for x in (param, *state.values())]
            assert_close(after, before, rtol=0, atol=0)
        for optimizer in (called_off, other):
            for param, grad in zip(optimizer.state, grads, strict=True):
                param.grad = torch.full_like(param, grad)
        called_off.step_where(torch.tensor(True))
        other.step()
    for one, two in zip(called_off.state, other.state, strict=True):
        assert_close(one, two, rtol=0, atol=1e-7)


def test_capture_of_a_step_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is counted; no GPU is needed to see it."""
    with FakeTensorMode():
        param = nn.Parameter(torch.zeros(3, device="cuda"))
        param.grad = torch.zeros_like(param)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="ClippedAdam with capturable=False"):
            ClippedAdam([param]).step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_is_a_step() -> None:
    """Also one that is called off, with a learning rate that changes between the replays."""
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        params = [nn.Parameter(param.detach().cuda()) for param in random_parameters()]
        rate, finite = torch.tensor(1e-2, device="cuda"), torch.ones((), dtype=torch.bool, device="cuda")
        optimizer = ClippedAdam(params, rate, clip=0.5, decay=1e-3, capturable=True)
        gradients(params, 0)
        graph = torch.cuda.CUDAGraph()
        if captured:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                optimizer.step_where(finite)
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            for param in params:
                param.grad.copy_(torch.randn(param.shape, generator=generator))
            finite.fill_(seed != 3)
            rate.fill_(1e-2 / (1 + seed))
            graph.replay() if captured else optimizer.step_where(finite)
        results.append([x.detach() for param in params for x in (param, *optimizer.state[param].values())])
    assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)
    assert results[0][1] == 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lr": math.nan}, r"ClippedAdam got lr=nan\. Choose"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0\. Choose"),
        ({"eps": 0.0}, r"eps=0.0\. Choose"),
        ({"clip": 0.0}, r"clip=0.0\. .*math.inf"),
        ({"decay": 1.0}, r"decay=1.0\. Choose"),
    ],
)
def test_impossible_values_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ClippedAdam([{"params": [parameter(1.0)], **options}])
    with pytest.raises(ValueError, match="float16"):
        ClippedAdam([parameter(1.0, dtype=torch.float16)])
