"""The callback that leaves a run's page, whatever the trainer and however training ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from nc_callbacks.callbacks.arguments import Epochs
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.look_recorder import LookRecorder
from nc_callbacks.callbacks.schedule import Schedule
from nc_callbacks.data.naming import name_of_data
from nc_callbacks.engine.trainer import is_a, tqdm_bar
from nc_callbacks.runs.artefacts import leave_page, show_pictures
from nc_callbacks.runs.curves import CurveLogger
from nc_callbacks.runs.folder import METRICS_FILE, read_metrics
from nc_callbacks.runs.page import write_report
from nc_callbacks.runs.summary import summarise, write_summary

FIGURES = ("summary", "all", "none")
FORMATS = ("png", "svg", "pdf")


class ReportPage(LookRecorder):
    """Leave what a training run showed in a folder: one page of it all, the summary figure, the numbers.

    For any trainer: ``report.html`` (the page), ``figures/summary.png``, ``metrics.csv`` (all that was logged, by
    epoch), ``looks.npz`` (vectors and matrices look by look; see `nc_callbacks.LookRecorder`) and ``summary.json``
    (last values, epochs, seconds, versions). They are there when fit has ended, and also when it was stopped (Ctrl-C,
    SIGTERM) or has failed; the page says which. What cannot be drawn or written gives a warning.

    Args:
        folder: Where the files go.
        figures: ``"summary"`` for one figure of all callbacks, ``"all"`` for one of each metric too, or ``"none"``.
        formats: Of the figures: of ``"png"``, ``"svg"`` and ``"pdf"``.
        say: Whether to say where the page is when fit ends.
        draw_epochs: Also while training: after these epochs (the trainer's numbers, from 0), or ``"log"`` for ten per
            decade, the summary figure is drawn and shown by TensorBoard, W&B and Comet where they log.

    Raises:
        ValueError: `figures` or `formats` are none of these; in `setup`, a callback whose looks are to be shown comes
            after this one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from nc_callbacks import NeuralCollapse
        >>> trainer = Trainer(callbacks=[NeuralCollapse(), ReportPage("runs/a")], logger=False)
    """

    def __init__(
        self,
        folder: str | Path,
        figures: Literal["summary", "all", "none"] = "summary",
        formats: Sequence[str] = ("png",),
        say: bool = True,
        draw_epochs: Epochs = None,
    ) -> None:
        if figures not in FIGURES:
            raise ValueError(f"figures must be one of {', '.join(FIGURES)}, got {figures!r}.")
        if isinstance(formats, str) or not formats or set(formats) - set(FORMATS):
            raise ValueError(
                f'formats must be a list of {", ".join(FORMATS)}, such as ["png", "pdf"], got {formats!r}.'
            )
        if isinstance(draw_epochs, str) and draw_epochs != "log":
            raise ValueError(f'draw_epochs must be a list of epochs or "log", got {draw_epochs!r}.')
        super().__init__(folder)
        self.schedule = None if draw_epochs is None else Schedule.of(1, draw_epochs)
        self.figures, self.formats, self.say = figures, tuple(formats), say
        self.page: Path | None = None
        self.summary: dict[str, Any] | None = None
        self.curves = CurveLogger()
        self._began = time.perf_counter()
        self._seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time, and add the logger of the curves."""
        self._began = time.perf_counter()
        self.page = self.summary = None
        if self.curves not in trainer.loggers:
            # The last one: Lightning asks the first where checkpoints go.
            trainer.loggers = [*trainer.loggers, self.curves]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget epochs that a resumed fit makes again, and take over those before."""
        super().on_train_start(trainer, pl_module)
        self.curves.forget_from(trainer.current_epoch)
        if trainer.is_global_zero and trainer.current_epoch and not self.curves.rows:
            self._try(self._take_over_curves, trainer, "read the curves of earlier epochs")

    def _take_over_curves(self, trainer: Trainer) -> None:
        """The curves of a fit that goes on, as the folder has them, and the callbacks' own from the checkpoint."""
        for key, (epochs, values) in read_metrics(self.folder / METRICS_FILE).items():
            for epoch, value in zip(epochs.tolist(), values.tolist(), strict=True):
                self.curves.log_metrics({"epoch": epoch - 1, key: value})
        for callback in _callbacks(trainer):
            for record in callback.history:
                numbers = {key: value for key, value in record.items() if isinstance(value, (int, float))}
                step = numbers.pop("step", None)
                self.curves.log_metrics(numbers, None if step is None else int(step))
        self.curves.forget_from(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the looks, and draw those that are due for loggers that show pictures."""
        super().on_train_epoch_end(trainer, pl_module)
        due = self.schedule is not None and self.schedule.is_due(trainer)
        # The last one is drawn when fit has ended.
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        if due and not last and trainer.is_global_zero and self.figures != "none":
            self._try(self._show, trainer, "draw the summary figure")

    def _show(self, trainer: Trainer) -> None:
        looked = [callback for callback in _callbacks(trainer) if callback.history]
        if not looked:
            return
        from nc_callbacks.figures.summary import save_summary_figures
        from nc_callbacks.figures.titles import of_data

        folder = self.folder / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        looks = [(callback.history, callback.latest, callback.prefix) for callback in looked]
        with of_data(_data_of(trainer)):
            pictures = {path.stem: path for path in save_summary_figures(looks, folder)}
        show_pictures(trainer.loggers, pictures, trainer.current_epoch, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page and what is beside it."""
        super().on_fit_end(trainer, pl_module)
        self._leave(trainer, "finished", lambda seconds: summarise(trainer, self.folder, seconds))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the page of a fit that was stopped or has failed."""
        if trainer.state.fn != "fit":
            return
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        error = type(exception).__name__ if stopped else f"{type(exception).__name__}: {exception}"
        status, epochs = "stopped" if stopped else "failed", trainer.current_epoch
        # What the trainer holds may be half an epoch's, and reading it may wait for ranks that are gone.
        last = self.curves.last
        self._leave(trainer, status, lambda seconds: write_summary(self.folder, last, epochs, seconds, status, error))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the logger of the curves off the trainer."""
        self._detach(trainer)

    def _detach(self, trainer: Trainer) -> None:
        trainer.loggers = [logger for logger in trainer.loggers if logger is not self.curves]

    def _leave(self, trainer: Trainer, status: str, summarised: Callable[[float], dict[str, Any]]) -> None:
        """Draw and write all, each part by itself."""
        self._seconds = time.perf_counter() - self._began
        if trainer.is_global_zero and self._try(self._make_folder, trainer, "make its folder"):
            if self.figures != "none":
                self._try(self._draw, trainer, "draw the figures")
            self._try(self._write_curves, trainer, "write the curves")
            self._try(lambda _: self._summarise(summarised), trainer, "write the summary")
            self._try(self._write_page, trainer, "write the page")
            if self.page is not None:
                leave_page(trainer.loggers, self.page, self._pictures())
            if self.page is not None and (self.say or status != "finished"):
                how = "" if status == "finished" else f"Training {status} in epoch {trainer.current_epoch + 1}. "
                rank_zero_info(f"{how}Page: {self.page}")
        self._detach(trainer)

    def _summarise(self, summarised: Callable[[float], dict[str, Any]]) -> None:
        self.summary = summarised(self._seconds)

    def _write_curves(self, trainer: Trainer) -> None:
        ours = self.folder.resolve()
        for logger in trainer.loggers:
            if is_a(logger, "CSVLogger") and Path(logger.log_dir or "").resolve() == ours:
                logger.save()
                return
        self.curves.write(self.folder / METRICS_FILE)

    def _write_page(self, trainer: Trainer) -> None:
        self.page = write_report(self.folder)

    def _draw(self, trainer: Trainer) -> None:
        looked = [callback for callback in _callbacks(trainer) if callback.history]
        if not looked:
            return
        from nc_callbacks.figures.style import announce
        from nc_callbacks.figures.summary import save_summary_figures
        from nc_callbacks.figures.titles import of_data

        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        looks = [(callback.history, callback.latest, callback.prefix) for callback in looked]
        drawn: list[Callable[[], Any]] = [lambda: save_summary_figures(looks, folder, self.formats)]
        if self.figures == "all":
            drawn += [_drawing(callback, folder, self.formats) for callback in looked if not callback.figures]
        bar: Any = trainer.progress_bar_callback
        shows = bar is not None and bar.is_enabled
        with tqdm_bar(total=len(drawn), desc="Figures", leave=False, disable=not shows, dynamic_ncols=True) as ticks:
            token = announce.set(ticks.set_postfix_str)
            try:
                with of_data(_data_of(trainer)):
                    for draw in drawn:
                        draw()
                        ticks.update()
            finally:
                announce.reset(token)

    def _pictures(self) -> dict[str, Path]:
        folder = self.folder / "figures"
        found = sorted(path for kind in self.formats for path in folder.rglob(f"*.{kind}"))
        return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}

    def _make_folder(self, trainer: Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def _try(self, what: Callable[[Trainer], None], trainer: Trainer, words: str) -> bool:
        """Whether it could be done; a warning where it could not."""
        try:
            what(trainer)
        except Exception as error:
            rank_zero_warn(f"ReportPage could not {words} ({self.folder}): {error!r}.")
            return False
        return True


def _data_of(trainer: Trainer) -> str:
    return name_of_data(trainer.datamodule, trainer.train_dataloader)  # type: ignore[attr-defined]


def _callbacks(trainer: Trainer) -> list[CollapseCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, CollapseCallback)]


def _drawing(callback: CollapseCallback, folder: Path, formats: tuple[str, ...]) -> Callable[[], None]:
    """Draws a callback's figures; those of another prefix than ``nc`` in a folder of their own."""

    def draw() -> None:
        own = folder if callback.prefix == "nc" else folder / callback.prefix
        own.mkdir(parents=True, exist_ok=True)
        try:
            callback.draw(own, formats)
        except Exception as error:
            rank_zero_warn(f"{type(callback).__name__} could not draw its figures in {own}: {error!r}.")

    return draw
