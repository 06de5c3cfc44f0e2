"""A sample for nets to learn from within a second."""

from __future__ import annotations

import numpy as np


def discs(seed: int, n: int = 48, n_slices: int = 6) -> np.ndarray:
    """Smooth blobs that lie alike in all slices."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    image = np.zeros((n, n))
    for cy, cx, r in rng.uniform([8, 8, 3], [n - 8, n - 8, 9], (6, 3)):
        image += np.hypot(y - cy, x - cx) < r
    return np.repeat(image[None], n_slices, 0).astype(np.float32)
