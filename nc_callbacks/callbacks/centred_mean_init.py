"""The callback that starts a model's own classifier at the centred class means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import distribute_tensor

from nc_callbacks.callbacks.observation import Source
from nc_callbacks.callbacks.passes import Passes, Step
from nc_callbacks.callbacks.trainers import overrides
from nc_callbacks.features import FeatureSample
from nc_callbacks.heads import CentredMeanHead, Normalize
from nc_callbacks.loader import own_loaders
from nc_callbacks.probe import Tap, default_batch_fn, find_head, named_head
from nc_callbacks.probe.classifier import unsharded

IGNORED = -100
"""Samples with this target take no part, as in torch's cross-entropy."""


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
        if not overrides(pl_module, "configure_model"):
            self._check_and_freeze(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_and_freeze(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scale is not None or trainer.global_step > 0:
            return
        self._start(trainer, pl_module)

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
        passes = Passes(trainer, model, Source(self.head, batch_fn=self.batch_fn, forward_fn=self.forward_fn))
        sample = FeatureSample()
        with passes.standing_still(trainer.train_dataloader):
            name = self.head or find_head(model, lambda: passes.forward(_first_inputs(passes)))
            with Tap(model, name) as tap:
                given = 1.0 if self.given_scale == "fit" else self.given_scale
                head = CentredMeanHead(tap.num_features, tap.num_classes, normalize=self.normalize, scale=given)
                head = head.to(model.device)

                def add(step: Step) -> None:
                    batch = tap.read(step.targets)
                    kept = batch.targets != IGNORED
                    head.update(batch.features[name][kept], batch.targets[kept])
                    sample.update(batch.features[name][kept], batch.targets[kept])

                passes.each("train", trainer.train_dataloader, tap, add, "class means")
            head.finalize()
            if self.given_scale == "fit":
                head.fit_scale(*sample.read())
            # Ranks may round differently, and DDP keeps whatever difference there is.
            weight = trainer.strategy.broadcast(head.weight.cpu())
            with unsharded(model, writeback=True):
                _set(tap.module.weight, weight)  # type: ignore[arg-type]
                if isinstance(bias := getattr(tap.module, "bias", None), Tensor):
                    bias.zero_()
        self.scale = float(head.scale)
        rank_zero_info(f"CentredMeanInit: {name!r} starts at the centred class means times {self.scale:.4g}.")


def _first_inputs(passes: Passes) -> Any:
    raw = next(iter(own_loaders(passes.trainer.train_dataloader)[0].loader), None)
    if raw is None:
        raise ValueError("The train loader is empty: it gave no batch.")
    return passes.inputs_and_targets(raw, "train")[0]


def _set(parameter: Tensor, value: Tensor) -> None:
    value = value.to(parameter.device, parameter.dtype).view(parameter.shape)
    if isinstance(mesh := getattr(parameter, "device_mesh", None), DeviceMesh):
        value = distribute_tensor(value, mesh, parameter.placements)  # type: ignore[attr-defined]
    parameter.copy_(value)
