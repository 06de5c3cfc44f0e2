"""Results: zarr on disk is the truth, Tiled is told afterwards."""
