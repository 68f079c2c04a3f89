"""Latents of the whole family: the same interface, the official KL and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.testing import assert_close

from dreamer_torchrl.modules import CategoricalLatent, GaussianLatent
from tests.objectives.examples import golden

Latent = CategoricalLatent | GaussianLatent
LATENTS = {
    "categorical": CategoricalLatent(4, 3, unimix=0.0),
    "gauss": GaussianLatent(4),
    "gauss_v2": GaussianLatent(4, activation="sigmoid2", min_std=0.2),
}
every_latent = pytest.mark.parametrize("latent", LATENTS.values(), ids=LATENTS.keys())


@pytest.fixture(scope="module")
def table() -> dict[str, Tensor]:
    return golden("tables_v2.npz", "golden_family")


@every_latent
def test_the_interface_is_one(latent: Latent) -> None:
    """From the last layer's output to features and to what the replay stores."""
    parameters = latent.as_state(torch.randn(5, 2, latent.parameters))
    noise = latent.noise(5, 2, generator=torch.Generator().manual_seed(0))
    assert noise.equal(latent.noise(5, 2, generator=torch.Generator().manual_seed(0)))
    state = latent.sample(parameters, noise)
    for each in (state, latent.mode(parameters), latent.sample(parameters)):
        assert each.shape == (5, 2, latent.variables, latent.classes)
        assert latent.spec.is_in(each[0, 0])
    assert state[0, 0].numel() == latent.size
    packed = latent.pack(state)
    assert (packed.shape[2:], packed.dtype) == (latent.packed_shape, latent.packed_dtype)
    assert latent.unpack(packed).equal(state)
    features = latent.features(torch.ones(5, 2, 6), state)
    assert_close(features, torch.cat([torch.ones(5, 2, 6), state.reshape(5, 2, -1)], -1))
    assert latent.entropy(parameters).shape == (5, 2)


def test_noise_is_uniform_for_classes_and_normal_for_numbers() -> None:
    uniforms, normals = (LATENTS[name].noise(500) for name in ("categorical", "gauss"))
    assert 0 <= uniforms.min() < 0.01 and 0.99 < uniforms.max() < 1
    assert normals.mean().abs() < 0.1 and (normals.std() - 1).abs() < 0.1


@pytest.mark.parametrize(
    ("activation", "std"),
    [("softplus", lambda raw: raw.exp().log1p() + 0.1), ("sigmoid2", lambda raw: 2 / (1 + (-raw / 2).exp()) + 0.1)],
)
def test_means_come_first_and_deviations_are_activated(activation: str, std: object) -> None:
    flat = torch.randn(7, 6)
    parameters = GaussianLatent(3, activation=activation).as_state(flat)
    assert_close(parameters[..., 0], flat[:, :3])
    assert_close(parameters[..., 1], std(flat[:, 3:]))


def test_a_gaussian_sample_has_the_reparameterized_gradient() -> None:
    parameters = LATENTS["gauss"].as_state(torch.randn(5, 8)).requires_grad_()
    noise = LATENTS["gauss"].noise(5)
    state = LATENTS["gauss"].sample(parameters, noise)
    assert_close(state.squeeze(-1), parameters[..., 0] + parameters[..., 1] * noise)
    state.sum().backward()
    assert_close(parameters.grad, torch.stack([torch.ones(5, 4), noise], -1))
    assert_close(LATENTS["gauss"].entropy(parameters), td.Normal(*parameters.unbind(-1)).entropy().sum(-1))


def recorded(table: dict[str, Tensor], kind: str, of: str) -> Tensor:
    """Parameters, or gradients for them, as the latent lays them out."""
    if kind == "discrete":
        return table[f"kl_loss/discrete/{of}/logit"]
    return torch.stack([table[f"kl_loss/gauss/{of}/{name}"] for name in ("mean", "std")], -1)


@pytest.mark.parametrize(
    ("kind", "latent"), [("discrete", CategoricalLatent(3, 4, unimix=0.0)), ("gauss", GaussianLatent(3))]
)
def test_the_kl_and_its_two_gradients_are_official(table: dict[str, Tensor], kind: str, latent: Latent) -> None:
    """With balance 0.8, 0.8 of the gradient trains the prior; the other way round the numbers differ."""
    case = "forward0_balance0.8_freeavg1_free0.0"
    posterior, prior = (recorded(table, kind, name).requires_grad_() for name in ("post", "prior"))
    dynamics, representation = latent.kl(posterior, prior)
    for value in (dynamics, representation):
        assert_close(value, table[f"kl_loss/{kind}/{case}/value"], rtol=1e-5, atol=1e-5)
    wanted = [recorded(table, kind, f"{case}/grad_{name}") for name in ("post", "prior")]
    for balance in (0.8, 0.2):
        loss = balance * dynamics.mean() + (1 - balance) * representation.mean()
        assert_close(loss, table[f"kl_loss/{kind}/{case}/loss"], rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad(loss, [posterior, prior], retain_graph=True)
        right = all(x.allclose(y, rtol=1e-4, atol=1e-6) for x, y in zip(found, wanted, strict=True))
        assert right == (balance == 0.8)


def test_one_hot_without_unimix_is_official(table: dict[str, Tensor]) -> None:
    """Also where a probability is too small for float32: nothing is infinite."""
    latent = CategoricalLatent(1, 5, unimix=0.0)
    logits, others = (table[f"onehot/{name}"].unsqueeze(-2) for name in ("logits", "other_logits"))
    assert_close(latent.entropy(logits), table["onehot/entropy"], rtol=1e-5, atol=1e-5)
    for value in latent.kl(logits, others):
        assert_close(value, table["onehot/kl_to_other"], rtol=1e-5, atol=1e-5)
    assert_close(latent.mode(logits).squeeze(-2), table["onehot/mode"].float())
    certain = torch.tensor([[0.0, 200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    dynamics, representation = latent.kl(certain, -certain)
    (dynamics + representation + latent.entropy(certain)).backward()
    assert dynamics.item() == pytest.approx(200 + torch.tensor(4.0).log().item()) and certain.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"activation": "relu"}, "'relu' .*softplus")],
)
def test_impossible_gaussians_are_named(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        GaussianLatent(3, **options)
