"""The precision of features that statistics and moments carry."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from nc_callbacks.statistics import ClassMoments, ClassStatistics
from tests.statistics.common import NO_UPDATE, dataset, gathered

EPSILON = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("dtype", EPSILON)
def test_precision_is_that_of_the_features(dtype: torch.dtype) -> None:
    x, y, k, _ = dataset("unbalanced", dtype)
    assert gathered(x, y, k).compute().precision == EPSILON[dtype]


@pytest.mark.parametrize("order", [[torch.bfloat16, torch.float32], [torch.float64, torch.bfloat16, torch.float16]])
def test_precision_is_the_coarsest_of_the_batches(order: list[torch.dtype]) -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = ClassStatistics(k)
    for dtype in order:
        metric.update(x.to(dtype), y)
    assert metric.compute().precision == 2**-7
    metric.reset()
    metric.update(x, y)
    assert metric.compute().precision == 2**-23


def test_a_batch_without_samples_has_no_precision() -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = gathered(x, y, k)
    metric.update(x[:0].half(), y[:0])
    assert metric.compute().precision == 2**-23


def test_precision_of_one_batch_alone() -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = gathered(x.bfloat16(), y, k)
    assert metric(x, y).precision == 2**-23
    assert metric.compute().precision == 2**-7


@pytest.mark.parametrize("swap", [False, True])
@NO_UPDATE
def test_the_coarser_of_two_parts(swap: bool) -> None:
    x, y, k, _ = dataset("unbalanced")
    parts = [gathered(x.half(), y, k), gathered(x, y, k)]
    mine, theirs = parts[::-1] if swap else parts
    assert mine.compute().merge(theirs.compute()).precision == 2**-10
    mine.merge_state(theirs)
    assert mine.compute().precision == 2**-10
    empty = ClassStatistics(k)
    empty.merge_state(gathered(x, y, k))
    assert empty.compute().precision == 2**-23


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_keep_the_precision(copied: Any) -> None:
    x, y, k, _ = dataset("unbalanced", torch.bfloat16)
    metric = copied(gathered(x, y, k))
    metric.update(x.float(), y)
    assert metric.compute().precision == 2**-7


@NO_UPDATE
def test_states_saved_without_a_precision_have_that_of_their_sums() -> None:
    x, y, k, _ = dataset("unbalanced")
    saved = gathered(x, y, k)
    saved.persistent(True)
    state = saved.state_dict()
    del state["precision"]
    loaded, merged = ClassStatistics(k), gathered(x.double(), y, k)
    loaded.load_state_dict(dict(state))
    loaded.update(x.double(), y)
    merged.merge_state(state)
    assert loaded.compute().precision == merged.compute().precision == 2**-23


def test_moments_made_by_hand_have_the_precision_of_their_means() -> None:
    counts, zeros = torch.ones(2, dtype=torch.long), torch.zeros(2)
    wide = ClassMoments(counts, torch.zeros(2, 3).double(), zeros, zeros)
    assert wide.precision == 2**-52
    assert ClassMoments(counts, torch.zeros(2, 3), zeros, zeros).precision == 2**-23
    assert ClassMoments(counts, torch.zeros(2, 3), zeros, zeros, precision=2**-7).observed().precision == 2**-7
    assert replace(wide, means=torch.zeros(2, 3)).precision == 2**-52
