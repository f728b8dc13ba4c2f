"""Streaming class statistics: one pass over features, exact to the end of training.

Neural collapse means that the within-class variance vanishes beside the class means. There
``E[xxᵀ] − mmᵀ`` in float32 cancels to noise, so every sum here is taken of features minus a
per-class shift that lies near the class mean:

    d_i = x_i − s_{y_i},   S_c = Σ d_i,   Q = Σ d_i d_iᵀ,   C_c = Q_c/n_c − δ_c δ_cᵀ,   δ_c = S_c/n_c

The shift is corrected for exactly when the result is asked for, and moves, with the sums, where it proves to be far
from the mean. One matrix product a batch, or less: Q is symmetric.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from nc_callbacks.statistics.adding import StreamedSums
from nc_callbacks.statistics.batches import samples
from nc_callbacks.statistics.merging import fitting
from nc_callbacks.statistics.moments import ClassMoments
from nc_callbacks.statistics.precision import full_precision
from nc_callbacks.statistics.result import moments_of
from nc_callbacks.statistics.states import Covariance


class ClassStatistics(StreamedSums):
    """Class means and covariances of features, streamed.

    Features in float16, bfloat16 or float32 are accumulated in blocks in float32, whose sum keeps 48 bits; float64 in
    float64. `compute` does its algebra in float64. Each batch costs at most one product of the batch with itself and
    never waits for a GPU. Small batches wait, up to 4,096 rows or 1 MiB (on a GPU 32,768 or 32 MiB; with
    ``"per_class"`` 64 rows per class), and are added together; reading a state adds what waits. On a CPU, a batch that
    lies far from its shifts or holds samples that outweigh all others is added in float64.

    Args:
        num_classes: k, at least 2.
        num_features: p; by default that of the first batch.
        covariance: ``"none"`` keeps O(kp) numbers (means, traces, coordinate sums), ``"pooled"`` adds Σ_W (p × p),
            ``"per_class"`` adds every C_c (k × p × p).
        ignore_index: Samples with this target are left out.
        shift: Vectors near the class means, (k, p) or (p,), to take the sums around. By default each class takes its
            mean among the first samples that are added together, and follows its samples where that proves to be far.
        kwargs: Passed to `torchmetrics.Metric`.

    The states `products` and `earlier_products` hold upper triangles alone.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> statistics = ClassStatistics(num_classes=2)
        >>> for x, y in zip(features, torch.tensor([0, 0, 1])):
        ...     statistics.update(x[None], y[None])
        >>> statistics.compute().within.tolist()
        [[0.6666666666666666, 0.0], [0.0, 0.0]]
    """

    full_state_update = True
    higher_is_better = None
    is_differentiable = False

    def __init__(
        self,
        num_classes: int,
        num_features: int | None = None,
        covariance: Covariance = "pooled",
        ignore_index: int | None = None,
        shift: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 (collapse compares classes), got {num_classes}.")
        if covariance not in ("none", "pooled", "per_class"):
            raise ValueError(f'covariance must be "none", "pooled" or "per_class", got {covariance!r}.')
        if shift is not None:
            p = num_features or (shift.shape[-1] if shift.ndim else 0)
            if shift.shape not in ((p,), (num_classes, p)):
                raise ValueError(
                    f"shift must have shape (num_features,) or (num_classes, num_features) = "
                    f"({num_classes}, {num_features or 'p'}), got {tuple(shift.shape)}."
                )
            num_features = shift.shape[-1]
        super().__init__(num_classes, num_features, covariance, shift, **kwargs)
        self.ignore_index = ignore_index

    def update(self, features: Float[Tensor, "n *p"], targets: Int[Tensor, " n"]) -> None:
        """Add a batch.

        Args:
            features: (n, p); (n, p, 1, 1) and the like are flattened; (n, …, p) with targets (n, …) counts every
                position as a sample.
            targets: Class indices in 0…k−1, of any type, or `ignore_index`.

        Raises:
            ValueError: Shapes or types do not fit, or (on the CPU; elsewhere `compute` raises it, since asking would
                wait for the device) a target lies outside 0…k−1.
        """
        with full_precision(features.device):
            x, y = samples(features, targets, self.num_features or self._sums.shape[1])
            if x.device != self._sums.device or y.device != x.device:
                raise ValueError(
                    f"features, targets and statistics must be on one device, got {x.device}, {y.device} and "
                    f"{self._sums.device}: move the statistics with .to(...)."
                )
            x, y = self._counted(x, y)
            self._accommodate(x)
            # Not len(x), which takes Python a microsecond.
            if x.shape[0]:
                self._take(x, y)

    def compute(self) -> ClassMoments:
        """The moments of all samples so far (over all ranks, where torch.distributed is initialised).

        Raises:
            ValueError: Targets outside 0…k−1 were passed to `update` on a device other than the CPU.
        """
        if invalid := int(self.invalid):
            raise ValueError(
                f"{invalid} targets lie outside 0…{self.num_classes - 1} (num_classes={self.num_classes}). "
                "Pass class indices, or set ignore_index for a padding label."
            )
        return moments_of(self._state)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another `ClassStatistics` (or its `metric_state`) to this one.

        Raises:
            ValueError: The other is no `ClassStatistics` with the same classes, features and covariance.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, ClassStatistics) else incoming_state
        theirs = fitting(state, self._state, self._products_shape)
        with full_precision(self._sums.device):
            self._make_states_mutable()
            self._accommodate(theirs["sums"])
            self._merge(theirs)
        self._update_count += 1
        self._computed = None
