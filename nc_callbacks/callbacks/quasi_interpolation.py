"""The callback that measures how far the outputs quasi-interpolate the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from nc_callbacks.callbacks.arguments import BatchFn, Epochs, ForwardFn, GlobalMean, Mode, Split
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.loss_of_outputs import outputs_of_loss, outputs_of_modules
from nc_callbacks.callbacks.measurement import Measurement
from nc_callbacks.callbacks.samples import SAMPLES_FILE, log_samples, sample_errors, write_samples
from nc_callbacks.engine.observation import Observation, Observations
from nc_callbacks.engine.request import LayerNeeds, Needs
from nc_callbacks.engine.session import session_of
from nc_callbacks.metrics import LogKey
from nc_callbacks.probe import Pool
from nc_callbacks.statistics import Outputs


class QuasiInterpolation(CollapseCallback):
    """Measure symmetric quasi-interpolation (SQI) of the labels by the outputs (Lindegaard 2021).

    Numbers, logged as ``nc/{split}/{name}``, in units of the outputs (a one-hot label is 1) or dimensionless:
    ``sqi_epsilon``, ``sqi_epsilon_off``, ``sqi_ratio``, ``sqi_gap``, ``sqi_epsilon_rel_std``,
    ``sqi_epsilon_off_rel_std``, ``sqi_epsilon_std``, ``sqi_epsilon_off_std``, ``sqi_epsilon_off_sample_rel_std`` (see
    `nc_callbacks.OutputErrors`). SQI is a property of the outputs, of all k of them: `layers` adds nothing to it, and a
    class without samples still has its output.

    With squared error the outputs are measured raw. With cross-entropy they are measured after the softmax, and then
    the average condition (Assumption 2 of the paper) says nothing: softmax outputs add up to 1, so that ε_i =
    Σ_c ε̃_{i,c} for every sample, ``sqi_ratio`` is 1 and ``sqi_gap`` 0 by construction. What can be read there is the
    spread (Assumption 1).

    Args:
        outputs: ``"raw"`` or ``"softmax"``; by default what the loss of the first training step takes: softmax where
            it is computed from a (log-)softmax of the outputs, raw where from differences to them. Where it shows
            neither (a compiled step, a loss of one's own; before any training step), a `torch.nn.CrossEntropyLoss` or
            `torch.nn.NLLLoss` of the module says softmax, a `torch.nn.MSELoss` raw; else one warning asks for it, and
            nothing is logged.
        samples: Indices into the training set of samples whose errors are tabled (the paper's Table 1): in `latest` as
            the matrix ``sqi_samples`` (one row per sample: index, label, ε, and ε̃ by class with NaN at the label),
            after each look in ``quasi_interpolation_samples.csv`` under the trainer's `default_root_dir`, times 10³,
            and when fit ends as a table in W&B and TensorBoard. A sample that `limit_train_batches` leaves out of the
            look is not in it.

    The other arguments are those of all callbacks: see `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[QuasiInterpolation(outputs="raw", samples=[0, 1])], logger=False)
    """

    def __init__(
        self,
        head: str | None = None,
        layers: Sequence[str] | str = (),
        every_n_epochs: int = 1,
        epochs: Epochs = None,
        splits: Sequence[Split | str] = ("train",),
        mode: Mode = "epoch_end",
        batch_fn: BatchFn | None = None,
        forward_fn: ForwardFn | None = None,
        feature_cache: int | str | None = None,
        figures: bool | str | Path = False,
        prefix: str = "nc",
        pool: Pool = None,
        global_mean: GlobalMean = "classes",
        ignore_index: int | None = -100,
        verify: bool = False,
        max_features: int | None = None,
        *,
        outputs: Outputs | None = None,
        samples: Sequence[int] = (),
    ) -> None:
        if outputs not in (None, "raw", "softmax"):
            raise ValueError(f'outputs must be None, "raw" or "softmax", got {outputs!r}.')
        super().__init__(
            head,
            layers,
            every_n_epochs,
            epochs,
            splits,
            mode,
            batch_fn,
            forward_fn,
            feature_cache,
            figures,
            prefix,
            pool,
            global_mean,
            ignore_index,
            verify,
            max_features,
        )
        if samples and self.mode == "online":
            raise ValueError('samples need mode="epoch_end": training does not say which of its samples are which.')
        self.outputs = outputs
        self.kind: Outputs | None = outputs
        self.samples = tuple(samples)

    @property
    def needs(self) -> Needs:
        """What a look has to gather for this callback."""
        kinds: frozenset[Outputs] = frozenset({self.kind} if self.kind else {"raw", "softmax"})
        return Needs(layers=dict.fromkeys(self.layers, LayerNeeds()), errors=kinds, samples=self.samples)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Arguments that change values: two callbacks with the same keys must have the same."""
        return (self.outputs,)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take `outputs` as given, unless a checkpoint knows it."""
        super().on_fit_start(trainer, pl_module)
        # A fit that resumes knows it from before.
        if trainer.ckpt_path is None or self.outputs is not None:
            self.kind = self.outputs
        if self.kind is not None:
            self._say_kind()

    def state_dict(self) -> dict[str, Any]:
        """What is saved in a checkpoint."""
        return super().state_dict() | {"kind": self.kind}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        super().load_state_dict(state_dict)
        self.kind = self.outputs or state_dict.get("kind")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Find out from the first loss whether outputs are raw or softmax."""
        if self.kind is None and (kind := outputs_of_loss(loss)) is not None:
            self.kind = kind
            self._say_kind()

    def _say_kind(self) -> None:
        if self.kind == "softmax":
            rank_zero_info(
                "QuasiInterpolation measures softmax outputs: they add up to 1, so the average condition holds by "
                "construction (sqi_ratio 1, sqi_gap 0) and only the spread can be read."
            )
        else:
            rank_zero_info("QuasiInterpolation measures raw outputs, to which the loss takes differences.")

    def record(self, trainer: Trainer, pl_module: LightningModule, observations: Observations | None) -> None:
        """Log what a look has found, and keep it."""
        if self.kind is None:
            self.kind = outputs_of_modules(pl_module)
        if self.kind is None:
            session_of(trainer).notices.once(
                "loss of outputs",
                "QuasiInterpolation could not find out from the loss whether to measure raw outputs or their softmax, "
                'and measures nothing: pass outputs="raw" (squared error) or outputs="softmax" (cross-entropy).',
            )
            return
        super().record(trainer, pl_module, observations)
        key = str(LogKey("sqi_samples", "train", prefix=self.prefix))
        if observations and trainer.state.fn == "fit" and self.samples:
            self._write_samples(trainer, key)

    def measure(self, observation: Observation) -> Measurement:
        """The metrics of one layer on one split."""
        if (classifier := observation.classifier) is None or self.kind is None:
            return Measurement()
        numbers = {name: float(value) for name, value in classifier.errors[self.kind].items()}
        table = None
        if classifier.samples is not None and observation.split == "train":
            table = sample_errors(classifier.samples, self.samples, self.kind)
        return Measurement(numbers, matrices={} if table is None else {"sqi_samples": table})

    def _write_samples(self, trainer: Trainer, key: str) -> None:
        notices = session_of(trainer).notices
        table = self.latest.get(key)
        if table is None or len(table) < len(self.samples):
            missing = len(self.samples) - (0 if table is None else len(table))
            notices.once(
                "samples missing",
                f"The table of samples lacks {missing} of the {len(self.samples)} samples asked for: the look did not "
                "meet them with a known index (a stream, limit_train_batches, or a loader that is gone through as it "
                "is).",
            )
        if table is None or not trainer.is_global_zero:
            return
        name = SAMPLES_FILE if self.prefix == "nc" else f"{self.prefix.replace('/', '_')}_{SAMPLES_FILE}"
        try:
            write_samples(Path(trainer.default_root_dir, name), table, self.latest["epoch"])
        except OSError as error:
            message = f"The table of samples could not be written to {trainer.default_root_dir}: {error!r}."
            notices.once("samples file", message)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, and give the table of samples to the loggers."""
        super().on_fit_end(trainer, pl_module)
        key = str(LogKey("sqi_samples", "train", prefix=self.prefix))
        if key in self.latest and trainer.is_global_zero:
            log_samples(trainer, key, self.latest[key], self.latest["epoch"], self.latest["step"])

    def draw(self, folder: Path, formats: Sequence[str] = ("png",)) -> None:
        """Save this callback's figures in the folder."""
        from nc_callbacks.figures import save_interpolation_figures

        save_interpolation_figures(self.history, folder, self.prefix, formats)
