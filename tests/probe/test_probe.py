"""Finding the classifier, capturing features, leaving no trace."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
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
            (lambda: models.vgg11(num_classes=10), 32, "classifier.6"),
            (lambda: models.mobilenet_v3_small(num_classes=10), 32, "classifier.3"),
            (lambda: models.vit_b_32(num_classes=10, image_size=32), 32, "heads.head"),
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


class TestNamedHead:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))

    def test_unknown_name_lists_the_candidates(self):
        with pytest.raises(ValueError, match=r"head 'fc' is not a module of Sequential.*'0', '2'"):
            probe.named_head(self.model, "fc")

    def test_module_without_weight(self):
        with pytest.raises(ValueError, match=r"head '1' \(ReLU\) has no weight matrix.*Candidates: '0', '2'"):
            probe.named_head(self.model, "1")

    def test_single_output(self):
        with pytest.raises(ValueError, match=r"has 1 output; neural collapse compares at least 2"):
            probe.named_head(self.model, "2")

    def test_names_inside_a_compiled_module(self):
        compiled = torch.compile(nn.Sequential(nn.Linear(6, 4)))
        model = nn.ModuleDict({"net": compiled})
        assert probe.named_head(model, "net.0") is compiled._orig_mod[0]


class TestBatchFn:
    @pytest.mark.parametrize(
        "batch",
        [
            ("x", "y"),
            ["x", "y", "more"],
            {"image": "x", "label": "y"},
            {"x": "x", "y": "y"},
            {"input": "x", "target": "y"},
        ],
    )
    def test_reads(self, batch):
        assert probe.default_batch_fn(batch) == ("x", "y")

    @pytest.mark.parametrize(
        ("batch", "found"),
        [
            (torch.zeros(3), "a Tensor"),
            ([torch.zeros(3)], "a list of length 1"),
            ({"pixels": 1, "label": 2}, r"a dict with the keys \['label', 'pixels'\]"),
        ],
    )
    def test_says_what_it_cannot_read(self, batch, found):
        with pytest.raises(ValueError, match=rf"Expected batches.*got {found}. Pass batch_fn="):
            probe.default_batch_fn(batch)

    def test_class_indices(self):
        indices = torch.tensor([2, 0])
        one_hot = torch.eye(3)[indices]
        for targets in (indices, one_hot, one_hot.long(), one_hot * 0.7 + 0.1):
            assert probe.class_indices(targets, 3).tolist() == [2, 0]
        with pytest.raises(ValueError, match="Expected targets as a tensor"):
            probe.class_indices(["cat"], 3)
        with pytest.raises(ValueError, match="one entry for each of the 3 classes"):
            probe.class_indices(torch.zeros(2, 4), 3)


class TestTap:
    def test_layers_flattened_or_pooled(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3))
        x, y = torch.randn(5, 1, 4, 4), torch.zeros(5, dtype=torch.long)
        before = model[0](x).detach()
        for pool, expected in ((None, before.flatten(1)), ("mean", before.mean((2, 3)))):
            with probe.Tap(model, "3", ["1"], pool) as tap:
                model(x)
                # The ReLU works in place; what is captured is its input.
                torch.testing.assert_close(tap.read(y).features["1"], expected)

    def test_sequences(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        with probe.Tap(model, "1") as tap:
            model(torch.randn(2, 5, 4))
            batch = tap.read(torch.zeros(2, 5, dtype=torch.long))
        assert batch.features["1"].shape == (10, 6)
        assert batch.outputs.shape == (10, 3)
        assert batch.targets.shape == (10,)

    def test_a_layer_that_does_not_run(self):
        model = Parallel("first")
        model.extra = nn.Linear(2, 2)
        with probe.Tap(model, "first", ["extra"]) as tap:
            model(torch.ones(2, 6))
            with pytest.raises(ValueError, match="Module 'extra' ran 0 times in one forward pass"):
                tap.read(torch.zeros(2, dtype=torch.long))

    def test_a_head_that_runs_twice(self):
        model = nn.Sequential(nn.Linear(3, 3))
        with probe.Tap(model, "0") as tap:
            model(model(torch.ones(2, 3)))
            with pytest.raises(ValueError, match="Module '0' ran 2 times"):
                tap.read(torch.zeros(2, dtype=torch.long))

    def test_rows_that_do_not_match_targets(self):
        model = nn.Sequential(nn.Linear(4, 3))
        with probe.Tap(model, "0") as tap:
            model(torch.ones(2, 4))
            with pytest.raises(ValueError, match=r"input of shape \(2, 4\) for targets of shape \(3,\)"):
                tap.read(torch.zeros(3, dtype=torch.long))

    def test_hooks_are_removed(self):
        model = nn.Sequential(nn.Linear(4, 3))
        with pytest.raises(RuntimeError, match="stop"), probe.Tap(model, "0"):
            raise RuntimeError("stop")
        assert not model[0]._forward_hooks
        assert not model[0]._forward_pre_hooks

    def test_what_the_model_overwrites_in_place(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                return self.head(self.block(x)).mul_(3)

        model, x = Model(), torch.randn(5, 4)
        with probe.Tap(model, "head", ["block"]) as tap:
            scaled = model(x.clone())
            batch = tap.read(torch.zeros(5, dtype=torch.long))
        assert torch.equal(batch.features["block"], x)
        torch.testing.assert_close(batch.outputs * 3, scaled)

    def test_views_do_not_keep_their_storage(self):
        model = nn.Sequential(nn.Linear(4, 3))
        tokens = torch.randn(5, 197, 4)
        with probe.Tap(model, "0") as tap:
            model(tokens[:, 0])
            features = tap.read(torch.zeros(5, dtype=torch.long)).features["0"]
        assert features.untyped_storage().nbytes() == features.nbytes


class TestUndisturbed:
    @pytest.mark.parametrize("fails", [False, True])
    def test_leaves_no_trace(self, fails):
        class Counting(nn.Module):
            """Changes buffers in eval mode too, in place and by assignment."""

            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(1))
                self.register_buffer("last", torch.zeros(2))
                self.register_buffer("scale", None)

            def forward(self, x):
                self.scale = x.std() if self.scale is None else self.scale
                self.calls += 1
                self.last = x[0].clone()
                return x

        model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), Counting(), nn.Linear(2, 2))
        model[1].eval()
        flags = [module.training for module in model.modules()]
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        with nullcontext() if not fails else pytest.raises(RuntimeError, match="in the middle"):  # noqa: SIM117
            with probe.undisturbed(model):
                assert not any(module.training for module in model.modules())
                assert not torch.is_grad_enabled()
                model(torch.randn(4, 2))
                random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
                if fails:
                    raise RuntimeError("in the middle")
        assert [module.training for module in model.modules()] == flags
        assert model[2].scale is None
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        assert after == states
        assert torch.is_grad_enabled()

    def test_draws_the_same_each_time(self):
        drawn = []
        for _ in range(2):
            torch.rand(3)
            with probe.undisturbed(nn.Linear(1, 1)):
                drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))  # noqa: NPY002
        assert drawn[0] == drawn[1]
