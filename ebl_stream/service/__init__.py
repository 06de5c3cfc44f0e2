"""The service: sockets and journal in front of the reconstruction."""
