"""The persistent cache of compilations."""

import os
import subprocess
import sys

import pytest

from kljax.parallel import compilation

SCRIPT = """
import jax, jax.numpy as jnp
from kljax.parallel.compilation import use_cache
print(use_cache())
jax.jit(lambda x: jnp.linalg.inv(x @ x.T + jnp.eye(20)))(jnp.ones((20, 20)))
"""


def run(**environment):
    kept = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_the_cache_is_the_users_or_the_one_that_jax_was_told(tmp_path):
    said = run(XDG_CACHE_HOME=str(tmp_path / "home"))
    assert said == str(tmp_path / "home" / "kljax")
    assert any((tmp_path / "home" / "kljax").iterdir())
    said = run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "told"))
    assert said == str(tmp_path / "told")
    assert any((tmp_path / "told").iterdir())


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"


def test_seconds_of_the_last_time_are_remembered(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(compilation, "MOST", 2)
    assert compilation.seconds_of("a", folder) is None
    for program, seconds in (("a", 1.0), ("b", 2.04), ("a", 3.0), ("c", 4.0)):
        compilation.remember_seconds(program, folder, seconds)
    found = [compilation.seconds_of(program, folder) for program in "abc"]
    assert found == [3.0, None, 4.0]


def test_nothing_depends_on_remembered_seconds(tmp_path):
    compilation.remember_seconds("a", None, 1.0)
    assert compilation.seconds_of("a", None) is None
    (tmp_path / compilation.SECONDS).write_text('{"a": ')
    assert compilation.seconds_of("a", tmp_path) is None
    compilation.remember_seconds("a", tmp_path, 1.0)
    assert compilation.seconds_of("a", tmp_path) == 1.0
    (tmp_path / "file").write_text("")
    compilation.remember_seconds("a", tmp_path / "file", 1.0)
    assert compilation.seconds_of("a", tmp_path / "file") is None
