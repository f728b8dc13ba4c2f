"""Inputs and targets of a batch."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nc_callbacks import probe
from nc_callbacks.probe.batches import INPUT_KEYS, TARGET_KEYS, default_batch_fn


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

    ids, mask = torch.arange(12).view(4, 3), torch.ones(4, 3, dtype=torch.long)
    labels = torch.tensor([0, 1, 1, 0])

    def test_further_items_that_cannot_be_labels(self):
        x, weights, soft = torch.randn(4, 5), torch.rand(4), torch.rand(4, 3)
        for batch, targets in (
            ((x, self.labels, weights), self.labels),
            ((x, weights, self.labels), self.labels),
            ((x, self.labels, ["a", "b", "c", "d"]), self.labels),
            ((x, self.labels.float(), weights), self.labels.float()),
            ((x, soft, weights), soft),
        ):
            found = probe.default_batch_fn(batch)
            assert found[0] is x
            assert torch.equal(found[1], targets)

    def test_which_of_three_are_labels_is_not_guessed(self):
        x = torch.randn(4, 5)
        for batch in (
            [self.ids, self.mask, self.labels],
            (x, self.labels, torch.arange(4)),
            (x, torch.randn(4, 5), self.labels),
        ):
            with pytest.raises(ValueError, match=r"got 3 items .*leaves open which of them.*Pass batch_fn="):
                probe.default_batch_fn(batch)

    def test_names_of_transformers(self):
        batch = {"input_ids": self.ids, "attention_mask": self.mask, "labels": self.labels, "text": ["a"] * 4}
        inputs, targets = probe.default_batch_fn(batch)
        assert list(inputs) == ["input_ids", "attention_mask"]
        assert targets is self.labels
        assert probe.default_batch_fn({"pixel_values": self.ids, "labels": self.labels})[0] is self.ids
        assert list(probe.default_batch_fn({"inputs_embeds": self.ids, "label": self.labels})[0]) == ["inputs_embeds"]

    def test_dataclass(self):
        @dataclass
        class Pair:
            x: int
            y: int

        assert probe.default_batch_fn(Pair(1, 2)) == (1, 2)

    def test_named_tuple(self):
        turned = namedtuple("Turned", ["label", "x"])
        assert probe.default_batch_fn(turned("y", "x")) == ("x", "y")
        unnamed = namedtuple("Unnamed", ["first", "y"])
        assert probe.default_batch_fn(unnamed("x", "y")) == ("x", "y")

    def test_two_kinds_of_targets(self):
        with pytest.raises(ValueError, match="got a dict with the keys"):
            probe.default_batch_fn({"image": 1, "label": 2, "target": 3})


class TestCallModel:
    inputs = {"input_ids": torch.ones(2, 3), "attention_mask": torch.zeros(2, 3), "idx": torch.ones(2)}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("forward", "expected"),
        [
            (lambda self, input_ids, attention_mask: sorted([input_ids.sum(), attention_mask.sum()]), [0, 6]),
            (lambda self, input_ids, **others: sorted(others), ["attention_mask", "idx"]),
            (lambda self, batch: sorted(batch), ["attention_mask", "idx", "input_ids"]),
            (lambda self, batch, extra=None: sorted(batch), ["attention_mask", "idx", "input_ids"]),
        ],
    )
    def test_mapping(self, forward, expected):
        model = type("Model", (nn.Module,), {"forward": forward})()
        assert probe.call_model(model, self.inputs) == expected

    def test_tensor(self):
        assert probe.call_model(nn.Identity(), 3) == 3

    @pytest.mark.parametrize(
        ("forward", "named"),
        [
            (lambda self, **batch: batch, True),
            (lambda self, *, pixel_values: pixel_values, True),
            (lambda self, x: x, False),
            (lambda self, *args, **others: args, False),
        ],
    )
    def test_one_tensor_under_its_name(self, forward, named):
        model = type("Model", (nn.Module,), {"forward": forward})()
        batch = {"pixel_values": torch.ones(2, 3), "labels": torch.zeros(2)}
        inputs = batch["pixel_values"]
        given = probe.by_name(model, batch, inputs)
        assert given == {"pixel_values": inputs} if named else given is inputs
        assert probe.by_name(model, batch, changed := inputs + 1) is changed
        assert probe.by_name(model, [inputs, 0], inputs) is inputs


def test_a_forward_pass_that_does_not_take_the_inputs_says_what_to_do():
    class Graph(nn.Module):
        def forward(self, data):
            return data.x

    model = Graph()
    match = r"Graph fails on inputs that are a Tensor of shape \(2, 3\), torch.float32 \(Attr.*'x'\). Pass batch_fn="
    with pytest.raises(ValueError, match=match):
        probe.explained(model, model)(torch.ones(2, 3))
    # Bags of words in the order (label, text), say.
    match = r"Bag fails on inputs that are a Tensor of shape \(2,\), torch.int64 \(ValueError: offsets.*Pass batch_fn="
    with pytest.raises(ValueError, match=match):
        probe.explained(bag := nn.EmbeddingBag(4, 2), bag)(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shapes cannot be multiplied.*Pass batch_fn="):
        probe.explained(model, nn.Linear(2, 2))(torch.ones(2, 3))
    bytes_of_images = torch.zeros(2, 3, dtype=torch.uint8)
    match = r"Linear fails on inputs that are a Tensor of shape \(2, 3\), torch.uint8 \(RuntimeError: .*Pass batch_fn="
    with pytest.raises(ValueError, match=match):
        probe.explained(layer := nn.Linear(3, 2), layer)(bytes_of_images)


def test_running_out_of_memory_is_no_wrong_input():
    def forward(inputs):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        probe.explained(nn.Identity(), forward)(0)


@pytest.mark.parametrize("target", TARGET_KEYS)
@pytest.mark.parametrize("name", INPUT_KEYS)
def test_every_pair_of_names(name, target):
    x, y = torch.zeros(2, 3), torch.arange(2)
    inputs, targets = default_batch_fn({"id": 0, target: y, name: x})
    assert inputs is x
    assert targets is y
