"""Nets that denoise: how they are built, kept, trained, and how far they are believed.

Everything here works on slabs ``[z, y, x]`` and knows nothing of documents or Tiled.
"""
