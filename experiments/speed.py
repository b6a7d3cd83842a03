"""Measures kljax beside its strongest peers, round by round in turns.

    python experiments/speed.py --json FILE [--only NAME ...] [--rounds 5]
        [--torch-python PYTHON] [--fedjax-python PYTHON] [--peers [NAME ...]]
        [--peers-from FILE]

`python experiments/speed.py --help` lists the names; each is an entry of
`timing.entries`.

Peers run in processes of their own (PyTorch's and XLA's thread pools disturb each
other), each at the best of its settings on this machine, found first; what they are is
said in timing/entries and timing/peers. On a GPU PyTorch's run there, too, and entries
of attacks have more victims (sweeps and federated ones are the same); on another
accelerator there are no peers unless named by --peers: they would run on its CPU.

Every figure is the median over rounds; the range is beside it. Compilation is timed
apart. `matmul_peak_share` is the rate of floating-point operations inside matrix
products, counted in the traced program, over the rate of one large product on the same
devices. PyTorch comes with the extra `peers`; fedjax (`pip install fedjax==0.0.17
jax==0.10.2`) is best kept in an environment of its own. Results: experiments/speed.md.
"""

import argparse
import importlib.util
import json
import sys
import textwrap
import time
from pathlib import Path

import jax
from timing.catalogue import ENTRIES, PEERS
from timing.table import show

from kljax.parallel import fastest_layout, use_all_cores


def arguments():
    """Reads the command line; refuses peers whose library cannot be found."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=names(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=ENTRIES,
        metavar="NAME",
        default=[name for name, entry in ENTRIES.items() if not entry.if_named],
        help="default: all but those that are run only when named",
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
    if options.peers is None:
        options.peers = {
            "cpu": PEERS,
            "gpu": [peer for peer in PEERS if peer.startswith("torch")],
        }.get(jax.default_backend(), ())
    rivals = {peer for name in options.only for peer in ENTRIES[name].peers}
    for library in sorted({peer.split("-")[0] for peer in rivals & {*options.peers}}):
        here = getattr(options, f"{library}_python") == sys.executable
        if here and not importlib.util.find_spec(library):
            parser.error(
                f"{library} is not installed here: install it, name a Python that has "
                f"it with --{library}-python, or leave it out with --peers"
            )
    return options


def names():
    """Lists the entries, and what each times."""
    usual, rest = [], []
    for name, entry in ENTRIES.items():
        indent = " " * 20
        text = textwrap.fill(
            entry.sentence, 88, initial_indent=indent, subsequent_indent=indent
        )
        head = f"  {name:17} "
        # A long name has a line of its own.
        text = head + text.lstrip() if len(head) == len(indent) else f"{head}\n{text}"
        (rest if entry.if_named else usual).append(text)
    return "\n".join(["Names:", *usual, "Only when named:", *rest])


def main():
    """Runs what was asked for; writes after each entry, so that a stop loses one."""
    use_all_cores()
    options = arguments()
    lines = []
    with jax.default_matmul_precision("highest"):
        for name in options.only:
            for made in ENTRIES[name].lines(options):
                lines.append(made)
                show(made)
                options.json.write_text(json.dumps(lines, indent=2) + "\n")
    print(f"{time.strftime('%Y-%m-%d')}: written {options.json}")


if __name__ == "__main__":
    main()
