"""CentredMeanInit: weights that it must not set, and bad input."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanInit
from tests.callbacks.common import Classifier, K, loader, samples, trainer
from tests.callbacks.test_centred_mean_init import Recorded, start_of


def weight_norm(model):
    torch.nn.utils.parametrizations.weight_norm(model.head)


def spectral_norm(model):
    torch.nn.utils.parametrizations.spectral_norm(model.head)


def old_weight_norm(model):
    torch.nn.utils.weight_norm(model.head)


def tied(model):
    model.embedding = nn.Embedding(K, 8)
    model.embedding.weight = model.head.weight


class TestWeightThatIsNotItsOwn:
    def changed(self, change):
        model = Classifier()
        change(model)
        return model

    @pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
    @pytest.mark.parametrize("head", [None, "head"])
    @pytest.mark.parametrize("change", [weight_norm, spectral_norm, old_weight_norm])
    def test_computed_from_others(self, change, head):
        model = self.changed(change)
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(
            ValueError, match=r"The weight of 'head' .* is no parameter of its own.*take off weight_norm"
        ):
            trainer(CentredMeanInit(head=head)).fit(model, loader())
        # With the name it is known before the model has run; else once it is found.
        assert model.forward_calls in ((0,) if head else (3, 4))
        assert all(map(torch.equal, model.parameters(), before))

    @pytest.mark.parametrize("head", [None, "head"])
    def test_of_another_module_too(self, head):
        model = self.changed(tied)
        with pytest.raises(ValueError, match=r"The weight of 'head' is that of 'embedding' too.*untie"):
            trainer(CentredMeanInit(head=head)).fit(model, loader())
        assert model.forward_calls == (0 if head else 4)

    def test_bias_of_another_module_too(self):
        model = Classifier()
        model.other = nn.Linear(3, K)
        model.other.bias = model.head.bias
        with pytest.raises(ValueError, match="The bias of 'head' is that of 'other' too"):
            trainer(CentredMeanInit(head="head")).fit(model, loader())

    def test_made_in_configure_model(self):
        class Late(Classifier):
            def configure_model(self):
                weight_norm(self)

        model = Late()
        with pytest.raises(ValueError, match=r"The weight of 'head' .* is no parameter of its own"):
            trainer(CentredMeanInit(head="head")).fit(model, loader())
        assert model.forward_calls == 0

    def test_a_module_of_two_names_is_one(self):
        model = Recorded()
        model.again = model.head
        trainer(CentredMeanInit(head="head", scale=1.0)).fit(model, loader())
        np.testing.assert_allclose(model.first_weight, start_of(Classifier()), rtol=1e-4, atol=1e-5)


class TestBadInputs:
    def test_arguments(self):
        with pytest.raises(ValueError, match=r'freeze_backbone=True needs the name .*head="..."'):
            CentredMeanInit(freeze_backbone=True)
        with pytest.raises(ValueError, match="normalize must be"):
            CentredMeanInit(normalize="l1")
        with pytest.raises(ValueError, match="scale must be a positive number, got -1"):
            CentredMeanInit(scale=-1)

    def test_unknown_head_is_refused_before_training(self):
        model = Classifier()
        with pytest.raises(ValueError, match="head 'classifier' is not a module of Classifier"):
            trainer(CentredMeanInit(head="classifier")).fit(model, loader())
        assert model.forward_calls == 0

    def test_loader_without_targets(self):
        data = DataLoader(TensorDataset(samples()[0]), batch_size=8)
        with pytest.raises(ValueError, match="Expected batches that start with"):
            trainer(CentredMeanInit(head="head")).fit(Classifier(), data)
