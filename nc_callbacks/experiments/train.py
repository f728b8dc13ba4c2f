"""Train a classifier and watch its last layers: one run, as Hydra's configuration says."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from nc_callbacks.experiments.identity import write_data_file
from nc_callbacks.experiments.module import ImageClassifier
from nc_callbacks.runs.job import job
from nc_callbacks.runs.loggers import log_results
from nc_callbacks.runs.report_page import ReportPage
from nc_callbacks.runs.terminal import print_line, print_summary

# The data lies in memory, where worker processes would only slow it down; Hydra writes to the folder before the logger.
HARMLESS = ("does not have many workers", "exists and is not empty", "isinstance.treespec, LeafSpec")

UNASKED = ("💡 Tip", "GPU available: False", "TPU available: False")
"""Beginnings of messages that no one can do anything about."""


def train(config: DictConfig, folder: str | Path) -> dict[str, float]:
    """One run.

    Args:
        config: As composed from ``nc_callbacks/conf/train.yaml``.
        folder: The run's folder, in the place of ``config.folder``.

    Returns:
        Final values by log key; none from an experiment that does something else than train one model.
    """
    config = config.copy()
    OmegaConf.update(config, "folder", str(folder), force_add=True)
    L.seed_everything(config.seed, workers=True, verbose=False)
    if "task" in config:
        instantiate(config.task)(config, folder)
        return {}

    data = instantiate(config.data)
    data.setup()
    network = instantiate(config.model, image_shape=data.image_shape, num_classes=data.num_classes)
    loss = instantiate(config.loss)
    if hasattr(loss, "set_class_counts"):
        loss.set_class_counts(data.class_counts)
    model = ImageClassifier(
        network,
        loss=loss,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        class_counts=data.class_counts,
    )
    loggers = [instantiate(logger) for logger in config.logger.values()]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    # It leaves the summary, the figures and the page, also where training is stopped.
    draw_epochs = config.get("figure_epochs")
    page = ReportPage(folder, config.figures, config.figure_formats, say=False, draw_epochs=draw_epochs)
    callbacks.append(page)
    trainer = instantiate(config.trainer, logger=loggers, callbacks=callbacks)
    if trainer.is_global_zero:
        write_data_file(data, folder)

    trainer.fit(model, datamodule=data)
    if trainer.is_global_zero and page.summary is not None:
        log_results(trainer, config, page.summary["metrics"])
        if _is_of_a_sweep():
            print_line(page.summary)
        else:
            print_summary(page.summary, folder, page.page, page.curves.first, config.get("verbose", False))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _is_of_a_sweep() -> bool:
    """Whether this is one run of many, whose table comes at their end."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class _Advertisements(logging.Filter):
    """Lets what Lightning says of other products and of devices that are not used pass unsaid."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(UNASKED)


@hydra.main(version_base="1.3", config_path="pkg://nc_callbacks.conf", config_name="train")
@job
def main(config: DictConfig) -> None:
    """The command: runs and sweeps."""
    for harmless in HARMLESS:
        warnings.filterwarnings("ignore", message=f".*{harmless}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_Advertisements())
    train(config, HydraConfig.get().runtime.output_dir)


if __name__ == "__main__":
    main()
