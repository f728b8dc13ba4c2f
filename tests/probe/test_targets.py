"""Class indices of targets."""

import pytest
import torch

from nc_callbacks import CentredMeanHead
from nc_callbacks.probe import class_indices

INDICES = torch.tensor([2, 0, 1, 2])
ONE_HOT = torch.eye(3)[INDICES]


@pytest.mark.parametrize(
    "targets",
    [
        *(INDICES.to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32)),
        INDICES.double()[:, None],
        INDICES[:, None],
        ONE_HOT,
        ONE_HOT.long(),
        ONE_HOT.bool(),
        ONE_HOT * 0.7 + 0.1,
        2 * ONE_HOT - 1,
        5 * ONE_HOT,
        0.6 * ONE_HOT + 0.4 * ONE_HOT.roll(1, 1),
        (ONE_HOT * 0.7 + 0.1).half(),
    ],
)
def test_one_class_a_sample(targets):
    indices = class_indices(targets, 3)
    assert indices.dtype == torch.long
    assert indices.tolist() == INDICES.tolist()


def test_as_many_samples_as_classes():
    assert class_indices(torch.tensor([1.0, 0.0, 2.0]), 3).tolist() == [1, 0, 2]


def test_booleans_of_two_classes():
    assert class_indices(torch.tensor([True, False]), 2).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"Expected class indices of 3 classes, got torch\.bool"):
        class_indices(torch.tensor([True, False]), 3)


@pytest.mark.parametrize("convert", [torch.Tensor.long, torch.Tensor.float, torch.Tensor.bool])
@pytest.mark.parametrize("second", [[1, 1, 0], [0, 0, 0]])
def test_several_or_no_labels_a_sample(convert, second):
    with pytest.raises(ValueError, match=r"Expected one label a sample.*multi-label.*Pass batch_fn="):
        class_indices(convert(torch.tensor([[1, 0, 0], second])), 3)


def test_positions_of_a_sequence_as_long_as_there_are_classes():
    targets = torch.tensor([[0, 2, 2], [1, 1, 0]])
    assert torch.equal(class_indices(targets, 3, sequence=True), targets)


def test_numbers_of_a_regression_are_no_labels():
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for targets in (values, values.sigmoid(), values.double(), torch.full((2, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"Expected .*Pass batch_fn="):
            class_indices(targets, 3)
    with pytest.raises(ValueError, match="neither, as in regression"):
        class_indices(values, 3)
    with pytest.raises(ValueError, match="neither, as in regression"):
        class_indices(values[:, :2], 2)


def test_labels_of_each_class_may_have_values_of_their_own():
    """As those of Seddik & Tamaazousti (2022) have."""
    on, off = torch.tensor([0.9, 0.7, 0.8])[INDICES], torch.tensor([0.01, 0.2, 0.3])[INDICES]
    assert class_indices(ONE_HOT * (on - off)[:, None] + off[:, None], 3).tolist() == INDICES.tolist()
    binary = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    assert class_indices(binary, 2).tolist() == [0, 1, 0]


def test_labels_mixed_in_equal_parts_are_said_to_be_that():
    with pytest.raises(ValueError, match="largest, as labels mixed in equal parts have"):
        class_indices(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), 3)


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (["cat"], "as a tensor"),
        (torch.zeros(2, 4), "one entry for each of the 3 classes"),
        (torch.tensor([0.5, 1.0]), "no whole numbers"),
        (torch.tensor([0.0, torch.nan]), "no whole numbers"),
        (torch.tensor([[3, 1, 0]]), "other numbers than 0 and 1"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_are_no_classes(targets, match):
    with pytest.raises(ValueError, match=match):
        class_indices(targets, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_scale_of_a_head_is_fitted_to_labels_of_any_integers(dtype):
    scales = []
    for targets in (torch.tensor([0, 1]), torch.tensor([0, 1], dtype=dtype)):
        head = CentredMeanHead(2, 2)
        head.update(torch.eye(2), targets)
        head.finalize()
        scales.append(head.fit_scale(torch.eye(2), targets))
    assert scales[0] == scales[1]
    with pytest.raises(ValueError, match="5"):
        head.fit_scale(torch.eye(2), torch.tensor([0, 5]))
