"""The simulated beamline of the demo and the tests."""
