"""The whitened head: its algebra against float64, its state, its deployment, what it refuses."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanHead, ClassStatistics
from nc_callbacks.transfer.forms import MOST_FEATURES
from tests.functional.test_whitening import expected
from tests.transfer.test_head import MODES, K, N, P, data, fitted


def logits_of(x, y, a, k=K, priors="uniform"):
    """Logits in float64, less their mean, of the classes that have samples."""
    weight, bias = expected(x.double().numpy(), y.numpy(), k, a, priors)
    return centred(lambda h: h.double().numpy() @ weight.T + bias)


def centred(logits):
    def of(h):
        values = np.asarray(logits(h))
        return values - values.mean(-1, keepdims=True)

    return of


def whitened(mode="fixed", x=None, y=None, **settings):
    return fitted(mode, x, y, whiten=True, **settings)


@pytest.mark.parametrize("priors", ["uniform", "empirical"])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("mode", MODES)
def test_logits_are_those_of_the_definition(mode, offset, priors):
    x, y = data(offset=offset)
    head = whitened(mode, x, y, shrinkage=0.05, scale=2.5, priors=priors)
    np.testing.assert_allclose(
        centred(lambda h: head(h).detach())(x), 2.5 * logits_of(x, y, 0.05, priors=priors)(x), atol=3e-3 + 2e-6 * offset
    )
    assert head.bias.sum().abs() < 1e-3
    weight, _ = expected(x.double().numpy(), y.numpy(), K, 0.05)
    np.testing.assert_allclose(head.weight.detach(), 2.5 * weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("normalize", "order"), [("spectral", 2), ("frobenius", "fro")])
def test_normalised_weight_gives_the_same_predictions(normalize, order):
    x, _ = data()
    plain, other = whitened(), whitened(normalize=normalize)
    assert torch.linalg.matrix_norm(other.weight, order).item() == pytest.approx(1, rel=1e-5)
    size = plain.weight.norm() / other.weight.norm()
    torch.testing.assert_close(size * other(x), plain(x), rtol=1e-4, atol=1e-4)


def test_parameters():
    names = {mode: [n for n, _ in CentredMeanHead(P, K, mode, whiten=True).named_parameters()] for mode in MODES}
    assert names == {"fixed": [], "trainable": ["weight", "bias"], "mixing": ["mixing"]}
    for mode in MODES:
        head = whitened(mode)
        if mode != "fixed":
            nn.functional.cross_entropy(head(data()[0]), data()[1]).backward()
            assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_finishing_again_without_new_samples_changes_and_says_nothing():
    head = whitened()
    before = copy.deepcopy(head.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.finalize()
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)


def test_samples_add_up_over_finalize_and_from_moments():
    x, y = data(offset=50.0)
    drifted = x + torch.randn(P, generator=torch.Generator().manual_seed(5))
    head = CentredMeanHead(P, K, whiten=True)
    head.update(x[y < 2], y[y < 2])
    with pytest.warns(UserWarning, match="No sample has class"):
        head.finalize()
    assert (head(x).argmax(1) < 2).all()  # classes without samples are never chosen
    head.update(drifted[y > 0], y[y > 0])
    head.finalize()
    both = torch.cat([x[y < 2], drifted[y > 0]]), torch.cat([y[y < 2], y[y > 0]])
    statistics = ClassStatistics(K)
    statistics.update(*both)
    whole = CentredMeanHead.from_moments(statistics.compute(), whiten=True)
    torch.testing.assert_close(head.within, whole.within, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head(x), whole(x), rtol=1e-4, atol=1e-3)
    before = head.weight.clone()
    head.finalize()  # nothing new
    torch.testing.assert_close(head.weight, before)


def test_forgetting_weighs_samples():
    """Each sample counts keep times at every call after it: as if it were there that many times."""
    x, y = data()
    head = CentredMeanHead(P, K, whiten=True, shrinkage=0.1, priors="empirical")
    parts = [(x[start::3], y[start::3]) for start in range(3)]
    for part in parts:
        head.forget(0.5)
        head.update(*part)
        head.finalize()
    # 1, 2 and 4 copies weigh like 0.25, 0.5 and 1.
    copies = [part for number, part in enumerate(parts) for _ in range(2**number)]
    repeated = torch.cat([part[0] for part in copies]), torch.cat([part[1] for part in copies])
    alike = logits_of(*repeated, 0.1, priors="empirical")(x)
    np.testing.assert_allclose(centred(head)(x), alike, rtol=1e-3, atol=1e-3)
    assert head.counts.sum() == N
    centred_head = CentredMeanHead(P, K, normalize="none")
    for part in parts:
        centred_head.forget(0.5)
        centred_head.update(*part)
        centred_head.finalize()
    torch.testing.assert_close(centred_head.means, head.means)


def test_forgetting_follows_a_drift():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(200) % 2
    steady, following = (CentredMeanHead(2, 2, whiten=True) for _ in range(2))
    for step in range(20):
        # The classes turn around each other by a half.
        angle = torch.tensor(step / 20 * torch.pi)
        centres = torch.stack([angle.cos(), angle.sin()]) * torch.tensor([[1.0], [-1.0]])
        x = centres[targets] + 0.4 * torch.randn(200, 2, generator=generator)
        for head in (steady, following):
            if head is following:
                head.forget(0.5)
            head.update(x, targets)
            head.finalize()
    assert (
        (following(x).argmax(1) == targets).float().mean()
        > 0.95
        > 0.7
        > (steady(x).argmax(1) == targets).float().mean()
    )


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_weights_to_forget_by(keep):
    head = whitened()
    with pytest.raises(ValueError, match="keep must be a weight above 0 and at most 1"):
        head.forget(keep)
    head.update(*data())
    with pytest.raises(RuntimeError, match=r"300 samples were added .* call it before forget\(\)"):
        head.forget(0.5)


@pytest.mark.parametrize("mode", MODES)
def test_state_dict_round_trip(mode):
    x, y = data()
    head = whitened(mode)
    head.forget(0.5)
    head.fit_scale(x, y)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    loaded = CentredMeanHead(None, K, mode, whiten=True)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for both in (head, loaded):
        both.update(x[:50], y[:50])
        both.finalize()
    assert torch.equal(loaded(x), head(x))


def test_heads_saved_before_there_were_weights_of_samples():
    head = fitted()
    state = {name: value for name, value in head.state_dict().items() if name not in ("weights", "precision")}
    loaded = CentredMeanHead(P, K)
    loaded.load_state_dict(state)
    for both in (head, loaded):
        both.update(*data(1))
        both.finalize()
    assert torch.equal(loaded.weight, head.weight)


@pytest.mark.parametrize("mode", MODES)
def test_deployment(mode):
    x, y = data(offset=30.0)
    head = whitened(mode, x, y)
    linear = head.to_linear()
    assert type(linear) is nn.Linear
    torch.testing.assert_close(linear(x), head(x))
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    torch.testing.assert_close(torch.export.export(head, (x,)).module()(x), head(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_statistics_and_decisions(dtype):
    x, y = data(spread=0.3)
    head, half = whitened("fixed", x, y), whitened("fixed", x, y).to(dtype)
    assert half(x.to(dtype)).dtype == dtype
    for name in ("means", "within", "weights", "precision", "scale"):
        assert torch.equal(getattr(half, name), getattr(head, name))
    agree = (half(x.to(dtype)).argmax(1) == head(x).argmax(1)).float().mean()
    assert agree > 0.98


@pytest.mark.slow
def test_compile():
    x, _ = data()
    head = whitened("mixing")
    torch.testing.assert_close(torch.compile(head, fullgraph=True)(x), head(x))


def test_fit_scale_is_the_best_temperature():
    x, y = data(spread=3.0)
    head = whitened("fixed", x, y)
    head.fit_scale(x, y)
    best = nn.functional.cross_entropy(head(x), y)
    for factor in (0.97, 1.03):
        assert nn.functional.cross_entropy(factor * head(x), y) > best


def test_extend_keeps_what_there_was():
    x, y = data()
    head = whitened()
    before, within = head(x), head.within.clone()
    head.extend(K + 1)
    torch.testing.assert_close(head(x)[:, :K], before)
    assert torch.equal(head.within, within)
    assert not (head(x).argmax(1) == K).any()
    new = x[:30] + 6
    head.update(new, torch.full((30,), K))
    head.finalize()
    whole = whitened_of(torch.cat([x, new]), torch.cat([y, torch.full((30,), K)]), K + 1)
    torch.testing.assert_close(head(x), whole(x), rtol=1e-4, atol=1e-3)


def whitened_of(x, y, k):
    head = CentredMeanHead(None, k, whiten=True)
    head.update(x, y)
    head.finalize()
    return head


def test_from_loader():
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    head = CentredMeanHead.from_loader(nn.Identity(), loader, K, scale="fit", whiten=True)
    plain = whitened()
    plain.fit_scale(x, y)
    torch.testing.assert_close(head(x), plain(x), rtol=1e-4, atol=1e-4)


def test_fewer_samples_than_features():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    x = torch.eye(3, 200)[y] * 6 + torch.randn(30, 200, generator=generator)
    head = whitened_of(x, y, 3)
    assert (head(x).argmax(1) == y).all()
    test = torch.eye(3, 200)[y] * 6 + torch.randn(30, 200, generator=generator)
    assert (head(test).argmax(1) == y).float().mean() > 0.9


def test_refusals():
    for make in (
        lambda: CentredMeanHead(MOST_FEATURES + 1, K, whiten=True),
        lambda: CentredMeanHead(None, K, whiten=True).update(torch.zeros(1, MOST_FEATURES + 1), torch.tensor([0])),
        lambda: CentredMeanHead(None, K, whiten=True).update(torch.zeros(1, 5, 57, 58), torch.tensor([0])),
    ):
        with pytest.raises(ValueError, match=r"Σ_W, p × p numbers: with p = 16,\d+ that is 2.0 GiB"):
            make()
    assert CentredMeanHead(MOST_FEATURES + 1, 2).within is None
    statistics = ClassStatistics(K, covariance="none")
    statistics.update(*data())
    with pytest.raises(ValueError, match='gathered with covariance="none"'):
        CentredMeanHead.from_moments(statistics.compute(), whiten=True)
    for settings in ({"shrinkage": 2.0, "whiten": True}, {"priors": "own", "whiten": True}, {"shrinkage": 0.1}):
        with pytest.raises(ValueError, match=r"^(shrinkage|priors) "):
            CentredMeanHead(P, K, **settings)
    head = CentredMeanHead(P, K, whiten=True)
    head.update(torch.eye(K, P), torch.arange(K))
    with pytest.raises(ValueError, match="Σ_W is 0"):
        head.finalize()
