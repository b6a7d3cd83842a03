"""Sizes of seconds for the entries of speed.py: to try commands, not to measure."""

import attack_speed
import federated_speed
import ginas_speed
import inversion_speed
import inverter_speed
import lamp_speed
import latent_speed
import membership_speed
import peak
import sweep_speed
import trigger_speed


def shrink():
    """Makes all entries small; called before any of them."""
    peak.CPU_WORK, peak.GPU_WORK = 1e8, 1e11
    few = attack_speed.CPU.candidates[:2]
    # Victims: what fills the smallest chunks of the peers' two processes.
    attack_speed.CPU = attack_speed.GPU = attack_speed.Size(16, 1, few)
    attack_speed.ITERATIONS = 3
    # Deeper networks take minutes to compile. Victims: two chunks of two of a peer's.
    small = {"network": "lenet", "victims": 4, "repeats": 1, "chunks": (1,)}
    for name in inversion_speed.ON_GPU:
        inversion_speed.ON_GPU[name] = small
    for name, work in inversion_speed.WORK.items():
        inversion_speed.WORK[name] = work._replace(**small)
    inversion_speed.GRNN = inversion_speed.GRNN._replace(**small)
    for name, work in federated_speed.WORK.items():
        own = {"own": 4} if work.own else {}
        federated_speed.WORK[name] = work._replace(
            clients=2, steps=2, batch=2, checked=1, **own
        )
    for name, work in trigger_speed.WORK.items():
        trigger_speed.WORK[name] = work._replace(examples=2, steps=2)
    federated_speed.SCALE = (2, 4)
    latent_speed.WORK = latent_speed.Work(victims=2, candidates=4, steps=3)
    ginas_speed.WORK = ginas_speed.Work(4, 2, 8, 1, 8)
    lamp_speed.WORK = lamp_speed.Work(victims=2, orders=20, length=4)
    inverter_speed.WORK = inverter_speed.Work(uploads=4, steps=2, width=8, hashed=64)
    sweep_speed.SIZES["sweep-64"] = sweep_speed.SIZES["sweep-4096"] = (1, 1)
    membership_speed.SIZE = membership_speed.Size(600, 4, 64, 8)
