"""Entries of the speed table, a module for each kind of work."""
