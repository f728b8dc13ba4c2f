"""The callback that starts a model's own classifier at the centred class means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import distribute_tensor

from nc_callbacks.callbacks.arguments import spelt_right
from nc_callbacks.data.loader import own_loaders
from nc_callbacks.engine.passes import Passes, Step
from nc_callbacks.engine.request import Source
from nc_callbacks.engine.trainer import makes_layers_later
from nc_callbacks.probe import Head, Tap, default_batch_fn, named_head
from nc_callbacks.probe.names import distinct_modules, named_modules, refuse_lazy, unsharded, whole
from nc_callbacks.statistics import ClassStatistics
from nc_callbacks.transfer.features import FeatureSample
from nc_callbacks.transfer.head import CentredMeanHead, Normalize

_TRIED = 10
"""Batches among which one with targets is looked for."""


class CentredMeanInit(Callback):
    """Start the model's own classifier at scale · M̄ when fit begins (WICM of Seddik & Tamaazousti 2022, Fig. 3).

    One pass over the training data, in eval mode, without gradients, sequential and shared by the ranks, which leaves
    random states, buffers and train/eval flags as they were. Then the classifier's weight is set in place to the
    centred class means of its input, the same on all ranks, and its bias to zero; a class without samples has a zero
    row. Training goes on from there. A fit that resumes from a checkpoint is left alone.

    Args:
        head: Dotted name of the classifier; by default it is found (see `nc_callbacks.probe.find_head`).
        normalize: ``"spectral"``, ``"frobenius"`` or ``"none"``; see `nc_callbacks.CentredMeanHead`.
        scale: Factor of the weight, or ``"fit"``: the one that minimises the cross-entropy of the first logits, on all
            training features or 8,192 a rank drawn at random.
        freeze_backbone: Train the classifier alone: all other parameters require no gradient, and all other modules
            but the LightningModule itself are in eval mode while training, so that the features stay as they were
            measured; in a fit that resumes, too. When fit ends, also by an exception, both are put back as they were.
            Needs `head`.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
        forward_fn: From (module, inputs) to outputs; by default the module is called on the inputs.
        ignore_index: Samples (or positions of a sequence) with this target take no part; None for none.

    Attributes:
        scale: The scale of the start, once it was made; saved in checkpoints.

    Raises:
        ValueError: An argument is out of its range; in `setup` and when training starts, what is wrong with the model
            or the data: among others, a classifier whose weight is computed from other parameters (weight or spectral
            normalisation) or belongs to another module too.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> start = CentredMeanInit(head="fc", freeze_backbone=True)
        >>> trainer = Trainer(max_epochs=3, callbacks=[start], logger=False)
    """

    @spelt_right
    def __init__(
        self,
        head: str | None = None,
        normalize: Normalize = "spectral",
        scale: float | Literal["fit"] = "fit",
        freeze_backbone: bool = False,
        batch_fn: Callable[[Any], tuple[Any, Any]] | None = None,
        forward_fn: Callable[[LightningModule, Any], Any] | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        if freeze_backbone and head is None:
            raise ValueError(
                "freeze_backbone=True needs the name of the classifier, since parameters are frozen before the model "
                'has run: pass head="...".'
            )
        # Raises on what it does not take.
        CentredMeanHead(None, 2, normalize=normalize, scale=1.0 if scale == "fit" else scale)
        self.head = head
        self.normalize: Normalize = normalize
        self.given_scale = scale
        self.freeze_backbone = freeze_backbone
        self.batch_fn = batch_fn or default_batch_fn
        self.forward_fn = forward_fn
        self.ignore_index = ignore_index
        self.scale: float | None = None
        self._frozen: set[nn.Parameter] = set()
        self._stilled: set[nn.Module] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.global_step == 0:
            self.scale = None
        # A model that makes its layers in setup or configure_model has none yet. The others are frozen before DDP wraps
        # them.
        if not makes_layers_later(pl_module) or self.head in named_modules(pl_module):
            self._check_and_freeze(pl_module)
        elif self.freeze_backbone:
            self._freeze(pl_module, set())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if makes_layers_later(pl_module):
            self._check_and_freeze(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scale is None and trainer.global_step == 0:
            self._start(trainer, pl_module)
        # A fit that resumes within an epoch starts none.
        self._still(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._still(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _check_and_freeze(self, model: LightningModule) -> None:
        if self.head is None:
            return
        trained = set(_own_head(model, self.head).parameters())
        if self.freeze_backbone:
            self._freeze(model, trained)

    def _freeze(self, model: LightningModule, trained: set[nn.Parameter]) -> None:
        frozen = {parameter for parameter in model.parameters() if parameter.requires_grad} - trained
        for parameter in frozen:
            parameter.requires_grad_(False)
        # The classifier may be another name, given in setup, of a module that was frozen before.
        for parameter in self._frozen & trained:
            parameter.requires_grad_(True)
        self._frozen = (self._frozen | frozen) - trained

    def _still(self, model: LightningModule) -> None:
        if self.head is None or not self.freeze_backbone:
            return
        trained = {model, *named_modules(model)[self.head].modules()}
        stilled = {module for module in model.modules() if module.training} - trained
        for module in stilled:
            module.training = False
        self._stilled |= stilled

    def _release(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for module in self._stilled:
            module.training = True
        self._frozen.clear()
        self._stilled.clear()

    def _start(self, trainer: Trainer, model: LightningModule) -> None:
        """Pass over the training data, and set the classifier."""
        passes = Passes(trainer, model, Source(self.head, None, self.batch_fn, self.forward_fn, self.ignore_index))
        ranks = passes.ranks
        sample = FeatureSample()
        with passes.standing_still(trainer.train_dataloader):
            # A sharded model's forward pass waits for the other ranks.
            found = partial(_checked_head, passes, model)
            own = found() if passes.sharded else ranks.all_or_none(found)
            name = own.name
            with Tap(model, own) as tap:
                # A process group may be left over from a trainer with more processes than this one.
                statistics = ClassStatistics(
                    tap.num_classes,
                    tap.num_features,
                    covariance="none",
                    process_group=ranks.group,
                    sync_on_compute=ranks.size > 1,
                ).to(model.device)

                def add(step: Step) -> None:
                    batch = tap.read(step.targets)
                    rows, targets = batch.features[name], batch.targets
                    if self.ignore_index is not None:
                        kept = targets != self.ignore_index
                        rows, targets = rows[kept], targets[kept]
                    statistics.update(rows, targets)
                    sample.update(rows, targets)

                passes.each("train", trainer.train_dataloader, tap, add, "class means")
            given = 1.0 if self.given_scale == "fit" else self.given_scale
            ranks.all_or_none(statistics.settle)
            moments = ranks.all_or_none(statistics.compute)
            head = CentredMeanHead.from_moments(moments, normalize=self.normalize, scale=given)
            if self.given_scale == "fit":
                head.fit_scale(*sample.read(), ranks.sum)
            # Ranks may round differently, and DDP keeps whatever difference there is.
            weight = trainer.strategy.broadcast(head.weight.cpu())
        with torch.no_grad(), unsharded(model, writeback=True):
            _set(tap.module.weight, weight)  # type: ignore[arg-type]
            if isinstance(bias := getattr(tap.module, "bias", None), Tensor):
                bias.zero_()
        self.scale = float(head.scale)
        rank_zero_info(f"CentredMeanInit: {name!r} starts at the centred class means times {self.scale:.4g}.")


def _own_head(model: LightningModule, name: str) -> nn.Module:
    """The classifier of that name, whose weight and bias can be set.

    Raises:
        ValueError: They are not parameters of its own, or of another module as well.
    """
    module = named_head(model, name)
    for kind in ("weight", "bias"):
        if not isinstance(getattr(module, kind, None), Tensor):
            continue
        parameter = module._parameters.get(kind)
        if parameter is None:
            raise ValueError(
                f"The {kind} of {name!r} ({type(module).__name__}) is no parameter of its own, so CentredMeanInit "
                "cannot set it: take off weight_norm, spectral_norm or whatever else computes it, or pass the name of "
                "the module that holds the parameter as head=...."
            )
        sharing = [other for other, m in distinct_modules(model).items() if _holds(m, parameter) and m is not module]
        if sharing:
            raise ValueError(
                f"The {kind} of {name!r} is that of {', '.join(map(repr, sharing))} too, which CentredMeanInit would "
                "overwrite: untie them, or leave this callback out."
            )
    return module


def _holds(module: nn.Module, parameter: nn.Parameter) -> bool:
    return any(own is parameter for own in module._parameters.values())


def _checked_head(passes: Passes, model: LightningModule) -> Head:
    """The classifier, held to its contract on the first batch with targets, whose weight and bias can be set.

    Raises:
        ValueError: It breaks it, or its input is not multiplied by the rows of its weight.
    """
    refuse_lazy(model)
    head = passes.checked_head(*_first_pair(passes))
    with unsharded(model):
        module = _own_head(model, head.name)
        weight, _ = head.weight_and_bias(module)
        own = getattr(module, "weight", None)
        fits = isinstance(own, Tensor) and weight is not None and own.shape[0] == head.num_classes
        if not (fits and torch.allclose(whole(own).flatten(1), weight, rtol=1e-3, atol=1e-6)):  # type: ignore[arg-type]
            raise ValueError(
                f"The classifier {head.name!r} ({type(module).__name__}) does not multiply its input with the rows of "
                "a parameter named weight, so CentredMeanInit cannot set it: use torch.nn.Linear, or leave this "
                "callback out."
            )
    return head


def _first_pair(passes: Passes) -> tuple[Any, Any]:
    loader = own_loaders(passes.trainer.train_dataloader)[0].loader
    read = (passes.inputs_and_targets(raw, "train") for raw in islice(loader, _TRIED))
    first = next(read, None)
    if first is None:
        raise ValueError("The train loader is empty: it gave no batch.")
    return next((pair for pair in chain([first], read) if pair[1] is not None), first)


def _set(parameter: Tensor, value: Tensor) -> None:
    value = value.to(parameter.device, parameter.dtype).view(parameter.shape)
    if isinstance(mesh := getattr(parameter, "device_mesh", None), DeviceMesh):
        value = distribute_tensor(value, mesh, parameter.placements)  # type: ignore[attr-defined]
    parameter.copy_(value)
