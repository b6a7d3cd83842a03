"""Federated learning: what a client computes, and how a server combines it.

`kljax.federated.clients` is one client's side, `kljax.federated.rounds` the server's;
`kljax.federated.algorithms` composes both by the names of papers, and
`kljax.federated.evaluation` measures what a trained model can do.
"""
