"""What gpu.sh has measured: one table and one file.

    python experiments/gpu_table.py DIR [--begin [--torch-python PYTHON] [--tiny]]

Without --begin it prints the table of the entries in DIR, what is missing and why, and
writes DIR/gpu.json. With it, before any entry, it writes DIR/machine.json (device,
versions, why peers are left out) and DIR/peers, their names.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

# Entries about chunks, forms and the cost model have tables of their own, in logs.
TABLES = ("chunks", "chunks-traced", "convolution-maps", "cost")
OTHERS = (*TABLES, "machine", "gpu")
HEADER = ("entry", "ours", "unit", "best peer", "ours / peer", "apart", "device")


def begin(folder, torch_python, tiny):
    """Writes what is known before anything is measured."""
    import jax
    from timing.catalogue import PEERS

    device = jax.devices()[0]
    if device.platform != "gpu" and not tiny:
        sys.exit(
            f"gpu.sh: JAX sees {device.platform} and no GPU: install jax[cuda13], or "
            "try the commands with --tiny"
        )
    reason = why_no_torch(torch_python, device.platform == "gpu")
    if tiny:
        reason = "--tiny: their chunks need more victims"
    peers = [] if reason else [name for name in PEERS if name.startswith("torch")]
    found = {
        "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "tiny": tiny,
        "peers_left_out": reason,
    }
    found |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    (folder / "machine.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / "peers").write_text(" ".join(peers))
    print(json.dumps(found))


def why_no_torch(python, gpu):
    """Says why PyTorch's peers cannot run; None if they can."""
    seen = "torch.cuda.is_available()" if gpu else "True"
    asked = [python, "-c", f"import torch; print({seen})"]
    try:
        made = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python}: {error}"
    if made.returncode:
        return f"{python}: {made.stderr.strip().splitlines()[-1]}"
    if made.stdout.split()[-1] != "True":
        return f"{python} has a PyTorch that sees no GPU"
    return None


def summarise(folder):
    """Prints the table; writes all entries to one file."""
    machine = json.loads((folder / "machine.json").read_text())
    entries, lines = [], []
    for path in sorted(folder.glob("*.json")):
        if path.stem in OTHERS:
            continue
        for made in json.loads(path.read_text()):
            entries.append(made | {"file": path.stem})
            lines.append(line(made))
    print(tabulate(lines, HEADER, tablefmt="github", disable_numparse=True))
    others = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in TABLES
        if (folder / f"{name}.json").exists()
    }
    missing = {
        path.stem: path.read_text().strip() for path in sorted(folder.glob("*.failed"))
    }
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    if machine["peers_left_out"]:
        print(f"peers left out: {machine['peers_left_out']}")
    whole = {"machine": machine, "entries": entries, "missing": missing} | others
    part = folder / ".gpu.json.part"
    part.write_text(json.dumps(whole, indent=2) + "\n")
    part.rename(folder / "gpu.json")
    print(f"written {folder / 'gpu.json'}")


def line(made):
    """Formats an entry: the peer that comes nearest, and what says that it is right."""
    settings = made["settings"]
    checks = [
        *settings.get("largest_difference_to_peer", {}).values(),
        *settings.get("agreement", {}).values(),
        *[settings[k] for k in ("difference_to_slow_form",) if k in settings],
    ]
    best = min(made["ratios"], key=made["ratios"].get, default=None)
    return [
        made["name"],
        f"{made['ours']['median']:.4g}",
        made["unit"],
        "" if best is None else f"{best}: {made['peers'][best]['median']:.4g}",
        "" if best is None else f"{made['ratios'][best]:.2f}",
        f"{max(checks):.0e}" if checks else "",
        made["device"].split(",")[0],
    ]


def main():
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--begin", action="store_true")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.begin:
        begin(options.folder, options.torch_python, options.tiny)
    else:
        summarise(options.folder)


if __name__ == "__main__":
    main()
