"""EarlyStopping and ModelCheckpoint on log keys that have no value in every epoch."""

import pickle

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from nc_callbacks import FeatureSpectrum, NeuralCollapse
from tests.callbacks.common import Classifier, loader, trainer


class Fails(NeuralCollapse):
    """Has no value after the epochs `failing`."""

    failing = ()

    def measure(self, observation):
        if self.latest_epoch in self.failing:
            raise ArithmeticError
        return super().measure(observation)

    def on_train_epoch_end(self, trainer, pl_module):
        self.latest_epoch = trainer.current_epoch
        super().on_train_epoch_end(trainer, pl_module)


def fit(*callbacks, **settings):
    run = trainer(*callbacks, enable_checkpointing=True, **{"max_epochs": 12} | settings)
    run.fit(Classifier(), loader(), loader(1))
    return run


@pytest.mark.parametrize(
    ("watching", "looked"),
    [
        (lambda: NeuralCollapse(every_n_epochs=5), [4, 9]),
        (lambda: NeuralCollapse(epochs=[2, 7]), [2, 7, 11]),
        (lambda: NeuralCollapse(epochs=[2, 7], mode="online"), [2, 7, 11]),
    ],
)
def test_are_read_at_looks_alone(watching, looked, tmp_path):
    reads = []

    class Counting(EarlyStopping):
        def _run_early_stopping_check(self, trainer):
            reads.append(trainer.current_epoch)
            super()._run_early_stopping_check(trainer)

    callback = watching()
    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="nc/train/nc1", save_top_k=-1)
    run = fit(callback, Counting("nc/train/nc1", patience=20), saving)
    assert run.current_epoch == 12
    assert reads == looked
    assert sorted(int(file.stem.partition("=")[2]) for file in tmp_path.iterdir()) == looked
    best = min(float(record["nc/train/nc1"]) for record in callback.history)
    assert float(saving.best_model_score) == pytest.approx(best, rel=1e-5)


def test_patience_counts_looks(tmp_path):
    """A look a third epoch, none of which is an improvement: the first sets the best, the third is the second wait."""
    stopping = EarlyStopping("nc/train/nc1", patience=2, min_delta=1e9)
    assert fit(NeuralCollapse(every_n_epochs=3), stopping).current_epoch == 9


def test_a_look_that_failed_is_not_read(tmp_path):
    watching = Fails()
    watching.failing = (0, 2)
    stopping = EarlyStopping("nc/train/nc1", patience=2, min_delta=1e9)
    with pytest.warns(UserWarning, match="Measuring the train split"):
        run = fit(watching, stopping)
    assert run.current_epoch == 5


def test_a_key_of_the_callback_that_looks_less_often():
    stopping = EarlyStopping("nc/train/spectrum_effective_rank", patience=1, min_delta=1e9)
    assert fit(NeuralCollapse(), FeatureSpectrum(every_n_epochs=4), stopping).current_epoch == 8


def test_a_key_that_no_callback_has_is_lightnings_error():
    with pytest.raises(RuntimeError, match="nc/train/nc11"):
        fit(NeuralCollapse(every_n_epochs=2), EarlyStopping("nc/train/nc11"))


def test_of_other_keys_and_by_steps_are_left_alone(tmp_path):
    seen = []

    class See(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.extend(vars(callback).keys() for callback in others)

    others = [
        EarlyStopping("val_loss", strict=False),
        ModelCheckpoint(tmp_path, "{step}", monitor="nc/train/nc1", every_n_train_steps=20, save_top_k=-1),
    ]
    fit(NeuralCollapse(), *others, See(), max_epochs=4)
    assert not any(name.startswith("_should_skip") for names in seen for name in names)
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["step=20"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_are_given_back_when_fit_ends(interrupted):
    class Interrupt(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert "_should_skip_check" in vars(stopping)
            if interrupted:
                raise OSError("no more")

    stopping = EarlyStopping("nc/train/nc1", patience=20)
    try:
        fit(NeuralCollapse(), stopping, Interrupt(), max_epochs=2)
    except OSError:
        assert interrupted
    assert "_should_skip_check" not in vars(stopping)
    pickle.dumps(stopping)
