"""Ask for vectors as wide as the processor has them.

LLVM holds back on some processors with AVX-512 and takes half the width, against
frequencies that fell where it was new. Measured here: the wide ones take half the time.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic as numba_intrinsic

intrinsic: Any = numba_intrinsic  # called without the typing context


@intrinsic
def prefer_wide(_typing: Any) -> Any:
    """Say so for the loops of the kernel that calls this; processors without stay."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        # llvmlite passes on what it knows; this one LLVM knows.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate
