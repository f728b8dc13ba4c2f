"""A user's own script with `job`, and a module beside it, in a folder with a space in its name."""

SCRIPT = """
import os
import sys
from pathlib import Path

import beside  # found because it lies beside the script
import hydra
from hydra.core.hydra_config import HydraConfig

from nc_callbacks.runs.job import job


@hydra.main(version_base="1.3", config_path=None, config_name="mine")
@job
def main(config):
    folder = Path(HydraConfig.get().runtime.output_dir)
    # What hands a job on must not take the time that Lightning takes to load.
    text = f"{beside.WORD} {config.word} {__name__} {'lightning' in sys.modules}"
    (folder / f"rank{os.environ.get('RANK')}.txt").write_text(text)


if __name__ == "__main__":
    main()
"""
MODULE = """
import os
from types import SimpleNamespace

from hydra.core.config_store import ConfigStore

WORD = "beside"


class Data:
    def setup(self):
        pass


def trainer(**given):
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # All that is asked of it there.
        return SimpleNamespace(num_devices=given["devices"], num_nodes=1)
    from lightning.pytorch import Trainer

    return Trainer(**given)


TRAINER = {"_target_": "beside.trainer", "accelerator": "cpu", "devices": 2, "strategy": "ddp"}
CONFIG = {"word": "said", "resume": False, "data": {"_target_": "beside.Data"}, "trainer": TRAINER}
ConfigStore.instance().store("mine", CONFIG)
"""


def make_project(folder):
    """Write it.

    Returns:
        The script's path.
    """
    folder.mkdir()
    (folder / "beside.py").write_text(MODULE)
    (folder / "my_train.py").write_text(SCRIPT)
    return folder / "my_train.py"
