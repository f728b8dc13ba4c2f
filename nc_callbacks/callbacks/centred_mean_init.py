"""The callback that starts a model's own classifier at the centred class means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from nc_callbacks.callbacks.arguments import spelt_right
from nc_callbacks.callbacks.own_classifier import checked_head, own_head, set_parameter
from nc_callbacks.distributed import Ranks
from nc_callbacks.engine.passes import Passes, Step
from nc_callbacks.engine.request import Source
from nc_callbacks.engine.trainer import makes_layers_later
from nc_callbacks.functional.whitening import Priors
from nc_callbacks.probe import Tap, default_batch_fn
from nc_callbacks.probe.names import named_modules, unsharded
from nc_callbacks.statistics import ClassMoments, ClassStatistics
from nc_callbacks.transfer.features import FeatureSample
from nc_callbacks.transfer.forms import Normalize, check_width, without_bias
from nc_callbacks.transfer.head import CentredMeanHead


class CentredMeanInit(Callback):
    """Start the model's own classifier at scale · M̄ when fit begins (WICM of Seddik & Tamaazousti 2022, Fig. 3).

    One pass over the training data, in eval mode, without gradients, sequential and shared by the ranks, which leaves
    random states, buffers and train/eval flags as they were. Then the classifier's weight is set in place to the
    centred class means of its input, the same on all ranks, and its bias to zero; a class without samples has a zero
    row. Training goes on from there. A fit that resumes from a checkpoint is left alone.

    ``whiten=True`` starts at the class means whitened by the covariance within classes, with their bias (see
    `nc_callbacks.CentredMeanHead`), which is nearer to where training ends. A classifier without a bias carries as much
    of it as the features have of a constant, and one warning says what is lost.

    Args:
        head: Dotted name of the classifier; by default it is found (see `nc_callbacks.probe.find_head`).
        normalize: ``"spectral"`` (the default of centred means), ``"frobenius"`` or ``"none"`` (the default where
            whitened); see `nc_callbacks.CentredMeanHead`.
        scale: Factor of the weight, or ``"fit"``: the one that minimises the cross-entropy of the first logits, on all
            training features or 8,192 a rank drawn at random.
        freeze_backbone: Train the classifier alone: all other parameters require no gradient, and all other modules
            but the LightningModule itself are in eval mode while training, so that the features stay as they were
            measured; in a fit that resumes, too. When fit ends, also by an exception, both are put back as they were.
            Needs `head`.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
        forward_fn: From (module, inputs) to outputs; by default the module is called on the inputs.
        ignore_index: Samples (or positions of a sequence) with this target take no part; None for none.
        whiten: Start at the whitened class means and their bias; see `nc_callbacks.CentredMeanHead`.
        shrinkage: That of the covariance, where whitened; by default a formula's.
        priors: ``"empirical"`` adds the logarithm of each class's share to the bias, where whitened.

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
        normalize: Normalize | None = None,
        scale: float | Literal["fit"] = "fit",
        freeze_backbone: bool = False,
        batch_fn: Callable[[Any], tuple[Any, Any]] | None = None,
        forward_fn: Callable[[LightningModule, Any], Any] | None = None,
        ignore_index: int | None = -100,
        *,
        whiten: bool = False,
        shrinkage: float | None = None,
        priors: Priors = "uniform",
    ) -> None:
        if freeze_backbone and head is None:
            raise ValueError(
                "freeze_backbone=True needs the name of the classifier, since parameters are frozen before the model "
                'has run: pass head="...".'
            )
        # Raises on what it does not take.
        self._form: dict[str, Any] = {"whiten": whiten, "shrinkage": shrinkage, "priors": priors}
        form = CentredMeanHead(None, 2, normalize=normalize, scale=1.0 if scale == "fit" else scale, **self._form)
        self.head = head
        self.normalize: Normalize = form.normalize
        self.given_scale = scale
        self.freeze_backbone = freeze_backbone
        self.batch_fn = batch_fn or default_batch_fn
        self.forward_fn = forward_fn
        self.ignore_index = ignore_index
        self.scale: float | None = None
        self._frozen: set[nn.Parameter] = set()
        self._stilled: set[nn.Module] = set()

    def state_dict(self) -> dict[str, Any]:
        """What is saved in a checkpoint."""
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        self.scale = state_dict["scale"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the classifier and freeze the rest, where the model has its layers already."""
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
        """Check and freeze a model that makes its layers late."""
        if makes_layers_later(pl_module):
            self._check_and_freeze(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the classifier at the class means."""
        if self.scale is None and trainer.global_step == 0:
            self._start(trainer, pl_module)
        # A fit that resumes within an epoch starts none.
        self._still(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the frozen modules in eval mode."""
        self._still(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave all as it was, and keep what there is, where a fit is broken off."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of what a run held."""
        self._release()

    def _check_and_freeze(self, model: LightningModule) -> None:
        if self.head is None:
            return
        trained = set(own_head(model, self.head).parameters())
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
            found = partial(checked_head, passes, model)
            own = found() if passes.sharded else ranks.all_or_none(found)
            name = own.name
            with Tap(model, own) as tap:
                if self.whiten:
                    check_width(tap.num_features)
                # A process group may be left over from a trainer with more processes than this one.
                statistics = ClassStatistics(
                    tap.num_classes,
                    tap.num_features,
                    covariance="pooled" if self.whiten else "none",
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
            ranks.all_or_none(statistics.settle)
            moments = ranks.all_or_none(statistics.compute)
            with_bias = isinstance(getattr(tap.module, "bias", None), Tensor)
            head = self._made(moments, sample, ranks, name, with_bias)
            # Ranks may round differently, and DDP keeps whatever difference there is.
            weight = trainer.strategy.broadcast(head.weight.cpu())
            bias = trainer.strategy.broadcast(torch.zeros(len(weight)) if head.bias is None else head.bias.cpu())
        with torch.no_grad(), unsharded(model, writeback=True):
            set_parameter(tap.module.weight, weight)  # type: ignore[arg-type]
            if with_bias:
                set_parameter(tap.module.bias, bias)  # type: ignore[arg-type]
        self.scale = float(head.scale)
        kind = "whitened" if self.whiten else "centred"
        rank_zero_info(f"CentredMeanInit: {name!r} starts at the {kind} class means times {self.scale:.4g}.")

    @property
    def whiten(self) -> bool:
        """Whether the class means are whitened."""
        return bool(self._form["whiten"])

    def _made(
        self, moments: ClassMoments, sample: FeatureSample, ranks: Ranks, name: str, with_bias: bool
    ) -> CentredMeanHead:
        """The head to start at."""
        given = 1.0 if self.given_scale == "fit" else self.given_scale
        head = CentredMeanHead.from_moments(moments, normalize=self.normalize, scale=given, **self._form)
        features, targets = sample.read()
        if head.bias is not None and not with_bias:
            before = _accuracy(head, features, targets, ranks)
            weight = without_bias(head.weight, head.bias, moments)
            head.weight.copy_(weight)
            head.bias.zero_()
            after = _accuracy(head, features, targets, ranks)
            rank_zero_warn(
                f"The classifier {name!r} has no bias, which the whitened class means need: on training samples its "
                f"start classifies {after:.1%} rightly, and with a bias {before:.1%}. Make it with bias=True."
            )
        if self.given_scale == "fit":
            head.fit_scale(features, targets, ranks.sum)
        return head


def _accuracy(head: CentredMeanHead, features: Tensor, targets: Tensor, ranks: Ranks) -> float:
    """Share of all ranks' samples that are classified rightly."""
    right = torch.zeros(2, dtype=torch.long, device=ranks.device)
    if len(targets):
        answers = head(features.to(head.weight.device, head.weight.dtype)).argmax(1)
        right[0], right[1] = (answers == targets.to(answers.device)).sum(), len(targets)
    hits, samples = ranks.sum(right).tolist()
    return hits / max(samples, 1)
