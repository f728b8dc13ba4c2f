"""Loggers that need a decision at run time, and what goes to them when training has ended."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.metrics import LogKey
from nc_callbacks.runs.artefacts import to_tensorboard
from nc_callbacks.runs.job import finish_wandb as finish_wandb
from nc_callbacks.runs.report_page import ReportPage
from nc_callbacks.runs.tensorboard import is_by_class, log_histograms, log_hparams

MAX_ROWS = 10_000
"""Rows of a table that W&B shows."""


def wandb_logger(save_dir: str | Path, group: str | None = None, name: str | None = None, **kwargs: Any) -> WandbLogger:
    """A WandbLogger with the epoch as x-axis, offline unless this machine is logged in to W&B; it never prompts.

    Args:
        save_dir: The run's folder.
        group: By default that of the sweep which the folder belongs to.
        name: Name of the run; by default W&B makes one up.
        kwargs: Passed to `lightning.pytorch.loggers.WandbLogger`.
    """
    if not _is_logged_in() and os.environ.get("WANDB_MODE", "online") not in ("offline", "dryrun", "disabled"):
        kwargs["mode"] = "offline"
    sweep = Path(save_dir).resolve().parent
    if group is None and (sweep / "multirun.yaml").is_file():
        group = "/".join(sweep.parts[-2:])
    logger = WandbLogger(save_dir=save_dir, group=group, name=name[:128] if name else None, **kwargs)
    # On other ranks it takes calls and does nothing.
    logger.experiment.define_metric("epoch")
    logger.experiment.define_metric("*", step_metric="epoch")
    return logger


def _is_logged_in() -> bool:
    """Whether W&B finds a key without asking: in the environment, or in the netrc file that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path.expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def log_results(trainer: Trainer, config: DictConfig, metrics: dict[str, float | None]) -> None:
    """Give TensorBoard and W&B what exists when training has ended; a logger that fails gives a warning.

    TensorBoard gets the figures, the per-class vectors as histograms, and the configuration with the final metrics as
    hparams; W&B gets the figures, and the per-class vectors as tables with one row per look and class.

    Args:
        trainer: A trainer that has fitted.
        config: The run's configuration.
        metrics: Final values by log key.
    """
    callbacks = [c for c in trainer.callbacks if isinstance(c, CollapseCallback)]  # type: ignore[attr-defined]
    pages = [c for c in trainer.callbacks if isinstance(c, ReportPage)]  # type: ignore[attr-defined]
    figures = _figures(trainer, callbacks) | _pictures(page.folder / "figures" for page in pages)
    for logger in trainer.loggers:
        try:
            if isinstance(logger, TensorBoardLogger):
                to_tensorboard(logger, figures, trainer.global_step)
                log_histograms(logger, callbacks)
                log_hparams(logger, OmegaConf.to_container(config, resolve=True), metrics)  # type: ignore[arg-type]
                # The trainer has closed the file, and writing has opened another.
                logger.finalize("success")
            elif isinstance(logger, WandbLogger):
                _log_to_wandb(logger, trainer, callbacks, figures)
        except Exception as error:
            rank_zero_warn(f"{type(logger).__name__} could not log figures, tables or hparams: {error!r}.")


def _figures(trainer: Trainer, callbacks: list[CollapseCallback]) -> dict[str, Path]:
    """The figures that the callbacks have saved, by name."""
    given = [callback.figures for callback in callbacks if callback.figures]
    return _pictures(
        Path(trainer.default_root_dir, "figures") if figures is True else Path(figures) for figures in given
    )


def _pictures(folders: Iterable[Path]) -> dict[str, Path]:
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in sorted(set(folders))
        for path in sorted(folder.rglob("*.png"))
    }


def _log_to_wandb(
    logger: WandbLogger, trainer: Trainer, callbacks: list[CollapseCallback], figures: dict[str, Path]
) -> None:
    import wandb

    media: dict[str, Any] = {f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items()}
    for key, (columns, rows) in per_class_tables(callbacks).items():
        media[key] = wandb.Table(columns=[*columns], data=rows)
    if media:
        logger.experiment.log(media | {"epoch": trainer.current_epoch - 1})


def per_class_tables(callbacks: list[CollapseCallback]) -> dict[str, tuple[list[str], list[list[float | None]]]]:
    """Per-class vectors as tables with one row per look and class, by split, layer and loader (``nc/train/per_class``).

    Where that were more rows than W&B shows, looks are left out evenly; the last one stays.

    Args:
        callbacks: Callbacks that have looked; the vectors are those of their `history`.

    Returns:
        Columns (``epoch``, ``class``, and one a vector) and rows by key.

    Example:
        >>> from nc_callbacks import WeightMeanAlignment
        >>> callback = WeightMeanAlignment()
        >>> callback.history = [{"epoch": 0, "nc/train/wm_cosine_per_class": torch.tensor([0.25, 0.5])}]
        >>> per_class_tables([callback])
        {'nc/train/per_class': (['epoch', 'class', 'wm_cosine_per_class'], [[0, 0, 0.25], [0, 1, 0.5]])}
    """
    values: dict[str, dict[int, dict[str, list[float]]]] = {}
    for record in (record for callback in callbacks for record in callback.history):
        for text, vector in record.items():
            key = LogKey.parse(text)
            if isinstance(vector, Tensor) and is_by_class(key.name):
                of_table = values.setdefault(str(replace(key, name="per_class")), {})
                of_table.setdefault(record["epoch"], {})[key.name] = vector.tolist()
    tables: dict[str, tuple[list[str], list[list[float | None]]]] = {}
    for table, looks in values.items():
        names = sorted({name for vectors in looks.values() for name in vectors})
        classes = max(len(vector) for vectors in looks.values() for vector in vectors.values())
        step = -(-len(looks) * classes // MAX_ROWS)
        rows = [
            [epoch, label, *(looks[epoch][name][label] if name in looks[epoch] else None for name in names)]
            for epoch in sorted(looks)[::-1][::step][::-1]
            for label in range(classes)
        ]
        tables[table] = (["epoch", "class", *names], rows)
    return tables
