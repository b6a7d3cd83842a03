"""A sweep of seconds, run in this process or another."""

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import tomllib

import pyarrow.parquet
from search_path import SEARCH_PATH
from tiny_studies import compiled_once

from kljax import metrics
from kljax.parallel import Layout
from kljax.studies.builder.study import build_study
from kljax.studies.store.manifest import open_study
from kljax.studies.sweeps import computing, expand, parse_sweep, running
from kljax.studies.sweeps.computing import compute_here

FILE = """
[fixed]
model = "dense"
image_size = 8
victims = 5
steps = 4
private_key_size = 16
optimiser = "adam"

[axes]
arm = ["none", "gaussian-noise=0.01", "gaussian-noise=0.1"]
seed = [0, 1]
step_size = [0.1, 0.01]
"""
PART = 8
LAYOUT = Layout("chunked", 4)


def sweep_of(**fixed):
    """Makes the sweep above, with other fixed values."""
    content = tomllib.loads(FILE)
    axes = fixed.pop("axes", {})
    options = fixed.pop("options", {})
    content["fixed"] |= fixed
    for name in fixed:
        content["axes"].pop(name, None)
    content["axes"] |= axes
    return parse_sweep(content | {"options": options})


@functools.cache
def _cache():
    """Makes a folder for compiled programs, which the same sweep asks for again."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


@contextlib.contextmanager
def quick():
    """Compiles quickly, and nothing twice, and scores without LPIPS."""
    available = metrics.lpips_available
    metrics.lpips_available = lambda: False
    try:
        with compiled_once(_cache()):
            yield
    finally:
        metrics.lpips_available = available


def run(folder, sweep=None, *, part=PART, **options):
    """Runs a sweep in this process."""
    sweep = sweep or sweep_of()
    options = {"layout": LAYOUT} | options
    with quick():
        manifest = open_study(folder, sweep, expand(sweep), part=part)
        return running.run_study(folder, manifest, **options)


def only(*numbers):
    """Makes what computes some of the missing chunks, by number, and no others."""

    def compute(tasks, *rest):
        return compute_here([tasks[number] for number in numbers], *rest)

    return compute


def seed_1_raises(monkeypatch, error):
    """Makes every cell of seed 1 fail, until it is undone."""

    def build(config, compiled=None):
        if config.seed == 1:
            raise error
        return build_study(config, compiled)

    monkeypatch.setattr(computing, "build_study", build)


RUN = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
from kljax import cli, metrics
metrics.lpips_available = lambda: False
sys.exit(cli.main(sys.argv[1:]))
"""


def command(*arguments, cache, devices=1):
    """Starts ``kljax ARGUMENTS`` as another process, as quick to compile as here."""
    environment = os.environ | {
        "PYTHONPATH": SEARCH_PATH,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def parts(folder):
    """Reads every part of a study, by its name."""
    return {
        path.name: pyarrow.parquet.ParquetFile(path).read()
        for path in sorted((folder / "parts").glob("*.parquet"))
    }
