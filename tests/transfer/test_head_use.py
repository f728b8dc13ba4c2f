"""CentredMeanHead made from moments and loaders, and its bad inputs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanHead, ClassStatistics
from tests.transfer.test_head import K, N, P, data, expected_weight, fitted


class TestFromMomentsAndLoader:
    def test_from_moments(self):
        x, y = data()
        statistics = ClassStatistics(K, covariance="none")
        statistics.update(x, y)
        head = CentredMeanHead.from_moments(statistics.compute(), "trainable", "none", scale=2.0)
        np.testing.assert_allclose(head.weight.detach(), 2 * expected_weight(x, y, "none"), rtol=1e-5, atol=1e-5)
        assert torch.equal(head.counts, torch.bincount(y, minlength=K))

    def test_from_loader_leaves_ignored_targets_out(self):
        x, y = data()
        out = torch.arange(N) % 3 == 0
        loader = DataLoader(TensorDataset(x, y.where(~out, -100)), batch_size=64)
        head = CentredMeanHead.from_loader(nn.Identity(), loader, K, scale="fit", ignore_index=-100)
        expected = CentredMeanHead.from_loader(
            nn.Identity(), DataLoader(TensorDataset(x[~out], y[~out]), 64), K, scale="fit"
        )
        torch.testing.assert_close(head.weight, expected.weight)
        assert torch.equal(head.counts, torch.bincount(y[~out], minlength=K))
        with pytest.raises(ValueError, match="-100"):
            CentredMeanHead.from_loader(nn.Identity(), loader, K)

    def test_from_loader_is_one_pass_that_leaves_no_trace(self, monkeypatch):
        x, y = data()
        backbone = nn.Sequential(nn.Linear(P, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh()).train()
        calls = []
        # Not by a hook, whose list would be put back as it was.
        forward = nn.Tanh.forward
        monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: (calls.append(1), forward(self, x))[1])
        buffers = {name: value.clone() for name, value in backbone.named_buffers()}
        loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, drop_last=True)
        state = torch.get_rng_state()
        head = CentredMeanHead.from_loader(backbone, loader, K, mode="trainable", scale="fit")
        assert len(calls) == -(-N // 64)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in backbone.modules())
        assert all(torch.equal(value, buffers[name]) for name, value in backbone.named_buffers())
        with torch.no_grad():
            features = backbone.eval()(x)
        assert head.counts.sum() == N
        np.testing.assert_allclose(
            head.weight.detach(), float(head.scale) * expected_weight(features, y), rtol=1e-4, atol=1e-5
        )
        # All features are kept, being fewer than 8,192.
        assert float(head.scale) == pytest.approx(fitted(x=features, y=y).fit_scale(features, y), rel=1e-5)

    def test_images_dicts_and_pooled_features(self):
        x, y = data()
        rows = [{"image": image, "label": label} for image, label in zip(x, y, strict=True)]
        head = CentredMeanHead.from_loader(nn.Unflatten(1, (P, 1, 1)), DataLoader(rows, batch_size=50), K)
        np.testing.assert_allclose(head.weight, expected_weight(x, y), rtol=1e-5, atol=1e-6)

    def test_loader_without_targets(self):
        loader = DataLoader(TensorDataset(data()[0]), batch_size=50)
        with pytest.raises(ValueError, match=r"Expected batches that start with \(inputs, targets\)"):
            CentredMeanHead.from_loader(nn.Identity(), loader, K)

    def test_empty_loader(self):
        loader = DataLoader(TensorDataset(*(part[:0] for part in data())), batch_size=50)
        with pytest.raises(ValueError, match="The loader is empty"):
            CentredMeanHead.from_loader(nn.Identity(), loader, K)

    def test_backbone_must_be_a_module_that_returns_a_tensor(self):
        loader = DataLoader(TensorDataset(*data()), batch_size=50)
        with pytest.raises(ValueError, match=r"backbone must be an nn.Module .* got function"):
            CentredMeanHead.from_loader(lambda x: x, loader, K)

        class Pair(nn.Module):
            def forward(self, x):
                return x, x

        with pytest.raises(
            ValueError, match=r"Expected the backbone \(Pair\) to return features as a tensor, got tuple"
        ):
            CentredMeanHead.from_loader(Pair(), loader, K)


class TestBadInputs:
    def test_forward_before_any_class_was_seen(self):
        head = CentredMeanHead(P, K)
        for call in (lambda: head(torch.zeros(2, P)), head.to_linear, lambda: head.fit_scale(*data())):
            with pytest.raises(
                RuntimeError, match=r"no class means yet: call update\(features, targets\) and finalize"
            ):
                call()

    def test_finalize_without_samples_or_with_one_class(self):
        with pytest.raises(ValueError, match="there are 0 samples of 0 classes"):
            CentredMeanHead(P, K).finalize()
        head = CentredMeanHead(P, K)
        head.update(torch.ones(3, P), torch.zeros(3, dtype=torch.long))
        with pytest.raises(ValueError, match="there are 3 samples of 1 classes"):
            head.finalize()

    def test_other_width(self):
        head = fitted()
        with pytest.raises(ValueError, match=r"last dimension of 12, .* got \(2, 11\)"):
            head(torch.zeros(2, 11))
        for unsized in (head, CentredMeanHead(P, K)):
            with pytest.raises(ValueError, match="features must have 12 entries per sample"):
                unsized.update(torch.zeros(2, 11), torch.tensor([0, 1]))

    def test_targets_out_of_range(self):
        with pytest.raises(ValueError, match=r"targets must lie in 0…4 \(num_classes=5\), got \[5\]"):
            CentredMeanHead(P, K).update(torch.zeros(2, P), torch.tensor([0, 5]))

    def test_features_that_are_not_finite_are_dropped_with_their_batch(self):
        x, y = data()
        head = fitted()
        before = head.weight.clone()
        head.update(x * torch.tensor(float("nan")), y)
        with pytest.raises(ValueError, match="300 of 300 samples have NaN or infinite features"):
            head.finalize()
        head.finalize()
        assert torch.equal(head.weight, before)

    def test_coinciding_means(self):
        head = CentredMeanHead(P, 2)
        head.update(torch.ones(4, P), torch.tensor([0, 1, 0, 1]))
        with pytest.raises(ValueError, match="All class means coincide"):
            head.finalize()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
            ({"mode": "frozen"}, 'mode must be "fixed", "trainable" or "mixing", got \'frozen\''),
            ({"normalize": "l2"}, "normalize must be"),
            ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
            ({"scale": "fit"}, "scale must be a positive number, got 'fit'; fit_scale and from_loader can fit it"),
        ],
    )
    def test_arguments(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CentredMeanHead(**{"num_features": P, "num_classes": K} | settings)

    def test_rows_and_targets_of_different_length(self):
        head = fitted()
        with pytest.raises(ValueError, match=r"one row of features a target, got \(4, 12\) and \(3,\)"):
            head.fit_scale(torch.zeros(4, P), torch.zeros(3, dtype=torch.long))
