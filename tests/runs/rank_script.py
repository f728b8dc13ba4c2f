"""A job on several processes without training: notes what each process was given, then does what the config says."""

import json
import os
import signal
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nc_callbacks.runs.job import job


@hydra.main(version_base="1.3", config_path=None)
@job
def main(config):
    rank = os.environ["RANK"]
    folder = HydraConfig.get().runtime.output_dir
    note = {"config": OmegaConf.to_container(config), "folder": folder, "pid": os.getpid()}
    note["name"] = HydraConfig.get().job.name
    part = Path(folder, f"{rank}.part")
    part.write_text(json.dumps(note | {"world_size": os.environ["WORLD_SIZE"]}))
    part.rename(Path(folder, f"{rank}.json"))
    while not Path(folder, "0.json").is_file():
        time.sleep(0.1)
    if rank == "1" and config.do == "raise":
        raise ArithmeticError("rank 1 gave up")
    if rank == "1" and config.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.do != "end":
        time.sleep(600)


if __name__ == "__main__":
    main()
