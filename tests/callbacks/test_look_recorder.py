"""What the recorder keeps of the callbacks' looks, and that its file is bounded and loads without pickle."""

import math
import warnings

import numpy as np
import pytest
import torch

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.callbacks.look_recorder import LOOKS_FILE, MAX_LOOKS, LookRecorder, block_means, least_missed, shrunk
from nc_callbacks.runs.folder import read_looks
from tests.callbacks.common import Classifier, loader, trainer


def kept_epochs(last):
    """What stays of looks after each epoch."""
    recorder = LookRecorder("unused")
    for epoch in range(1, last + 1):
        recorder._keep("nc/train/x", epoch, torch.tensor([float(epoch)]))
    assert [value.item() for value in recorder.values["nc/train/x"]] == recorder.epochs["nc/train/x"]
    return recorder.epochs["nc/train/x"]


def test_file_holds_the_looks(tmp_path):
    collapse = NeuralCollapse(splits=["train", "val"], layers=["body.4"])
    alignment = WeightMeanAlignment(every_n_epochs=2)
    seen = []

    class Copy(LookRecorder):
        def on_train_epoch_end(self, fitting, module):
            super().on_train_epoch_end(fitting, module)
            seen.append(collapse.latest["nc/val/class_mean_cosines"].clone())

    callbacks = [collapse, alignment, QuasiInterpolation(samples=[0, 3]), FeatureSpectrum(), Copy(tmp_path)]
    trainer(*callbacks, max_epochs=5, default_root_dir=tmp_path).fit(Classifier(), loader(), loader(1))
    looks = read_looks(tmp_path / LOOKS_FILE)
    cosines = looks["nc/val/class_mean_cosines"]
    assert cosines.epochs.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(cosines.values, torch.stack(seen).numpy())
    per_class = looks["nc/train/wm_cosine_per_class"]
    assert per_class.epochs.tolist() == [2, 4]
    expected = [record["nc/train/wm_cosine_per_class"].numpy() for record in alignment.history]
    np.testing.assert_array_equal(per_class.values, expected)
    assert looks["nc/train/sqi_samples"].values.shape == (5, 2, 3 + 4)
    assert {"nc/train/body.4/class_mean_cosines", "nc/train/explained_variance"} <= set(looks)
    assert not any(key.endswith(("/singular_values", "cumulative_explained_variance")) for key in looks)
    assert all(look.step == 1 for look in looks.values())


def test_file_of_a_run_that_is_cut_off(tmp_path):
    class Stop(LookRecorder):
        def on_train_epoch_start(self, fitting, module):
            if fitting.current_epoch == 2:
                raise KeyError("cut off")

    with pytest.raises(KeyError):
        trainer(NeuralCollapse(), Stop(tmp_path), max_epochs=5).fit(Classifier(), loader())
    assert read_looks(tmp_path / LOOKS_FILE)["nc/train/counts"].epochs.tolist() == [1, 2]
    assert [path.name for path in tmp_path.glob("*npz*")] == [LOOKS_FILE]


def test_resumed_run_has_the_looks_before(tmp_path):
    def fit(epochs, folder, **resume):
        recorder = LookRecorder(folder)
        fitting = trainer(NeuralCollapse(), recorder, max_epochs=epochs)
        fitting.fit(Classifier(), loader(), **resume)
        fitting.save_checkpoint(tmp_path / "last.ckpt")
        torch.load(tmp_path / "last.ckpt", weights_only=True)
        return read_looks(folder / LOOKS_FILE)["nc/train/class_mean_cosines"]

    first = fit(2, tmp_path / "a")
    second = fit(4, tmp_path / "b", ckpt_path=tmp_path / "last.ckpt")
    assert second.epochs.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(second.values[:2], first.values)


def test_a_second_fit_starts_anew(tmp_path):
    recorder = LookRecorder(tmp_path)
    for _ in range(2):
        trainer(NeuralCollapse(), recorder, max_epochs=3).fit(Classifier(), loader())
        assert read_looks(tmp_path / LOOKS_FILE)["nc/train/counts"].epochs.tolist() == [1, 2, 3]


def test_a_second_fit_with_fewer_looks(tmp_path):
    """Of a callback that looks every other epoch nothing is left when the next fit starts, and its file is written."""
    recorder = LookRecorder(tmp_path)
    callbacks = [NeuralCollapse(), FeatureSpectrum(every_n_epochs=2), recorder]
    for _ in range(2):
        trainer(*callbacks, max_epochs=2).fit(Classifier(), loader())
    looks = read_looks(tmp_path / LOOKS_FILE)
    assert looks["nc/train/counts"].epochs.tolist() == [1, 2]
    assert looks["nc/train/explained_variance"].epochs.tolist() == [2]
    trainer(NeuralCollapse(), recorder, max_epochs=1).fit(Classifier(), loader())
    assert set(read_looks(tmp_path / LOOKS_FILE)) == {
        *("nc/train/counts", "nc/train/class_mean_norms", "nc/train/class_mean_cosines")
    }


def test_a_head_that_grows_starts_its_looks_anew_with_one_warning(tmp_path):
    class Growing(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                self.head = torch.nn.Linear(8, 6)
                self.trainer.optimizers[0].add_param_group({"params": self.head.parameters()})

    callback = NeuralCollapse()
    fitting = trainer(callback, LookRecorder(tmp_path), max_epochs=4)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fitting.fit(Growing(), loader())
    assert fitting.current_epoch == 4
    counts = read_looks(tmp_path / LOOKS_FILE)["nc/train/counts"]
    sizes = [record["nc/train/counts"].numel() for record in callback.history if "nc/train/counts" in record]
    assert counts.values.shape[1] == sizes[-1]
    assert len(counts.epochs) == sizes.count(sizes[-1])
    assert sum("its looks start anew" in str(warning.message) for warning in warned) == (len(set(sizes)) > 1)


def test_another_size_starts_anew():
    recorder = LookRecorder("unused")

    def keep_all():
        for epoch, size in enumerate((3, 3, 5, 5, 7), 1):
            recorder._keep("nc/train/counts", epoch, torch.full((size,), float(epoch)))

    with pytest.warns(UserWarning, match="another size from epoch 3 on") as warned:
        keep_all()
    assert len(warned) == 1
    assert recorder.epochs["nc/train/counts"] == [5]
    assert recorder.steps["nc/train/counts"] == 1


def test_whatever_fails_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(LookRecorder, "_keep", lambda *_: 1 / 0)
    fitting = trainer(NeuralCollapse(), LookRecorder(tmp_path), max_epochs=3)
    with pytest.warns(UserWarning, match="ZeroDivisionError") as warned:
        fitting.fit(Classifier(), loader())
    assert fitting.current_epoch == 3
    assert sum("could not be written" in str(warning.message) for warning in warned) == 1


def test_state_holds_what_the_histories_do_not(tmp_path):
    recorder = LookRecorder(tmp_path)
    callbacks = [NeuralCollapse(layers=["body.4"]), WeightMeanAlignment(), FeatureSpectrum(), recorder]
    trainer(*callbacks, max_epochs=3).fit(Classifier(), loader())
    state = recorder.state_dict()
    assert set(state["values"]) == {"nc/train/class_mean_cosines", "nc/train/body.4/class_mean_cosines"}
    again = LookRecorder(tmp_path)
    again.load_state_dict(state)
    for key in state["values"]:
        assert again.epochs[key] == recorder.epochs[key]
        assert torch.equal(torch.stack(again.values[key]), torch.stack(recorder.values[key]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_matrices_come_back_from_the_state(symmetric):
    matrix = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    matrix[:, 2], matrix[:, :, 2] = torch.nan, torch.nan
    matrix = matrix + matrix.mT if symmetric else matrix
    recorder = LookRecorder("unused")
    for epoch in range(3):
        recorder._keep("nc/train/class_mean_cosines", epoch + 1, matrix[epoch])
    state = recorder.state_dict()
    assert state["values"]["nc/train/class_mean_cosines"].numel() == 3 * (15 if symmetric else 25)
    recorder.load_state_dict(state)
    np.testing.assert_array_equal(torch.stack(recorder.values["nc/train/class_mean_cosines"]), matrix)


def test_a_resumed_run_writes_the_file_of_one_that_was_not_cut_off(tmp_path):
    def fit(epochs, folder, **resume):
        callbacks = [NeuralCollapse(), WeightMeanAlignment(), FeatureSpectrum(every_n_epochs=2), LookRecorder(folder)]
        fitting = trainer(*callbacks, max_epochs=epochs)
        fitting.fit(Classifier(), loader(shuffle=False), **resume)
        fitting.save_checkpoint(folder / "last.ckpt")
        return read_looks(folder / LOOKS_FILE)

    fit(3, tmp_path / "a")
    resumed, whole = fit(5, tmp_path / "b", ckpt_path=tmp_path / "a" / "last.ckpt"), fit(5, tmp_path / "c")
    assert set(resumed) == set(whole)
    for key, looks in whole.items():
        assert resumed[key].epochs.tolist() == looks.epochs.tolist(), key
        # Dropout draws otherwise after the cut.
        np.testing.assert_array_equal(resumed[key].values[:1], looks.values[:1])


def test_few_looks_all_stay():
    assert kept_epochs(MAX_LOOKS) == list(range(1, MAX_LOOKS + 1))


@pytest.mark.parametrize("last", [41, 350, 1100])
def test_many_looks_are_spaced_logarithmically(last):
    epochs = kept_epochs(last)
    assert len(epochs) == MAX_LOOKS
    assert epochs[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert epochs[-1] == last
    # Evenly spaced on a logarithmic axis 40 looks leave gaps of last^(1/39); whole epochs at the start cost some.
    gaps = np.diff(np.log(epochs))[10:]
    assert gaps.max() < 3 * math.log(last) / (MAX_LOOKS - 1)


def test_surplus_look_is_never_first_or_last():
    assert least_missed([1, 2, 3]) == 1
    assert least_missed([10, 11, 12, 100]) == 1
    assert least_missed([1, 10, 99, 100]) == 2


def test_bounded_size():
    k, generator = 950, torch.Generator().manual_seed(0)
    matrix = torch.rand(k, k, generator=generator, dtype=torch.float64)
    kept, step = shrunk("nc/train/class_mean_cosines", matrix)
    assert (kept.shape, step, kept.dtype) == ((95, 95), 10, torch.float32)
    np.testing.assert_allclose(kept[3, 7], matrix[30:40, 70:80].mean(), rtol=1e-6)
    vector = torch.arange(50_000.0)
    kept, step = shrunk("nc/train/mu1_per_class", vector)
    assert (len(kept), step) == (1000, 50)
    assert kept[1] == 50
    assert torch.equal(shrunk("nc/train/explained_variance", vector)[0], vector[:1000])
    assert shrunk("nc/train/sqi_samples", torch.rand(300, 503))[0].shape == (100, 103)


def test_blocks_leave_absent_classes_out():
    matrix = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan] * 3, [5.0, torch.nan, 7.0]])
    assert block_means(matrix, 2).tolist() == [[1, 3], [5, 7]]
    assert torch.isnan(block_means(torch.full((2, 2), torch.nan), 2)).all()


def test_callback_after_the_recorder_is_refused():
    with pytest.raises(ValueError, match="NeuralCollapse comes after LookRecorder"):
        trainer(LookRecorder("unused"), NeuralCollapse()).fit(Classifier(), loader())


def test_folder_that_cannot_be_written_warns_and_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    fitting = trainer(NeuralCollapse(), LookRecorder(tmp_path / "file"), max_epochs=1)
    with pytest.warns(UserWarning, match="could not be written"):
        fitting.fit(Classifier(), loader())
    assert fitting.current_epoch == 1
