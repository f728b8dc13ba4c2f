"""Classifiers that keep their contract, and those that do not, as trainers meet them."""

import math

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanInit, NeuralCollapse, WeightMeanAlignment
from tests.callbacks.common import trainer

K = 4
Y = torch.arange(81) % K
X = torch.randn(K, 8, generator=torch.Generator().manual_seed(1))[Y] + 0.3 * torch.randn(
    81, 8, generator=torch.Generator().manual_seed(2)
)


class Model(L.LightningModule):
    """Layers are made where `make` says; `returned` is what forward gives of the module and the features."""

    def __init__(self, returned=lambda m, h: m.head(h), head=None, in_setup=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12))
        self.returned, self.in_setup = returned, in_setup
        if not in_setup:
            self.head = nn.Linear(12, K) if head is None else head

    def setup(self, stage):
        if self.in_setup:
            self.head = nn.Linear(12, K)

    def forward(self, x):
        return self.returned(self, self.body(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1].long().flatten() % K)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(*tensors, batch_size=16):
    return DataLoader(TensorDataset(*(tensors or (X, Y))), batch_size)


def fit(model, *callbacks, data=None, **settings):
    trainer(*callbacks, max_epochs=1, **settings).fit(model, data or loader())
    return [callback.latest for callback in callbacks if hasattr(callback, "latest")]


def accuracy(model):
    with torch.no_grad():
        return (model.head(model.body(X)).argmax(1) == Y).float().mean().item()


def test_logits_beside_features():
    model, callback = Model(lambda m, h: (h, m.head(h))), NeuralCollapse()
    (latest,) = fit(model, callback)
    assert callback.head == "head"
    assert math.isclose(latest["nc/train/accuracy"], accuracy(model), abs_tol=1e-6)


@pytest.mark.parametrize("callback", [NeuralCollapse, CentredMeanInit])
def test_features_alone_are_refused_and_nothing_is_written(callback):
    model = Model(lambda m, h: m.head(h) if m.training else h)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="forward seems to return features in eval mode"):
        fit(model, callback())
    assert all(map(torch.equal, model.parameters(), before))


def test_centred_mean_init_writes_into_the_head_alone():
    model = Model(lambda m, h: (h, m.head(h)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)
    fit(model, CentredMeanInit())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, 12))

    def forward(self, x):
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


def test_what_needs_a_weight_is_left_out_where_there_is_none():
    model = Model(head=Cosine())
    with pytest.warns(UserWarning, match=r"'head' is no affine map of its input and so has no weight.*left out"):
        collapse, alignment = fit(
            model, NeuralCollapse(head="head", mse_weight_decay=0.1), WeightMeanAlignment(head="head", implicit="full")
        )
    names = {key.rpartition("/")[2] for key in collapse | alignment}
    assert names >= {"nc1", "nc2_etf", "nc4", "accuracy", "mu1", "accuracy_centred_means"}
    assert not [name for name in names if name.startswith(("nc3", "wm_", "mse_", "implicit")) or "weights" in name]
    assert math.isclose(collapse["nc/train/accuracy"], accuracy(model), abs_tol=1e-6)
    with pytest.raises(ValueError, match=r"'head' \(Cosine\) does not multiply its input with the rows"):
        fit(Model(head=Cosine()), CentredMeanInit())


def test_a_weight_in_another_layout_is_not_written():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, K))

        def forward(self, x):
            return x @ self.weight

    model = Model(head=Turned())
    before = model.head.weight.clone()
    with pytest.raises(ValueError, match="does not multiply its input with the rows"):
        fit(model, CentredMeanInit())
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: NeuralCollapse(head="head"),
        lambda: NeuralCollapse(layers=["head"]),
        lambda: CentredMeanInit(head="head", freeze_backbone=True),
    ],
)
def test_layers_made_in_setup(callback):
    model = Model(in_setup=True)
    fit(model, callback())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_are_not_there_after_setup():
    with pytest.raises(ValueError, match="head 'fc' is not a module of Model"):
        fit(Model(), NeuralCollapse(head="fc"))


def test_a_last_batch_of_one_that_the_model_squeezes():
    model, callback = Model(lambda m, h: m.head(h.squeeze())), NeuralCollapse(layers=["body"])
    (latest,) = fit(model, callback, data=DataLoader(TensorDataset(X, Y), 16, shuffle=True, drop_last=True))
    assert latest["nc/train/counts"].sum() == 81
    assert math.isclose(latest["nc/train/accuracy"], accuracy(model), abs_tol=1e-6)
    fit(Model(lambda m, h: m.head(h.squeeze())), CentredMeanInit())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_parts():
    model, plain = Model(), Model()
    model.body = torch.jit.script(model.body)
    (scripted,), (eager,) = fit(model, NeuralCollapse()), fit(plain, NeuralCollapse())
    assert math.isclose(scripted["nc/train/nc1"], eager["nc/train/nc1"], rel_tol=1e-4)


@pytest.mark.parametrize("targets", [Y.float(), Y.int()[:, None], Y.double()[:, None], F.one_hot(Y).bool()])
def test_labels_of_other_kinds(targets):
    model = Model()
    model.training_step = lambda batch, batch_idx: F.cross_entropy(model(batch[0]), model(batch[0]).softmax(1))
    latest, *_ = fit(model, NeuralCollapse(), data=loader(X, targets))
    assert math.isclose(latest["nc/train/accuracy"], accuracy(model), abs_tol=1e-6)


def test_several_labels_a_sample():
    several = F.one_hot(Y) + F.one_hot((Y + 1) % K)
    model = Model()
    model.training_step = lambda batch, batch_idx: F.cross_entropy(model(batch[0]), batch[1].float())
    for callback in (NeuralCollapse(), CentredMeanInit()):
        with pytest.raises(ValueError, match=r"one label a sample.*multi-label"):
            fit(model, callback, data=loader(X, several))
