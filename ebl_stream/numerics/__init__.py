"""The mathematics: Fourier accumulation, angular weights, split-half quality."""
