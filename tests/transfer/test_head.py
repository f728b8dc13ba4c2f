"""CentredMeanHead: its algebra against float64, its state, its deployment, its bad inputs."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from nc_callbacks import CentredMeanHead

N, P, K = 300, 12, 5
MODES = ["fixed", "trainable", "mixing"]


def data(seed=0, offset=3.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(N, generator=generator) ** 2 * K).long()
    centres = torch.randn(K, P, generator=torch.Generator().manual_seed(7)) + offset
    return centres[targets] + spread * torch.randn(N, P, generator=generator), targets


def expected_weight(x, y, norm="spectral", classes=range(K)):
    """M̄ in float64 from its definition; a class without samples has a zero row."""
    h, y = x.double().numpy(), y.numpy()
    seen = [c for c in classes if (y == c).any()]
    means = np.stack([h[y == c].mean(0) for c in seen])
    centred = means - means.mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    weight = np.zeros((len(classes), h.shape[1]))
    weight[seen] = centred / {"spectral": singular[0], "frobenius": np.sqrt((singular**2).sum()), "none": 1}[norm]
    return weight


def fitted(mode="fixed", x=None, y=None, **settings):
    if x is None:
        x, y = data()
    head = CentredMeanHead(None, K, mode, **settings)
    for part in torch.arange(len(x)).split(70):
        head.update(x[part], y[part])
    head.finalize()
    return head


@pytest.mark.parametrize("normalize", ["spectral", "frobenius", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_weight_and_logits_are_those_of_the_definition(mode, normalize):
    x, y = data()
    head = fitted(mode, normalize=normalize, scale=2.5)
    weight = 2.5 * expected_weight(x, y, normalize)
    np.testing.assert_allclose(head.weight.detach(), weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(head(x).detach(), x.double().numpy() @ weight.T, rtol=1e-4, atol=1e-4)


def test_fixed_has_no_parameters_and_the_others_have_one():
    names = {mode: [name for name, _ in CentredMeanHead(P, K, mode).named_parameters()] for mode in MODES}
    assert names == {"fixed": [], "trainable": ["weight"], "mixing": ["mixing"]}


def test_mixing_is_a_product_with_v_and_its_gradient_reaches_v_alone():
    x, y = data()
    head = fitted("mixing")
    v = torch.randn(K, K, generator=torch.Generator().manual_seed(1))
    head.mixing.data.copy_(v)
    means = expected_weight(x, y)
    np.testing.assert_allclose(
        head(x).detach(), x.double().numpy() @ (means.T @ v.double().numpy()), rtol=1e-4, atol=1e-4
    )
    nn.functional.cross_entropy(head(x), y).backward()
    assert not head.weight.requires_grad
    # The gradient of the mean cross-entropy with respect to V is (H M̄ᵀ)ᵀ (softmax − one-hot) / n.
    logits = x.double() @ torch.tensor(means).T
    residual = (logits @ v.double()).softmax(1) - nn.functional.one_hot(y, K)
    torch.testing.assert_close(head.mixing.grad.double(), logits.T @ residual / N, rtol=1e-4, atol=1e-6)


def test_trainable_gradient_reaches_the_weight():
    x, y = data()
    head = fitted("trainable")
    nn.functional.cross_entropy(head(x), y).backward()
    assert head.weight.grad.abs().sum() > 0


def test_parts_add_up_across_finalize_calls():
    x, y = data(offset=100.0)
    later = x + torch.randn(P, generator=torch.Generator().manual_seed(5))
    twice = CentredMeanHead(P, K)
    twice.update(x[y < 2], y[y < 2])
    with pytest.warns(UserWarning, match="No sample has class"):
        twice.finalize()
    twice.update(later[y > 0], y[y > 0])
    twice.finalize()
    doubled = torch.cat([x[y < 2], later[y > 0]]), torch.cat([y[y < 2], y[y > 0]])
    assert twice.counts.tolist() == torch.bincount(doubled[1], minlength=K).tolist()
    np.testing.assert_allclose(twice.weight, expected_weight(*doubled), rtol=1e-5, atol=1e-6)
    twice.finalize()  # nothing new
    np.testing.assert_allclose(twice.weight, expected_weight(*doubled), rtol=1e-5, atol=1e-6)


def test_predictions_do_not_depend_on_scale_or_norm():
    x, _ = data()
    predictions = [fitted(scale=s, normalize=n)(x).argmax(1) for s in (0.1, 30.0) for n in ("spectral", "none")]
    assert all(torch.equal(predictions[0], other) for other in predictions)


@pytest.mark.parametrize("mode", MODES)
def test_fit_scale_minimises_the_cross_entropy(mode):
    x, y = data(spread=4.0)
    head = fitted(mode, x, y, scale=3.0)
    scale = head.fit_scale(x, y)
    logits = x.double() @ torch.tensor(expected_weight(x, y)).T
    loss = lambda s: nn.functional.cross_entropy(s * logits, y).item()  # noqa: E731
    best = minimize_scalar(loss, bounds=(1e-3, 100), method="bounded", options={"xatol": 1e-9}).x
    assert scale == pytest.approx(best, rel=1e-4)
    assert float(head.scale) == scale
    np.testing.assert_allclose(head.weight.detach(), scale * expected_weight(x, y), rtol=1e-4, atol=1e-6)
    head.finalize()  # sets the weight anew, with the same scale
    np.testing.assert_allclose(head.weight.detach(), scale * expected_weight(x, y), rtol=1e-4, atol=1e-6)


def test_fit_scale_takes_sequences_and_one_hot_labels():
    x, y = data()
    plain, sequences, one_hot = fitted(), fitted(), fitted()
    expected = plain.fit_scale(x, y)
    assert sequences.fit_scale(x.view(30, 10, P), y.view(30, 10)) == expected
    assert one_hot.fit_scale(x, nn.functional.one_hot(y, K)) == expected


def test_any_leading_dimensions():
    x, _ = data()
    head = fitted()
    assert torch.equal(head(x.view(3, 10, 10, P)), head(x).view(3, 10, 10, K))
    assert head(x[0]).shape == (K,)


def test_extend_keeps_counts_and_means_and_trained_rows_exactly():
    x, y = data()
    for mode in MODES:
        head = fitted(mode)
        for parameter in head.parameters():
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        old = {name: value.clone() for name, value in head.state_dict().items()}
        before = head(x).detach()
        head.extend(K + 2)
        assert torch.equal(head.counts[:K], old["counts"])
        assert torch.equal(head.means[:K], old["means"])
        torch.testing.assert_close(head(x)[:, :K].detach(), before)
        assert not head(x)[:, K:].any()
        new = x[:40] + 5
        head.update(new, torch.arange(40) % 2 + K)
        head.finalize()
        everything = torch.cat([x, new]), torch.cat([y, torch.arange(40) % 2 + K])
        assert torch.equal(head.means[:K], old["means"])
        np.testing.assert_allclose(
            head.weight.detach(), expected_weight(*everything, classes=range(K + 2)), rtol=1e-4, atol=1e-6
        )


def test_extend_refuses_fewer_classes_and_unfinished_samples():
    head = fitted()
    with pytest.raises(ValueError, match="at least the present 5 classes, got 4"):
        head.extend(4)
    head.update(*data())
    with pytest.raises(RuntimeError, match="300 samples were added since the last finalize"):
        head.extend(6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sized", [False, True])
def test_state_dict_round_trip_without_unpickling(mode, sized):
    x, y = data()
    head = fitted(mode)
    head.fit_scale(x, y)
    for parameter in head.parameters():
        parameter.data += 0.1
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    loaded = CentredMeanHead(P if sized else None, K, mode)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(x), head(x))
    for copied in (loaded, head):
        copied.update(x[:50], y[:50])
        copied.finalize()
    assert torch.equal(loaded(x), head(x))


def test_an_unsized_head_round_trips_and_stays_unsized():
    file = io.BytesIO()
    torch.save(CentredMeanHead(None, K, "trainable").state_dict(), file)
    file.seek(0)
    loaded = CentredMeanHead(None, K, "trainable")
    optimizer = torch.optim.SGD(loaded.parameters(), 0.1)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded.num_features is None
    x, y = data()
    loaded.update(x, y)
    loaded.finalize()
    before = loaded.weight.detach().clone()
    nn.functional.cross_entropy(loaded(x), y).backward()
    optimizer.step()  # an optimiser from before the width was known still holds the weight
    assert not torch.equal(loaded.weight, before)


def test_checkpoint_of_other_size_is_refused():
    saved = fitted().state_dict()
    for head in (CentredMeanHead(P, K + 1), CentredMeanHead(P + 1, K)):
        with pytest.raises(RuntimeError, match=r"saved CentredMeanHead has 5 classes and 12 features, this one"):
            head.load_state_dict(saved)


def test_saving_names_samples_that_are_not_in_it():
    head = fitted()
    head.update(*data())
    with pytest.warns(UserWarning, match="300 samples were added since the last finalize"):
        head.state_dict()


@pytest.mark.parametrize("mode", MODES)
def test_to_linear_gives_the_same_logits_and_draws_nothing(mode):
    x, _ = data()
    head = fitted(mode)
    for parameter in head.parameters():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    linear = head.to_linear()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(linear) is nn.Linear
    assert linear.bias is None
    assert torch.equal(linear(x), head(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch deprecates scripting
        assert torch.equal(torch.jit.script(linear)(x), head(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_statistics(dtype):
    x, y = data()
    head, half = fitted(), fitted().to(dtype)
    assert half(x.to(dtype)).dtype == dtype
    assert torch.equal(half.means, head.means)
    assert torch.equal(half.scale, head.scale)
    half.update(x.to(dtype), y)
    half.finalize()
    both = torch.cat([x, x.to(dtype).float()]), torch.cat([y, y])
    np.testing.assert_allclose(half.weight.float(), expected_weight(*both), atol=4e-3)
    assert half.weight.dtype == dtype
    np.testing.assert_allclose(half.float().means.numpy(), half.means.numpy())


@pytest.mark.parametrize("mode", MODES)
def test_export_and_deepcopy(mode):
    x, _ = data()
    head = fitted(mode)
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    exported = torch.export.export(head, (x,)).module()
    assert torch.equal(exported(x), head(x))


def test_representation_says_how_it_was_made():
    told = fitted(scale=2.5).extra_repr()
    assert told == "num_features=12, num_classes=5, mode='fixed', normalize='spectral', scale=2.5"
    unsized = CentredMeanHead(None, 3, "mixing", whiten=True, shrinkage=0.1, priors="empirical").extra_repr()
    assert unsized == (
        "num_features=None, num_classes=3, mode='mixing', normalize='none', scale=1, whiten=True, shrinkage=0.1, "
        "priors='empirical'"
    )


@pytest.mark.slow
def test_compile():
    x, y = data()
    head = fitted("mixing")
    compiled = torch.compile(head, fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    nn.functional.cross_entropy(compiled(x), y).backward()
    assert head.mixing.grad is not None


def test_absent_class_has_a_zero_row_and_is_named_once():
    x, y = data()
    x, y = x[y != 3], y[y != 3]
    head = CentredMeanHead(P, K)
    head.update(x, y)
    with pytest.warns(UserWarning, match="No sample has class 3: 1 of the 5 rows of the weight are zero"):
        head.finalize()
    np.testing.assert_allclose(head.weight, expected_weight(x, y), rtol=1e-5, atol=1e-6)
    assert not head.weight[3].any()
    assert not (head(x).argmax(1) == 3).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.update(x, y)
        head.finalize()
