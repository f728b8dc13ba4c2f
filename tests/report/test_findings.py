"""The findings' numbers are those of the folder."""

import shutil

import numpy as np
import pytest

from nc_callbacks.report.findings import of_run, of_sweep
from nc_callbacks.runs.folder import read
from tests.report.common import curves, make_run, make_sweep


def lines(folder, found=None):
    make_run(folder, found=found)
    return {finding.text: finding.number for finding in of_run(read(folder)[1][0])}


def matching(found, part):
    (line,) = [(number, text) for text, number in found.items() if part in text]
    return line


def test_numbers_of_a_run(tmp_path):
    found = lines(tmp_path / "run")
    number, text = matching(found, "W–M̄ cosine")
    assert number == "0.91"
    assert "centred means classify 99.9 % of the training set" in text
    number, text = matching(found, "NC1")
    assert number == "0.02"
    assert "it was 1 at the first look, 50 times as much" in text
    number, text = matching(found, "classified rightly")
    assert number == "100 %"
    # 0.8 + 0.25 (e − 1)/29 reaches 1 at e = 24.2.
    assert "first 0 after epoch 25" in text
    assert matching(found, "NC4")[0] == "0 %"


def test_terminal_phase_that_was_not_reached(tmp_path):
    found = curves()
    found["nc/train/tpt"][:] = 0
    assert "was not reached" in matching(lines(tmp_path / "run", found), "classified rightly")[1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_terminal_phase_after_epochs_that_could_not_be_measured(tmp_path, value):
    """NaN is neither a training error of 0 nor one above."""
    found = curves()
    found["nc/train/tpt"] = np.full(30, value)
    found["nc/train/tpt"][:7] = np.nan
    text = matching(lines(tmp_path / "run", found), "classified rightly")[1]
    assert ("was first 0 after epoch 8" in text) == (value == 1)
    assert ("was not reached" in text) == (value == 0)
    found["nc/train/tpt"][:] = np.nan
    text = matching(lines(tmp_path / "none", found), "classified rightly")[1]
    assert "first 0" not in text
    assert "terminal phase" not in text


def test_values_that_were_not_finite_are_left_out(tmp_path):
    found = curves()
    found["nc/train/nc1"][:] = np.nan
    assert not any("NC1" in text for text in lines(tmp_path / "run", found))


def test_interpolation_of_softmax_outputs_is_said_to_hold_by_construction(tmp_path):
    names = ("sqi_epsilon", "sqi_ratio", "sqi_epsilon_rel_std", "sqi_epsilon_off_rel_std")
    found = {f"nc/train/{name}": np.full(3, 1.25) for name in names}
    number, text = matching(lines(tmp_path / "a", found | {"nc/train/sqi_gap": np.full(3, 1e-9)}), "SQI")
    assert "by construction" in text
    gap = np.array([np.nan, 1e-9, -1e-9])
    assert "by construction" in matching(lines(tmp_path / "c", found | {"nc/train/sqi_gap": gap}), "SQI")[1]
    number, text = matching(lines(tmp_path / "b", found | {"nc/train/sqi_gap": np.full(3, 0.1)}), "SQI")
    assert number == "1.25"
    assert "by construction" not in text
    assert "the spreads are 1.25 and 1.25 times the means" in text


def test_sweep_names_extremes_and_spread_over_seeds(tmp_path):
    found = {finding.text: finding.number for finding in of_sweep(read(make_sweep(tmp_path))[1])}
    number, text = matching(found, "runs finished")
    assert number == "4"
    assert text == "of 5 runs finished; 1 failed: 10 (activation=none, seed=0)."
    (tmp_path / "sweep.csv").unlink()
    assert of_sweep(read(tmp_path)[1])[0].text == "of 5 runs finished; 1 did not end."
    # nc1 is 0.02, 0.04 with tanh and 0.1, 0.2 with ReLU; the std of two values is |a − b|/√2.
    number, text = matching(found, "nc1")
    assert number == "0.02 to 0.2"
    assert "lowest in 0 (activation=tanh, seed=0), highest in 3 (activation=relu, seed=1)" in text
    assert "activation=tanh 0.03 ± 0.014; activation=relu 0.15 ± 0.071" in text


def test_a_setting_with_one_seed_has_no_spread(tmp_path):
    shutil.rmtree(make_sweep(tmp_path) / "3")
    found = {finding.text: finding.number for finding in of_sweep(read(tmp_path)[1])}
    assert "activation=tanh 0.03 ± 0.014; activation=relu 0.1 (one run)." in matching(found, "nc1")[1]
    assert "(one run)" in matching(found, "Validation accuracy")[1]
    assert not any("nan" in text or "not finite" in text for text in found)
