"""Train a classifier and watch its last layers: `python train.py [group=choice] [key=value] ...`."""

import time
import warnings

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from nc_callbacks.experiments.module import ImageClassifier
from nc_callbacks.runs.job import job
from nc_callbacks.runs.loggers import log_results
from nc_callbacks.runs.summary import print_summary, summarise, write_page

# The data lies in memory, where worker processes would only slow it down; Hydra writes to the folder before the logger.
for harmless in ("does not have many workers", "exists and is not empty", "isinstance.treespec, LeafSpec"):
    warnings.filterwarnings("ignore", message=f".*{harmless}")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@job
def main(config: DictConfig) -> None:
    folder = HydraConfig.get().runtime.output_dir
    L.seed_everything(config.seed, workers=True, verbose=False)
    if "task" in config:  # an experiment that does something else than train
        instantiate(config.task)(config, folder)
        return

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
    )
    loggers = [instantiate(logger) for logger in config.logger.values()]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    trainer = instantiate(config.trainer, logger=loggers, callbacks=callbacks)

    start = time.perf_counter()
    trainer.fit(model, datamodule=data)
    if trainer.is_global_zero:
        summary = summarise(trainer, folder, time.perf_counter() - start)
        log_results(trainer, config, summary["metrics"])
        print_summary(summary, folder)
        write_page(folder)


if __name__ == "__main__":
    main()
