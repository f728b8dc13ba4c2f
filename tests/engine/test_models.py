"""Models and trainers of other make-up: gradients in forward, averaged weights, layers made late, other labels."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanInit, NeuralCollapse, WeightMeanAlignment
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer, whole_set


class Energy(Classifier):
    """Moves its input along a gradient before it classifies it."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.body(x).square().sum()
        (step,) = torch.autograd.grad(energy, x, create_graph=torch.is_grad_enabled())
        return self.head(self.body(x - 0.1 * step))


class Once(Energy):
    """Each module runs once, so that its input can be watched."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        (step,) = torch.autograd.grad(x.square().sum(), x)
        return self.head(self.body(x - 0.1 * step))


@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize("model", [Energy, Once])
def test_gradients_in_the_forward_pass(model, head):
    callback, watched, plain = NeuralCollapse(head=head), model(), model()
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="needs gradients in its forward pass, so looks run it with them") as told:
        trainer(callback, max_epochs=2).fit(watched, loader(shuffle=False))
    assert len([warning for warning in told if "needs gradients" in str(warning.message)]) == 1
    torch.manual_seed(0)
    trainer(max_epochs=2).fit(plain, loader(shuffle=False))
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    x, y = samples()
    watched = watched.double().eval()
    accuracy = (watched(x.double()).argmax(1) == y).double().mean().item()
    assert callback.latest["nc/train/accuracy"] == pytest.approx(accuracy)


def test_a_look_sees_the_weights_that_are_validated():
    """With averaged weights, those; training goes on with its own."""

    class Validated(Classifier):
        def on_validation_end(self):
            pass

        def validation_step(self, batch, batch_idx):
            self.seen = copy.deepcopy(self.head.weight.detach())

    def fit(*callbacks):
        torch.manual_seed(0)
        model = Validated()
        run = trainer(*callbacks, EMAWeightAveraging(decay=0.9), max_epochs=2, num_sanity_val_steps=0)
        run.fit(model, loader(shuffle=False), loader(1, shuffle=False))
        return model

    class Spy(WeightMeanAlignment):
        weights = ()

        def measure(self, observation):
            self.weights = (*self.weights, observation.classifier.weight.clone())
            return super().measure(observation)

    spy = Spy()
    model = fit(spy)
    # The last validation of the fit saw the averaged weights of the same moment as the last look.
    assert torch.equal(spy.weights[-1], model.seen)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fit().parameters(), strict=True))


class InSetup(Classifier):
    """Makes its classifier in setup."""

    def __init__(self):
        super().__init__()
        del self.head

    def setup(self, stage):
        if not hasattr(self, "head"):
            torch.manual_seed(1)
            self.head = nn.Linear(8, K)


@pytest.mark.parametrize("head", [None, "head"])
def test_layers_made_in_setup(head):
    callback, model = NeuralCollapse(head=head, layers=["body.4"]), InSetup()
    trainer(callback).fit(model, loader())
    data = samples()
    for name, value in whole_set(model, data, data).items():
        assert callback.latest[f"nc/train/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_start_in_a_layer_made_in_setup():
    seen = {}

    class Model(InSetup):
        def on_train_batch_start(self, batch, batch_idx):
            seen.setdefault("weight", self.head.weight.detach().clone())

    start = CentredMeanInit(head="head", scale=1.0)
    trainer(start).fit(Model(), loader())
    assert torch.linalg.matrix_norm(seen["weight"], 2).item() == pytest.approx(1, rel=1e-5)


def test_a_name_that_no_layer_has_in_the_end():
    with pytest.raises(ValueError, match="head 'haed' is not a module of InSetup"):
        trainer(NeuralCollapse(head="haed")).fit(InSetup(), loader())


class TestOneOfSeveralLoaders:
    """The second has labels that the classifier does not know."""

    def loaders(self):
        x, _ = samples(2)
        return [loader(1, shuffle=False), DataLoader(TensorDataset(x, torch.full((len(x),), 77)), 16)]

    def model(self):
        class Model(Classifier):
            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                self(batch[0])

        return Model()

    @pytest.mark.parametrize("mode", ["epoch_end", "online"])
    def test_it_is_chosen_by_number(self, mode):
        callback, model = NeuralCollapse(splits=["train", "val/dataloader_idx_0"], mode=mode), self.model()
        trainer(callback, num_sanity_val_steps=0).fit(model, loader(), self.loaders())
        keys = [key for key in callback.latest if key.startswith("nc/val/")]
        assert keys
        assert all(key.endswith("/dataloader_idx_0") for key in keys)
        if mode == "epoch_end":
            expected = whole_set(model, samples(1), samples())
            assert callback.latest["nc/val/nc1/dataloader_idx_0"] == pytest.approx(expected["nc1"], rel=1e-4)

    def test_in_validate(self):
        callback, model = NeuralCollapse(splits=["val/dataloader_idx_0"]), self.model()
        trainer(callback).validate(model, self.loaders(), verbose=False)
        m = reference.moments(
            model.double().eval().body(samples(1)[0].double()).detach().numpy(), samples(1)[1].numpy(), K
        )
        expected = reference.nc1(m.within, m.means)
        assert callback.latest["nc/val/nc1/dataloader_idx_0"] == pytest.approx(expected, rel=1e-4)

    def test_a_number_that_there_is_not(self):
        with pytest.raises(ValueError, match="splits has 'val/dataloader_idx_2', and the loaders are"):
            trainer(NeuralCollapse(splits=["val/dataloader_idx_2"])).fit(self.model(), loader(), self.loaders())
