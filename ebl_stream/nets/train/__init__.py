"""Training before the scan: lessons, losses, the loop, checkpoints, curves.

Slabs come in as arrays; where they come from is `ebl_stream.training_data`'s.
"""
