"""A job on several processes without training: notes what each process was given, then does what the config says."""

import json
import os
import signal
from pathlib import Path

import hydra
import torch.distributed as dist
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
    Path(folder, f"{rank}.json").write_text(json.dumps(note | {"world_size": os.environ["WORLD_SIZE"]}))
    dist.init_process_group("gloo")
    dist.barrier()
    print("All are there.", flush=True)
    if rank == "1" and config.do == "raise":
        raise ArithmeticError("rank 1 gave up")
    if rank == "1" and config.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.do != "end":
        signal.pause()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
