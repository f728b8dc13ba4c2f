"""Geometry of unbalanced classes against NumPy from the definitions, and cases known on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nc_callbacks.functional import minority_collapse, nc2_etf, nc2_seli, nc3_bias, subspace_angles
from tests.reference import rotation, simplex_etf

COUNTS = {"one rare": (100, 80, 60, 5), "step": (500, 500, 500, 5, 5), "long tail": (640, 160, 40, 10, 3, 1)}


def encoded_labels(counts: tuple[int, ...]) -> np.ndarray:
    """Z, written out sample by sample."""
    k = len(counts)
    labels = np.repeat(np.arange(k), counts)
    return (np.arange(k)[:, None] == labels) - 1 / k


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_interpolation_itself_is_at_distance_0(counts: tuple[int, ...]) -> None:
    v, singular, ut = np.linalg.svd(encoded_labels(counts), full_matrices=False)
    v, singular, ut = v[:, :-1], singular[:-1], ut[:-1]
    starts = np.cumsum((0, *counts[:-1]))
    turn = rotation(7)[: len(singular)]
    weight, means = v * singular**0.5 @ turn, ut.T[starts] * singular**0.5 @ turn
    found = nc2_seli(torch.tensor(3 * weight), torch.tensor(0.2 * means), torch.tensor(counts))
    assert max(map(float, found)) < 1e-7
    assert nc2_etf(torch.tensor(weight)) > 0.05


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_are_those_to_the_sample_wise_ideal(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    k, starts = len(counts), np.cumsum((0, *counts[:-1]))
    weight, means = rng.normal(size=(2, k, 9)).astype(np.float32).astype(float)
    v, singular, ut = np.linalg.svd(encoded_labels(counts), full_matrices=False)
    v, singular, ut = v[:, :-1], singular[:-1], ut[:-1]
    ideals = v * singular @ v.T, (ut.T * singular @ ut)[np.ix_(starts, starts)]
    expected = [
        np.linalg.norm(a @ a.T / np.linalg.norm(a @ a.T) - ideal / np.linalg.norm(ideal))
        for a, ideal in zip((weight, means), ideals, strict=True)
    ]
    found = nc2_seli(torch.tensor(weight, dtype=dtype), torch.tensor(means, dtype=dtype), torch.tensor(counts))
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-6)
    assert found[0].dtype == dtype


def test_of_equal_counts_is_the_simplex_etf() -> None:
    rng = np.random.default_rng(1)
    a, b = (torch.tensor(rng.normal(size=(6, 4))) for _ in range(2))
    found = nc2_seli(a, b, torch.full((6,), 17))
    torch.testing.assert_close(torch.stack(found), torch.stack([nc2_etf(a), nc2_etf(b)]))


def test_rare_rows_that_coincide_and_that_form_an_etf() -> None:
    counts = torch.tensor([100, 100, 100, 100, 49, 20, 3])
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    weight[4:] = torch.tensor([[1.0, 2, 0, 0, 0], [10.0, 20, 0, 0, 0], [0.1, 0.2, 0, 0, 0]])
    assert minority_collapse(weight, counts).item() == pytest.approx(1)
    weight[4:] = torch.tensor(simplex_etf(3, 5), dtype=torch.float32)
    assert minority_collapse(weight, counts).item() == pytest.approx(-0.5)


def test_rare_rows_against_all_pairs() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 200, 40)
    weight = rng.normal(size=(40, 6))
    rows = weight[counts < np.median(counts) / 2]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    expected = cosines[~np.eye(len(rows), dtype=bool)].mean()
    assert minority_collapse(torch.tensor(weight), torch.tensor(counts)).item() == pytest.approx(expected)


def test_no_rare_classes() -> None:
    assert minority_collapse(torch.eye(3), torch.tensor([10, 10, 9])).isnan()
    assert minority_collapse(torch.eye(3), torch.tensor([10, 10, 1])).isnan()


@pytest.mark.parametrize(("k", "p"), [(4, 9), (9, 4)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("by_samples", [True, False])
def test_bias_against_the_definition(k: int, p: int, with_bias: bool, by_samples: bool) -> None:
    rng = np.random.default_rng(3)
    weight, means, bias = rng.normal(size=(k, p)), rng.normal(size=(k, p)) + 2, rng.normal(size=k)
    centre = rng.normal(size=p) if by_samples else means.mean(0)
    logits = weight @ centre + (bias if with_bias else 0)
    expected = np.linalg.norm(logits) / np.linalg.norm((means - centre) @ weight.T, axis=1).mean()
    found = nc3_bias(
        torch.tensor(weight),
        torch.tensor(means),
        torch.tensor(bias) if with_bias else None,
        torch.tensor(centre) if by_samples else None,
    )
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_bias_that_undoes_the_global_mean() -> None:
    rng = np.random.default_rng(4)
    weight, means = torch.tensor(rng.normal(size=(5, 8))), torch.tensor(rng.normal(size=(5, 8)) + 100)
    assert nc3_bias(weight, means, -weight @ means.mean(0)) < 1e-12


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, 1.2, np.pi / 2])
def test_planes_turned_by_an_angle(angle: float) -> None:
    turn = np.eye(6)
    turn[np.ix_([0, 4], [0, 4])] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    plane = np.eye(6)[:3]
    mix = np.random.default_rng(5).normal(size=(5, 3))
    found = subspace_angles(torch.tensor(mix @ plane @ rotation(6)), torch.tensor(plane @ turn.T @ rotation(6)))
    assert found.numpy() == pytest.approx([0, 0, angle], abs=1e-12)


def test_a_span_within_a_larger_one() -> None:
    rows = torch.tensor(np.random.default_rng(6).normal(size=(4, 9)))
    assert subspace_angles(rows, rows[:2]).abs().max() < 1e-12
    assert len(subspace_angles(rows[:2], rows)) == 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"counts must be \(3,\)"):
        minority_collapse(torch.eye(3), torch.ones(4))
    with pytest.raises(ValueError, match="all with samples, got 3 and 3 rows and a least count of 0"):
        nc2_seli(torch.eye(3), torch.eye(3), torch.tensor([1, 0, 2]))
    with pytest.raises(ValueError, match=r"bias must be \(3,\)"):
        nc3_bias(torch.eye(3), torch.eye(3), torch.ones(2))
    with pytest.raises(ValueError, match="as many columns, got 3 and 4"):
        subspace_angles(torch.eye(3), torch.eye(4))
