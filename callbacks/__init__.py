"""Doors: Bluesky callbacks that import the house, never raise and never wait."""
