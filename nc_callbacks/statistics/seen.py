"""Whether every class has samples, as far as the host knows without waiting for a GPU."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


class AllSeen:
    """Asks a CUDA device for it once at a time, and takes the answer when it has come; elsewhere it never knows.

    Counts only grow, so what was so when the device was asked is so when the host knows it. What is left out then would
    have added zeros: results do not depend on when the answer comes.
    """

    def __init__(self) -> None:
        self._known = False
        self._answer: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def ask(self, counts: Int[Tensor, " k"]) -> None:
        """Have the device look at the counts, unless it is known or being asked."""
        if counts.device.type != "cuda" or self._known or self._answer is not None:
            return
        self._answer = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
        self._answer.copy_((counts > 0).all(), non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(counts.device))

    def is_known(self) -> bool:
        """Whether all classes have samples, for certain."""
        if self._arrived is not None and self._answer is not None and self._arrived.query():
            self._known = bool(self._answer)
            self._answer = self._arrived = None
        return self._known
