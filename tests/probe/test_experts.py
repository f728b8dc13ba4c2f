"""Mixtures of experts as classifiers, and what modules keep of their parameters in eval mode."""

import pytest
import torch
from torch import nn

from nc_callbacks.probe import check_head


class Experts(nn.Module):
    """Each sample goes to the expert that the gate prefers."""

    def __init__(self, sparse, scaled):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 4) for _ in range(3))
        self.sparse, self.scaled = sparse, scaled

    def forward(self, h):
        share, chosen = self.gate(h).softmax(-1).max(-1)
        share = share[:, None] if self.scaled else 1
        if not self.sparse:
            return torch.stack([expert(h) for expert in self.experts], 1)[torch.arange(len(h)), chosen] * share
        out = h.new_zeros(len(h), 4)
        for number, expert in enumerate(self.experts):
            if (mine := chosen == number).any():
                out[mine] = expert(h[mine])
        return out * share


class Network(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), head

    def forward(self, x):
        return self.head(self.body(x))


def found(model, name=None, seed=0):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return check_head(model, model, x, torch.arange(32) % 4, name)


@pytest.mark.parametrize(("sparse", "name"), [(False, None), (False, "head"), (True, "head")])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_of_experts_has_no_weight(sparse, name, scaled, seed):
    """Also where all samples of the batch that is tried go to one expert, as with seed 0."""
    torch.manual_seed(seed)
    model = Network(Experts(sparse, scaled)).eval()
    head = found(model, name)
    assert (head.name, head.affine) == ("head", False)


@pytest.mark.parametrize("seed", range(1, 4))
def test_experts_that_see_their_samples_alone_have_to_be_named(seed):
    torch.manual_seed(seed)
    with pytest.raises(ValueError, match=r"returns what 'head' gives as a whole.*head='head'"):
        found(Network(Experts(sparse=True, scaled=False)).eval())
    torch.manual_seed(0)
    head = found(Network(Experts(sparse=True, scaled=False)).eval())
    assert (head.name, head.affine) == ("head", False)


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4)),
        nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)),
        nn.Sequential(nn.ReLU(), nn.Linear(8, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)),
    ],
)
def test_what_is_affine_on_the_features_stays_so(head):
    """ReLU too, for the features are not negative."""
    assert found(Network(head).eval(), "head").affine


class Cached(nn.Module):
    """Its biases are read from a cache in eval mode, which training drops: as in LeViT."""

    def __init__(self, rows, columns):
        super().__init__()
        self.biases, self.scale = nn.Parameter(torch.randn(rows, columns)), nn.Linear(1, 1)
        self.kept = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = {}

    def forward(self, h):
        if self.training:
            return h + self.biases.mean()
        if "sum" not in self.kept:
            self.kept["sum"] = self.biases.mean()
        return h + self.kept["sum"]


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (8, 4), (4, 3)])
def test_a_matrix_that_is_read_from_a_cache_is_no_classifier(rows, columns):
    torch.manual_seed(0)
    model = Network(nn.Linear(8, 4))
    model.body.append(Cached(rows, columns))
    model.eval()
    assert found(model).name == "head"
    kept, before = model.body[-1].kept, model.body[-1].biases.clone()
    found(model)
    assert model.body[-1].kept is kept
    assert kept["sum"].isfinite()
    assert torch.equal(model.body[-1].biases, before)
    assert not any(module.training for module in model.modules())


def test_levit_with_as_many_classes_as_offsets():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LevitConfig(
        image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[4, 8, 12], depths=[1, 1, 1], key_dim=[4, 4, 4]
    )
    config.num_labels = 4
    model = transformers.LevitForImageClassification(config).eval()
    with torch.no_grad():
        head = check_head(model, lambda x: model(pixel_values=x).logits, torch.randn(8, 3, 64, 64), torch.arange(8) % 4)
    assert head.name == "classifier.linear"
