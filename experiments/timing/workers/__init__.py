"""Peers of the speed table: what runs inside their worker processes.

Each is started as ``python -m timing.workers.NAME`` under a Python that has PyTorch, or
fedjax, and perhaps neither JAX nor kljax: no module here imports these two, but for the
one of fedjax, which needs JAX itself. The driver's side is `timing.peers`.
"""
