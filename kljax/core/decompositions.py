"""Decompositions of matrices in batches: LAPACK's on a CPU, without a deadlock."""

import jax

# Victims one after the other, whatever vmap says. A batch of them would take as much
# memory more, and in jaxlib 0.10 a batched LAPACK call hands its matrices to the very
# threads that wait for it: with as many devices, or calls that do not wait for each
# other, as threads nobody is left to work.
one_at_a_time = jax.custom_batching.sequential_vmap
