"""Source selection: backbones, and layers of them, ranked without training for a target."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from nc_callbacks.distributed import Ranks
from nc_callbacks.probe import default_batch_fn, undisturbed
from nc_callbacks.transfer.features import BatchFn, check_backbone
from nc_callbacks.transfer.scores import Ranking, SourceScore, check_name
from nc_callbacks.transfer.target import Pass, Target, reason

__all__ = ["Ranking", "SourceScore", "rank_sources"]


def rank_sources(
    backbones: Mapping[str, nn.Module | Callable[[], nn.Module]],
    loader: Any,
    num_classes: int,
    test_loader: Any = None,
    holdout: float = 0.2,
    batch_fn: BatchFn | None = None,
    ignore_index: int | None = None,
    *,
    by: str = "lda_accuracy",
    layers: Sequence[str] = (),
) -> Ranking:
    """Backbones by how well their features suit a target, best first: no training, one pass over the data each.

    The source selection of Seddik & Tamaazousti (2022, «Consequences for Transfer Learning»), with the scores of
    `nc_callbacks.functional` beside the accuracy of centred means, all from the moments of that pass and the test
    samples. Each backbone runs on its own device in eval mode and without gradients, and is left as it was. One that
    fails is a row with NaN and the error, at the end. Where torch.distributed is initialised, the ranks share the data,
    and all return the same scores: a backbone that fails on one has failed.

    Args:
        backbones: Modules from inputs to features by name, or functions that make one when its turn comes, so that not
            all are in memory at once.
        loader: The target's training data, with targets.
        num_classes: k.
        test_loader: The target's test data. Without, a random part of `loader`, the same for each backbone, is kept
            out of the class means; its features stay in memory for the pass.
        holdout: Size of that part, a share.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
        ignore_index: Samples (or positions of a sequence) with this target are left out; None for none.
        by: The score to rank by: ``"lda_accuracy"``, ``"cm_accuracy"``, ``"ncc_accuracy"``, ``"logme"``,
            ``"h_score"``, ``"h_score_regularised"``, ``"nc1"`` or ``"mu_ratio"`` (of these two the smaller is better).
        layers: Names of modules of each backbone whose outputs, averaged over positions or tokens, are ranked beside
            the backbone's own, from the same pass: from which layer to transfer.

    Returns:
        A list of `SourceScore`, which prints as a table; see `Ranking`.

    Raises:
        ValueError: An argument is out of its range; a loader is empty or has no targets.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> targets = torch.arange(300) % 3
        >>> x = torch.cat([torch.eye(3)[targets], torch.rand(300, 3, generator=torch.Generator().manual_seed(0))], 1)
        >>> x = x + 0.01 * torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
        >>> loader = DataLoader(TensorDataset(x, targets), batch_size=50)
        >>> keep = {name: torch.nn.Linear(6, 3, bias=False) for name in ("noise", "classes")}
        >>> for name, columns in (("noise", slice(3, 6)), ("classes", slice(0, 3))):
        ...     keep[name].weight.data = torch.eye(6)[columns]
        >>> [(score.name, score.lda_accuracy) for score in rank_sources(keep, loader, num_classes=3)][0]
        ('classes', 1.0)
    """
    if not isinstance(backbones, Mapping) or not backbones:
        raise ValueError(f"backbones must be a mapping from names to modules, not empty; got {backbones!r}.")
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must be a share between 0 and 1, got {holdout}.")
    if isinstance(layers, str):
        raise ValueError(f"layers must be a sequence of names of modules, got {layers!r}: pass ({layers!r},).")
    check_name(by)
    ranks = Ranks.of_world("cuda" if _by_nccl() else "cpu")
    target = Target(loader, test_loader, num_classes, holdout, batch_fn or default_batch_fn, ignore_index)
    ranks.all_or_none(target.check)
    names, scores, on = tuple(dict.fromkeys(("", *layers))), [], ""
    for name, backbone in backbones.items():
        rows, samples = _scores(name, backbone, names, target, ranks)
        scores += rows
        if samples:
            on = "{:,} training and {:,} test samples of {} classes".format(*samples, num_classes)
    return Ranking(scores, by, on)


def _by_nccl() -> bool:
    return dist.is_available() and dist.is_initialized() and "nccl" in dist.get_backend()


def _scores(
    name: str, backbone: nn.Module | Callable[[], nn.Module], layers: Sequence[str], target: Target, ranks: Ranks
) -> tuple[list[SourceScore], tuple[int, int] | None]:
    """The backbone's rows, the same on all ranks, and the numbers of training and test samples they are of."""
    start, samples = time.perf_counter(), None
    found: dict[str, dict[str, float] | str]
    try:
        module = ranks.all_or_none(lambda: _module(backbone))
        start = time.perf_counter()
        with undisturbed(module):
            own = Pass(module, layers, target, ranks)
            found, samples = own.scores(), own.samples
    except Exception as failure:
        found = dict.fromkeys(layers, reason(failure, ranks))
    seconds = time.perf_counter() - start
    nothing = dict.fromkeys(("cm_accuracy", "nc1", "mu_ratio"), math.nan)
    rows = [
        SourceScore(name=name, layer=layer, seconds=seconds, **nothing, error=of)
        if isinstance(of, str)
        else SourceScore(name=name, layer=layer, seconds=seconds, **of)  # type: ignore[arg-type]
        for layer, of in found.items()
    ]
    return rows, samples


def _module(backbone: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    module = backbone if isinstance(backbone, nn.Module) else backbone()
    check_backbone(module)
    return module
