"""What ranks exchange when statistics are merged: bytes and collectives, on gloo processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nc_callbacks import ClassStatistics
from speed.measure import Options, Row, batch

P, K = 512, 100


def rows(options: Options) -> Iterator[Row]:
    state = 4 * (K * P + P * P)
    found = {}
    for ranks, n in ((2, 1_000), (2, 4_000), (4, 1_000)):
        for shared in (False, True):
            found[ranks, n, shared] = _sent(ranks, n, shared)
    for shared, goal, collectives in ((True, 1.01, 2), (False, 1.2, 3)):
        sent = [sizes for (_, _, given), sizes in found.items() if given == shared]
        what = f"p = {P}, k = {K}, " + ("one shift given" if shared else "each rank's own shift")
        detail = "the same on 2 and 4 ranks, for n = 1,000 and 4,000" if sent.count(sent[0]) == len(sent) else "varies"
        yield Row("bytes sent / bytes of the state", what, sum(sent[0]) / state, "×", goal, detail)
        yield Row("all-reduces", what, len(sent[0]), "", collectives, "counts; shift where it differs; sums")


def _sent(ranks: int, n: int, shared: bool) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(ranks, n, shared, folder), nprocs=ranks)
        sizes = [torch.load(Path(folder, str(rank))) for rank in range(ranks)]
    assert all(size == sizes[0] for size in sizes)
    return sizes[0]


def _rank(rank: int, ranks: int, n: int, shared: bool, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    sent: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.nbytes)
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    statistics = ClassStatistics(K, shift=torch.zeros(P) if shared else None)
    statistics.update(*batch(n, P, K))
    statistics.compute()
    torch.save(sent, Path(folder, str(rank)))
    dist.destroy_process_group()
