"""Was every projection used exactly once? Knows nothing of the service's code.

    python -m checker DETECTOR.jsonl RUN_UID --journal F --audit F --results F

Four places are compared: the detector (what was exposed), the journal (what the
service received), the accumulator (what was added to the grids), the read-back (what
the published result says). Every id gets one class at every place.

======================== =====================================================
ok                       once, with the detector's checksum
lost                     exposed, and not there
duplicated               there with effect more than once
unexpected               never exposed, or with another checksum
superseded               an exposure that a later one of the same id replaced
named                    not in the volume, and the ledger says so with a reason
======================== =====================================================
"""
