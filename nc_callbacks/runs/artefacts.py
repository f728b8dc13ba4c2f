"""Page and pictures of a run, for loggers that keep files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from nc_callbacks.engine.trainer import is_a


def leave_page(loggers: list[Any], page: Path, pictures: Mapping[str, Path]) -> None:
    """Give the page to W&B, MLflow and Comet, and the pictures to the latter two; one that fails gives a warning.

    Args:
        loggers: A trainer's.
        page: The page.
        pictures: By name, in any format.
    """
    for logger in loggers:
        try:
            if is_a(logger, "WandbLogger"):
                _to_wandb(logger, page)
            elif is_a(logger, "MLFlowLogger"):
                _to_mlflow(logger, page, pictures)
            elif is_a(logger, "CometLogger"):
                _to_comet(logger, page, pictures)
        except Exception as error:
            rank_zero_warn(f"{type(logger).__name__} could not take the page: {error!r}.")


def show_pictures(loggers: list[Any], pictures: Mapping[str, Path], epoch: int, step: int) -> None:
    """Give pictures as PNG to loggers that show them while training goes on; one that fails gives a warning.

    Args:
        loggers: A trainer's.
        pictures: By name.
        epoch: The trainer's, from 0.
        step: The trainer's.
    """
    for logger in loggers:
        try:
            if is_a(logger, "TensorBoardLogger"):
                to_tensorboard(logger, pictures, step)
            elif is_a(logger, "WandbLogger"):
                import wandb

                media = {f"figures/{name}": wandb.Image(str(path)) for name, path in pictures.items()}
                logger.experiment.log(media | {"epoch": epoch})
            elif is_a(logger, "CometLogger"):
                for name, path in pictures.items():
                    logger.experiment.log_image(str(path), name=f"figures/{name}", step=step)
        except Exception as error:
            rank_zero_warn(f"{type(logger).__name__} could not show the figures: {error!r}.")


def to_tensorboard(logger: Any, pictures: Mapping[str, Path], step: int) -> None:
    """Pictures as PNG, as ``figures/NAME``."""
    from matplotlib.image import imread

    for name, path in pictures.items():
        logger.experiment.add_image(f"figures/{name}", imread(path), step, dataformats="HWC")


def _to_wandb(logger: Any, page: Path) -> None:
    import wandb

    run = logger.experiment
    artifact = wandb.Artifact(f"report-{run.id}", type="report", description="What the run showed, in one page.")
    artifact.add_file(str(page), name=page.name)
    run.log_artifact(artifact)


def _to_mlflow(logger: Any, page: Path, pictures: Mapping[str, Path]) -> None:
    client = logger.experiment
    client.log_artifact(logger.run_id, str(page))
    for name, path in pictures.items():
        client.log_artifact(logger.run_id, str(path), "/".join(["figures", *name.split("/")[:-1]]))


def _to_comet(logger: Any, page: Path, pictures: Mapping[str, Path]) -> None:
    experiment = logger.experiment
    experiment.log_asset(str(page), file_name=page.name)
    for name, path in pictures.items():
        experiment.log_asset(str(path), file_name=f"figures/{name}{path.suffix}")
