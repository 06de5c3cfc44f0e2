"""Transmission to line integrals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics import line_integrals
from ebl_stream.stages import References, Values


@dataclass(frozen=True)
class MinusLog:
    """Turn transmission into line integrals: ``-log(max(transmission, clip))``."""

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    whole_frame: ClassVar[bool] = False
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "transmission"
    role: ClassVar[Values] = "line_integral"

    clip: float = 1e-5
    """Smallest transmission; less counts as this."""

    def __post_init__(self) -> None:
        if not 1e-30 < self.clip < 1:
            raise ValueError("clip must be between 0 and 1")

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]``; NaN stays NaN."""
        values = np.ascontiguousarray(values, np.float32)
        logs = np.empty_like(values)
        clip = np.float32(self.clip)
        line_integrals.minus_log(values.reshape(-1), clip, logs.reshape(-1))
        return logs
