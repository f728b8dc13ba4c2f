"""The callback that starts a model's own classifier at the centred class means."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from nc_callbacks.callbacks.progress import progress
from nc_callbacks.features import FeatureSample
from nc_callbacks.heads import CentredMeanHead, Normalize
from nc_callbacks.loader import own_loader
from nc_callbacks.probe import Tap, default_batch_fn, find_head, named_head, undisturbed


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
            measured. Needs `head`.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
        forward_fn: From (module, inputs) to outputs; by default the module is called on the inputs.

    Attributes:
        scale: The scale of the start, once it was made; saved in checkpoints.

    Raises:
        ValueError: An argument is out of its range; in `setup` and when training starts, what is wrong with the model
            or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> start = CentredMeanInit(head="fc", freeze_backbone=True)
        >>> trainer = Trainer(max_epochs=3, callbacks=[start], logger=False)
    """

    def __init__(
        self,
        head: str | None = None,
        normalize: Normalize = "spectral",
        scale: float | Literal["fit"] = "fit",
        freeze_backbone: bool = False,
        batch_fn: Callable[[Any], tuple[Any, Any]] | None = None,
        forward_fn: Callable[[LightningModule, Any], Any] | None = None,
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
        self.scale: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.global_step == 0:
            self.scale = None
        # A model that builds its layers in configure_model has none yet. The others are frozen before DDP wraps them.
        if not is_overridden("configure_model", pl_module):
            self._check_and_freeze(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_and_freeze(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scale is not None or trainer.global_step > 0:
            return
        stage = trainer.state.stage
        with undisturbed(pl_module):
            # Hooks such as on_after_batch_transfer augment where trainer.training is set.
            trainer.state.stage = RunningStage.VALIDATING
            try:
                self._start(trainer, pl_module)
            finally:
                trainer.state.stage = stage

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.freeze_backbone:
            trained = {pl_module, *self._named_head(pl_module).modules()}
            for module in pl_module.modules():
                module.training &= module in trained

    def _named_head(self, model: LightningModule) -> nn.Module:
        assert self.head is not None
        return named_head(model, self.head)

    def _check_and_freeze(self, model: LightningModule) -> None:
        if self.head is None:
            return
        trained = set(self._named_head(model).parameters())
        if self.freeze_backbone:
            for parameter in set(model.parameters()) - trained:
                parameter.requires_grad_(False)

    def _start(self, trainer: Trainer, model: LightningModule) -> None:
        """Pass over the training data, and set the classifier."""
        loader, counted = own_loader(trainer.train_dataloader, trainer.global_rank, trainer.world_size)
        name = self.head or find_head(model, lambda: self._forward(trainer, model, next(iter(loader)))[0])
        batches = _number_of_batches(trainer, loader)
        sample = FeatureSample()
        given = 1.0 if self.given_scale == "fit" else self.given_scale
        with Tap(model, name) as tap, progress(trainer, "Centred class means", batches) as advance:
            k, p = tap.weight.shape
            head = CentredMeanHead(p, k, normalize=self.normalize, scale=given).to(model.device)
            for number, raw in enumerate(islice(loader, None if batches == math.inf else int(batches))):
                batch = tap.read(self._forward(trainer, model, raw)[1])
                if counted is None or number < counted:
                    head.update(batch.features[name], batch.targets)
                    sample.update(batch.features[name], batch.targets)
                advance()
        head.finalize()
        if self.given_scale == "fit":
            head.fit_scale(*sample.read())
        # Ranks may round differently, and DDP keeps whatever difference there is.
        weight = trainer.strategy.broadcast(head.weight.cpu())
        tap.module.weight.copy_(weight.view_as(tap.module.weight))  # type: ignore
        if tap.bias is not None:
            tap.bias.zero_()
        self.scale = float(head.scale)
        rank_zero_info(f"CentredMeanInit: {name!r} starts at the centred class means times {self.scale:.4g}.")

    def _forward(self, trainer: Trainer, model: LightningModule, raw: Any) -> tuple[Any, Any]:
        """Outputs and targets of a batch, moved and cast as in training."""
        strategy = trainer.strategy
        batch = model._on_before_batch_transfer(strategy.precision_plugin.convert_input(raw), dataloader_idx=0)
        inputs, targets = self.batch_fn(strategy.batch_to_device(batch, dataloader_idx=0))
        with strategy.precision_plugin.val_step_context():
            return (model(inputs) if self.forward_fn is None else self.forward_fn(model, inputs)), targets


def _number_of_batches(trainer: Trainer, loader: Any) -> float:
    """Of a pass over the loader, within the trainer's `limit_train_batches` (also set by `fast_dev_run`)."""
    limit = trainer.limit_train_batches
    # The integer 1 means one batch, the float 1.0 all of them.
    whole = limit is None or (isinstance(limit, float) and limit == 1)
    return min(
        len(loader) if hasattr(loader, "__len__") else math.inf, math.inf if whole else trainer.num_training_batches
    )
