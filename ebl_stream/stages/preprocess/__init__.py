"""Preprocess: what the detector counted, to line integrals.

The usual order: flat_field, normalize_beam, remove_zingers, retrieve_phase, minus_log,
remove_rings; then, for the final volume alone, remove_stripes or filter_stripes.
"""

from ebl_stream.stages.preprocess.beam import NormalizeBeam
from ebl_stream.stages.preprocess.flat_field import FlatField
from ebl_stream.stages.preprocess.log import MinusLog
from ebl_stream.stages.preprocess.phase import RetrievePhase
from ebl_stream.stages.preprocess.pixels import repair
from ebl_stream.stages.preprocess.rings import RemoveRings
from ebl_stream.stages.preprocess.stripes import FilterStripes, RemoveStripes
from ebl_stream.stages.preprocess.zingers import RemoveZingers

__all__ = [
    "FilterStripes",
    "FlatField",
    "MinusLog",
    "NormalizeBeam",
    "RemoveRings",
    "RemoveStripes",
    "RemoveZingers",
    "RetrievePhase",
    "repair",
]
