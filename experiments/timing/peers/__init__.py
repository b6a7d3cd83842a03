"""Peers of the speed table, seen from the driver: settings, and owners of processes."""
