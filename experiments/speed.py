"""Measures kljax beside its strongest peers, round by round in turns.

    python experiments/speed.py --json FILE [--only NAME ...] [--rounds 5]
        [--torch-python PYTHON] [--fedjax-python PYTHON] [--peers [NAME ...]]
        [--peers-from FILE]

Names:
  dlg-lenet-eval    values and image gradients of DLG's objective, LeNet at 32x32, every
                    victim its own weights; in evaluations/s
  dlg-lenet-attack  complete attacks by fixed-step L-BFGS (step 1, memory 20), equal
                    iterations and starts on both sides; in attacks/h, with the share
                    of victims recovered by each side
  fl-lenet-b10      one round of federated averaging, 64 clients x 10 local steps x
                    batch 10, with all its cost; in examples/s
  fl-lenet-b32      the same with batch 32
  fl-resnet20-b10   8 clients x 5 steps x batch 10 of ResNet-20
  fl-cnn-b50        the work of BlazeFL's published figure: 100 clients, 400 images
                    each, 5 epochs, batch 50, PyTorch's tutorial's CNN; rounds/min
  fl-scale          FedKL with 64, 512 and 4,096 clients, LeNet, at the same chunk: s
                    per client, device memory, private state on the host; no peers
  ig-resnet20       values and image gradients of the cosine distance and the total
                    variation, ResNet-20 at 32x32, 16 victims with own weights, norms
                    in evaluation mode; in evaluations/s
  ig-convnet64      the same of the 2.9 M ConvNet of Inverting Gradients, 8 victims
  grnn-lenet        GRNN: steps of RMSprop on a generator per victim, LeNet; in steps/s
  fedavg-inversion  the cosine distance of updates of 5 local steps, LeNet, 64 victims;
                    in evaluations/s
  trigger-inversion triggers of all 90 pairs of ten classes, 20 steps, dense network at
                    8x8, warm and cold; in steps of a pair/s, beside eager PyTorch that
                    takes pair after pair, and one that takes them side by side
  trigger-inversion-lenet
                    the same for 10 steps on LeNet at 32x32
  lamp-candidates   LAMP's proposals: orders of a sentence of 16 tokens, the gradient
                    that each gives and its cosine distance; in candidates/s
  ginas-search      the search of GI-NAS: 20 untrained networks of 16 channels at 32x32,
                    each of its own architecture, the gradient of LeNet that four
                    images of it give and its cosine distance, warm and cold; in
                    candidates/s, beside eager PyTorch that builds one after another
  lti-train         Learning to Invert: 10 steps of 64 simulated gradients of LeNet,
                    hashed to 4,096, and an inverter of width 512; in examples/s
  ggl-cma           candidates of CMA-ES: the image that a generator makes of each, the
                    gradient that LeNet gives at it, GGL's distance; in candidates/s
  gifd-stage        GIFD's steps on the features behind a generator's first stage, with
                    projection; in steps/s
  sweep-64          a whole `kljax sweep` of 64 attacks (LeNet, DLG, 200 evaluations,
                    with and without lock): attacks/h, peak memory, compilations; and
                    seconds to the first finished chunk, with a cold and a warm cache
  sweep-4096        the same with 4,096 attacks, once
  demo-cold         a whole `kljax demo`, from Enter on, with a cold compilation cache;
                    in evaluations/s, its peer eager PyTorch's evaluations alone
  demo-warm         the same with a warm one
  dager-membership  DAGER's test of BERT's 30,522 tokens at 16 places, width 768, by
                    the span of a gradient of rank 128; in tests/s
Only when named, candidates against each other:
  convolution       the formulations of `kljax.models.convolution` and the layouts of
                    `kljax.parallel` for attacks; in evaluations/s
  layouts-NAME      the same for one of ig-resnet20, ig-convnet64, fedavg-inversion
  fl-layouts        the same for the two rounds of LeNet; in examples/s

Peers run in processes of their own (PyTorch's and XLA's thread pools disturb each
other), each at the best of its settings on this machine, found first; what they are is
said in attack_speed.py and federated_peer.py. On a GPU PyTorch's run there, too, and
entries of attacks have more victims (sweeps and federated ones are the same); on
another accelerator there are no peers unless named by --peers: they would run on its
CPU.

Every figure is the median over rounds; the range is beside it. Compilation is timed
apart. `matmul_peak_share` is the rate of floating-point operations inside matrix
products, counted in the traced program, over the rate of one large product on the same
devices. PyTorch comes with the extra `peers`; fedjax (`pip install fedjax==0.0.17
jax==0.10.2`) is best kept in an environment of its own.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import jax

# One host device per core, as the command line does; before JAX wakes up.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

import attack_speed
import demo_speed
import federated_peer
import federated_speed
import ginas_peer
import ginas_speed
import inversion_peer
import inversion_speed
import inverter_peer
import inverter_speed
import lamp_peer
import lamp_speed
import latent_peer
import latent_speed
import membership_peer
import membership_speed
import sweep_speed
import tiny
import trigger_peer
import trigger_speed
from table import show

from kljax.parallel import fastest_layout

NAMES = attack_speed.NAMES | federated_speed.NAMES | inversion_speed.NAMES
NAMES |= sweep_speed.NAMES | demo_speed.NAMES | trigger_speed.NAMES
NAMES |= ginas_speed.NAMES
NAMES |= lamp_speed.NAMES | membership_speed.NAMES | inverter_speed.NAMES
NAMES |= latent_speed.NAMES
PEERS = (*attack_speed.PEERS, *federated_peer.SETTINGS, "torch-batched")
PEERS += (membership_peer.PEER,)
# The peers of each entry that has any.
RIVALS = dict.fromkeys(("dlg-lenet-eval", "dlg-lenet-attack"), attack_speed.PEERS)
RIVALS |= dict.fromkeys(demo_speed.NAMES, (demo_speed.PEER,))
RIVALS |= dict.fromkeys(federated_speed.WORK, tuple(federated_peer.SETTINGS))
RIVALS |= dict.fromkeys(inversion_speed.RACES, inversion_peer.PEERS)
RIVALS |= dict.fromkeys(trigger_speed.NAMES, trigger_peer.PEERS)
RIVALS |= dict.fromkeys(ginas_speed.NAMES, ginas_peer.PEERS)
RIVALS |= dict.fromkeys(lamp_speed.NAMES, lamp_peer.PEERS)
RIVALS |= dict.fromkeys(inverter_speed.NAMES, inverter_peer.PEERS)
RIVALS |= dict.fromkeys(latent_speed.NAMES, latent_peer.PEERS)
RIVALS |= dict.fromkeys(membership_speed.NAMES, (membership_peer.PEER,))


def arguments():
    """Reads the command line; refuses peers whose library cannot be found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=[*RIVALS, "fl-scale", "sweep-64"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    chunk = fastest_layout("victims").chunk
    parser.add_argument("--chunk", type=int, default=chunk, help="of attacks by DLG")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--fedjax-python", default=sys.executable)
    parser.add_argument("--peers-from", type=Path, help="JSON of an earlier run")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        help="default: all on a CPU, PyTorch's on a GPU; none after it: none",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="sizes of seconds, which measure nothing"
    )
    options = parser.parse_args()
    if options.tiny:
        tiny.shrink()
    if options.peers is None:
        options.peers = {
            "cpu": PEERS,
            "gpu": [peer for peer in PEERS if peer.startswith("torch")],
        }.get(jax.default_backend(), ())
    rivals = {peer for name in options.only for peer in RIVALS.get(name, ())}
    for library in sorted({peer.split("-")[0] for peer in rivals & {*options.peers}}):
        here = getattr(options, f"{library}_python") == sys.executable
        if here and not importlib.util.find_spec(library):
            parser.error(
                f"{library} is not installed here: install it, name a Python that has "
                f"it with --{library}-python, or leave it out with --peers"
            )
    return options


def main():
    """Runs what was asked for; writes after each entry, so that a stop loses one."""
    options = arguments()
    entries = []
    with jax.default_matmul_precision("highest"):
        for name in options.only:
            for made in NAMES[name](options):
                entries.append(made)
                show(made)
                options.json.write_text(json.dumps(entries, indent=2) + "\n")
    print(f"{time.strftime('%Y-%m-%d')}: written {options.json}")


if __name__ == "__main__":
    main()
