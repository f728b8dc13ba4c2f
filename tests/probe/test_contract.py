"""Finding the classifier, and holding it to its contract."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

from nc_callbacks import probe


class Parallel(nn.Module):
    """Two classifiers side by side; `returned` says which output the model gives."""

    def __init__(self, returned):
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
        self.returned = returned

    def forward(self, x):
        outputs = {"first": self.first(x), "second": self.second(x)}
        outputs["sum"] = outputs["first"] + outputs["second"]
        return outputs[self.returned]


class ConvolutionalHead(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Conv2d(8, 5, 1, bias=False)
        self.flat = flat

    def forward(self, x):
        outputs = self.classifier(self.features(x))
        return outputs.flatten(1) if self.flat else outputs


class TestFindHead:
    @pytest.mark.parametrize(
        ("build", "size", "expected"),
        [
            (lambda: models.resnet18(num_classes=10), 32, "fc"),
            pytest.param(lambda: models.vgg11(num_classes=10), 32, "classifier.6", marks=pytest.mark.slow),
            (lambda: models.mobilenet_v3_small(num_classes=10), 32, "classifier.3"),
            (lambda: models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=10), 32, "heads.head"),
            (lambda: ConvolutionalHead(flat=True), 8, "classifier"),
            (lambda: ConvolutionalHead(flat=False), 8, "classifier"),
        ],
        ids=["resnet", "vgg", "mobilenet", "vit", "conv", "conv unflattened"],
    )
    def test_in_image_models(self, build, size, expected):
        model = build().eval()
        images = torch.zeros(2, 3, size, size)
        with torch.no_grad():
            assert probe.find_head(model, lambda: model(images)) == expected

    def test_features_are_what_the_head_multiplies(self):
        model = models.resnet18(num_classes=10).eval()
        images, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
        with torch.no_grad(), probe.Tap(model, "fc") as tap:
            outputs = model(images)
            batch = tap.read(targets)
            weight, bias = tap.weight_and_bias()
            torch.testing.assert_close(batch.features["fc"] @ weight.T + bias, outputs)
        assert batch.features["fc"].shape == (4, 512)
        torch.testing.assert_close(batch.outputs, outputs)

    def test_the_last_of_a_chain_of_equal_widths(self):
        model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3))
        assert probe.find_head(model, lambda: model(torch.ones(2, 6))) == "2"

    @pytest.mark.parametrize("squash", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
    def test_behind_a_final_squashing(self, squash):
        model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3), squash)
        assert probe.find_head(model, lambda: model(torch.ones(2, 6))) == "2"

    @pytest.mark.parametrize("name", ["first", "second"])
    def test_of_two_side_by_side_the_one_whose_output_is_returned(self, name):
        model = Parallel(name)
        assert probe.find_head(model, lambda: model(torch.randn(2, 6))) == name

    def test_ambiguity_lists_the_candidates(self):
        model = Parallel("sum")
        with pytest.raises(ValueError, match=r"Several modules can be the classifier: 'first', 'second'. Pass head="):
            probe.find_head(model, lambda: model(torch.randn(2, 6)))

    @pytest.mark.parametrize(
        "wrap", [lambda f: {"logits": f}, lambda f: SimpleNamespace(logits=f), lambda f: (f, None)]
    )
    def test_reads_wrapped_outputs(self, wrap):
        model = nn.Linear(6, 3)
        holder = nn.ModuleDict({"head": model})
        assert probe.find_head(holder, lambda: wrap(model(torch.ones(2, 6)))) == "head"

    def test_no_logits_asks_for_the_head(self):
        class Silent(nn.Sequential):
            def forward(self, x):
                super().forward(x)

        model = Silent(nn.Linear(6, 3))
        with pytest.raises(ValueError, match=r"returns no logits.*Pass head=..., one of '0'"):
            probe.find_head(model, lambda: model(torch.ones(2, 6)))

    def test_no_module_with_as_many_rows(self):
        model = nn.Sequential(nn.Linear(6, 4))
        with pytest.raises(ValueError, match=r"No classifier found.*3 weight rows. Modules that ran: '0'"):
            probe.find_head(model, lambda: model(torch.ones(2, 6))[:, :3])

    def test_embedding_and_wide_convolutions_are_no_classifiers(self):
        # The convolution has k output channels too, but sees only a part of its input at each place.
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3 * 16, 3))
        assert probe.find_head(model, lambda: model(torch.ones(2, 3, 4, 4))) == "2"
