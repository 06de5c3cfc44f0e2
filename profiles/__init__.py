"""Beamline profiles: one YAML file each, nothing else."""
