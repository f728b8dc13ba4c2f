"""The transfer experiments: heads trained together, their tables, and both experiments run small."""

import copy
import csv
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from scipy.stats import kendalltau
from torch import nn

from nc_callbacks import CentredMeanHead
from nc_callbacks.experiments import source_selection, transfer_noise
from nc_callbacks.experiments.rankings import RANKINGS, rank_correlations, read_scores, write_tables
from nc_callbacks.experiments.source_selection import logistic_accuracy, score
from nc_callbacks.experiments.transfer import train_heads, with_noise, write_rows
from nc_callbacks.experiments.transfer_noise import final_accuracies, make_head, steps_to_look_at, steps_to_reach
from tests.figures.common import picture
from tests.processes import ROOT, python
from tests.transfer.test_head import K, N, P, data, expected_weight


def experiment(folder, *overrides):
    run = python(ROOT / "train.py", f"hydra.run.dir={folder}", "trainer=cpu", *overrides, folder=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", ["trainable", "mixing", None])
def test_heads_trained_together_are_those_trained_alone(mode):
    sets = [data(seed) for seed in (0, 1)]
    torch.manual_seed(0)
    heads = [make_head(mode, *pair, K, 1.0) for pair in sets]
    alone = [copy.deepcopy(head) for head in heads]
    train = tuple(map(torch.stack, zip(*sets, strict=True)))
    x_test, y_test = data(2)
    test = torch.stack([x_test, x_test])
    found = train_heads(heads, train, (test, y_test), [0, 1, 12], batch_size=N, learning_rate=0.05)
    for number, (head, (x, y)) in enumerate(zip(alone, sets, strict=True)):
        optimizer = torch.optim.Adam(head.parameters(), 0.05)
        expected = []
        for step in range(13):
            if step in (0, 1, 12):
                expected.append((head(x_test).argmax(1) == y_test).float().mean().item())
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(x), y).backward()
            optimizer.step()
        # Whole-set batches: their order does not matter. A sample at the border may fall on either side.
        np.testing.assert_allclose(found[number], expected, atol=1.5 / N)


def test_batches_differ_by_head_and_cover_the_set():
    from nc_callbacks.experiments.transfer import _batches

    batches = _batches(torch.Size([2, 10]), 3, 7)
    assert batches.shape == (7, 2, 3)
    for head in (0, 1):
        epoch = batches[:3, head].flatten()
        assert len(epoch.unique()) == 9
    assert not torch.equal(batches[:, 0], batches[:, 1])


def test_noise_has_the_variance_asked_for():
    images = torch.zeros(50, 1, 20, 20)
    noisy = with_noise(images, 0.25, torch.Generator().manual_seed(0))
    assert noisy.var().item() == pytest.approx(0.25, rel=0.03)
    assert torch.equal(with_noise(images + 1, 0, torch.Generator()), images + 1)


def test_make_head_gives_the_papers_four():
    x, y = data()
    kinds = {mode: make_head(mode, x, y, K, 2.0) for mode in ("fixed", "mixing", "trainable")}
    for mode, head in kinds.items():
        assert (type(head), head.mode) == (CentredMeanHead, mode)
        np.testing.assert_allclose(head.weight.detach(), 2 * expected_weight(x, y), rtol=1e-5, atol=1e-6)
    assert float(make_head("fixed", x, y, K, "fit").scale) != 1
    scratch = make_head(None, x, y, K, "fit")
    assert (type(scratch), scratch.weight.shape, scratch.bias) == (nn.Linear, (K, P), None)


ROWS = [
    {"method": method, "variance": 0.1, "seed": seed, "step": step, "accuracy": accuracy}
    for method, curves in {
        "CM": [{0: 0.5}, {0: 0.7}],
        "WFS": [{0: 0.1, 1: 0.4, 4: 0.8}, {0: 0.1, 1: 0.59, 4: 0.6}],
        "WICM": [{0: 0.5, 1: 0.795, 4: 0.9}, {0: 0.2, 1: 0.5, 4: 0.5}],
    }.items()
    for seed, curve in enumerate(curves)
    for step, accuracy in curve.items()
]


def test_tables_from_curves():
    by_method = {row["method"]: row for row in final_accuracies(ROWS)}
    assert by_method["WFS"] == {
        "variance": 0.1,
        "method": "WFS",
        "mean": pytest.approx(0.7),
        "std": pytest.approx(0.02**0.5),
    }
    # Goals: 0.792 and 0.594 by seed, 0.693 for the mean curve.
    steps = {row["method"]: (row["seed 0"], row["seed 1"], row["mean curve"]) for row in steps_to_reach(ROWS)}
    assert steps == {"CM": ("", 0, ""), "WFS": (4, 4, 4), "WICM": (1, "", 4)}


def test_steps_to_look_at_ends_with_the_last():
    for steps in (1, 50, 333):
        looks = steps_to_look_at(steps)
        assert (looks[0], looks[-1]) == (0, steps)
        assert all(after - before <= max(1, before // 50) for before, after in pairwise(looks))


def test_scores_of_a_source():
    train, test = data(0), data(1)
    found = score("a", train, test, draws=3)
    h, means = test[0].double().numpy(), [train[0][train[1] == c].double().mean(0).numpy() for c in range(K)]
    nearest = np.linalg.norm(h[:, None] - np.stack(means), axis=2).argmin(1)
    assert found["ncm_accuracy"] == pytest.approx((nearest == test[1].numpy()).mean())
    logits = h @ expected_weight(*train).T
    assert found["cm_accuracy"] == pytest.approx((logits.argmax(1) == test[1].numpy()).mean())
    assert found["minus_nc1"] < 0
    assert found["logistic_1_percent"] < found["trained_head"] == logistic_accuracy(*train, test)
    with pytest.raises(RuntimeError, match="Source 'b' could not be scored"):
        score("b", (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])), test, draws=1)


def test_rank_correlations_are_scipys():
    generator = np.random.default_rng(0)
    keys = (*RANKINGS, "trained_head")
    rows = [
        {"target": t, "source": s} | dict(zip(keys, generator.random(len(keys)), strict=True))
        for t in "ab"
        for s in range(6)
    ]
    for row in rank_correlations(rows):
        taus = []
        regrets = []
        for target in "ab":
            own = [r for r in rows if r["target"] == target]
            taus.append(kendalltau([r[row["ranking"]] for r in own], [r["trained_head"] for r in own])[0])
            assert row[target] == pytest.approx(taus[-1])
            chosen = max(own, key=lambda r: r[row["ranking"]])
            regrets.append(100 * (max(r["trained_head"] for r in own) - chosen["trained_head"]))
        assert row["regret"] == pytest.approx(np.mean(regrets))
        assert row["mean"] == pytest.approx(np.mean(taus))


@pytest.mark.slow
def test_noise_experiment_on_digits_bears_out_the_paper_at_the_source(tmp_path):
    small = ["task.variances=[0,0.2]", "task.curve_variances=[0]", "task.seeds=3", "task.steps=300"]
    printed = experiment(tmp_path, "experiment=transfer_noise", *small, "task.methods=[CM,LWM,WFS,WICM]")
    accuracy = {(float(r["variance"]), r["method"]): float(r["mean"]) for r in read(tmp_path / "accuracy.csv")}
    assert accuracy[0, "CM"] >= accuracy[0, "WFS"] - 0.03
    assert all(accuracy[0.2, method] < accuracy[0, method] for method in ("CM", "LWM", "WFS", "WICM"))
    steps = {}
    for row in read(tmp_path / "steps.csv"):
        if float(row["variance"]) == 0 and row["method"] in ("WFS", "WICM"):
            steps[row["method"]] = np.mean([float(value) for key, value in row.items() if key.startswith("seed")])
    assert steps["WICM"] <= steps["WFS"] / 2
    assert len({row["seed"] for row in read(tmp_path / "curves.csv")}) == 3
    for figure in ("transfer_accuracy.png", "transfer_steps.png"):
        assert picture(tmp_path / figure).shape[1] > 300
    assert "Steps to 99 % of the final accuracy of WFS" in printed


def test_rankings_of_several_runs_are_those_of_all_their_rows(tmp_path, capsys):
    generator = np.random.default_rng(1)
    rows = []
    for seed in (1, 0):
        own = []
        for source in "abcd":
            numbers = dict(zip((*RANKINGS, "trained_head", "fine_tuned"), generator.random(13), strict=True))
            if source == "d":
                numbers["fine_tuned"] = math.nan
            own.append({"seed": seed, "target": "t", "source": source, **numbers, "seconds": 2.0, "seconds_knn": 3.0})
        (tmp_path / str(seed)).mkdir()
        write_rows(tmp_path / str(seed) / "scores.csv", own)
        rows = own + rows
    found = read_scores(tmp_path)
    assert [(row["seed"], row["source"]) for row in found] == [(row["seed"], row["source"]) for row in rows]
    write_tables(found, tmp_path)
    for row in read(tmp_path / "kendall.csv"):
        taus, regrets = [], []
        for of in (rows[:4], rows[4:]):
            scores, truth = [r[row["ranking"]] for r in of], [r["trained_head"] for r in of]
            taus.append(kendalltau(scores, truth)[0])
            regrets.append(100 * (max(truth) - truth[int(np.argmax(scores))]))
        assert float(row["mean"]) == pytest.approx(np.mean(taus))
        assert float(row["error"]) == pytest.approx(abs(taus[0] - taus[1]) / 2)
        assert float(row["regret_error"]) == pytest.approx(abs(regrets[0] - regrets[1]) / 2)
        assert float(row["seconds"]) == (3 if row["ranking"] == "knn_accuracy" else 2) or row["seconds"] == "nan"
    # The source without a fine-tuned network is left out of that table.
    first = read(tmp_path / "kendall_fine_tuned.csv")[0]
    expected = [
        kendalltau([r["lda_accuracy"] for r in of[:3]], [r["fine_tuned"] for r in of[:3]])[0]
        for of in (rows[:4], rows[4:])
    ]
    assert float(first["mean"]) == pytest.approx(np.mean(expected))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"scores\.csv of experiment=source_selection"):
        read_scores(tmp_path / "empty")


@pytest.mark.slow
def test_source_selection_runs_on_digits_alone(tmp_path):
    sources = [
        f"{{name: {name}, data: digits, activation: {activation}, epochs: {epochs}, classes: {classes}}}"
        for name, activation, epochs, classes in (("a", "tanh", 0, 10), ("b", "relu", 1, 10), ("c", "tanh", 1, 5))
    ]
    experiment(
        tmp_path,
        "experiment=source_selection",
        f"task.sources=[{','.join(sources)}]",
        "task.targets=[{name: digits, data: digits, variance: 0}]",
        "task.samples=300",
        "task.seeds=1",
        "task.strengths=[1]",
        "task.image_size=8",
        "task.fine_tuned=[b]",
        "task.fine_tuned_epochs=30",
    )
    rows = read(tmp_path / "scores.csv")
    assert [row["fine_tuned"] == "nan" for row in rows] == [True, False, True]
    assert float(rows[1]["fine_tuned"]) > 0.5
    assert all(float(row[key]) > 0 for row in rows for key in row if key.startswith("seconds") and row[key] != "nan")
    assert [(row["target"], row["source"]) for row in rows] == [("digits", name) for name in "abc"]
    assert all(0 < float(row["cm_accuracy"]) < float(row["trained_head"]) <= 1 for row in rows)
    assert len(read(tmp_path / "kendall.csv")) == len(RANKINGS)
    assert picture(tmp_path / "source_selection.png").shape[1] > 500


@pytest.mark.parametrize("wrong", [{"seeds": 1}, {"steps": 0}, {"curve_variances": [0.3]}])
def test_wrong_settings_are_refused_before_training(tmp_path, wrong):
    settings = {"variances": [0.0], "curve_variances": [0.0], "samples": 9, "seeds": 2, "steps": 1, "batch_size": 9}
    with pytest.raises(ValueError, match="Expected seeds ≥ 2, steps ≥ 1 and curve_variances among variances"):
        transfer_noise.run(DictConfig({}), tmp_path, **settings | wrong, learning_rate=0.1, scale=1)
    with pytest.raises(ValueError, match="Expected at least 2 sources and 1 target, got 0 and 1"):
        source_selection.run(DictConfig({}), tmp_path, sources=[], targets=[{}], image_size=8, samples=9, draws=1)
