"""Two gloo processes of a group, the first of which runs a trainer of its own while the second does something else.

`python -m tests.engine.alone_script FOLDER`
"""

import os
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nc_callbacks import CentredMeanInit, FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import trainer
from tests.engine.ranks_script import Still, data


def run(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    if rank == 0:
        settings = {"head": "head", "splits": ["train", "val"]}
        callbacks = [
            NeuralCollapse(ood_loader=data(5), **settings),
            WeightMeanAlignment(a2_residual=True, **settings),
            QuasiInterpolation(outputs="softmax", **settings),
            FeatureSpectrum(**settings),
        ]
        fit = trainer(CentredMeanInit(head="head"), *callbacks, accelerator="cpu", devices=1)
        fit.fit(Still(), data(0), data(1))
        fit.validate(Still(), data(1), verbose=False)
        (train,) = callbacks[0].history
        counts = train["nc/train/counts"].tolist()
        keys = sum(len(callback.latest) for callback in callbacks)
        torch.save({"counts": counts, "keys": keys}, Path(folder, "alone.pt"))
    dist.barrier()


def main(folder: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, (port, folder), nprocs=2)


if __name__ == "__main__":
    main(sys.argv[1])
