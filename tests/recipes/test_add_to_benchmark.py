"""Recipe: an attack and a defence of one's own enter the benchmark, a line each."""

import benchmark
import pytest
from tiny_studies import compiled_once

from kljax import metrics
from kljax.studies import store
from kljax.studies.sweeps.running import sweep

OWN = """
    import jax
    from kljax.attacks import adam
    from kljax.attacks.presets.plain import matching
    from kljax.defences import Defence

    def attack(setting, optimiser=None, *, steps, restarts):
        return matching(setting, adam(0.1), steps=steps, restarts=restarts)

    def weaker(factor):
        def times(grads):
            return jax.tree.map(lambda g: factor * g, grads)
        return Defence(
            release=lambda rng, state, grads, context: (times(grads), state),
            simulate=lambda grads, sent, earlier, private: times(grads),
        )
"""
# The benchmark's file in small, with a line more in each axis.
FILE = """
[fixed]
model = "dense"
data = "digits"
image_size = 8
victims = 3
steps = 4
optimiser = "adam"

[axes.observed]
once = { observations = 1 }
twice = { observations = 2 }

[axes.attack]
matching = { attack = "matching" }
mine = { attack = "mine:attack" }

[axes]
arm = ["none", "mine:weaker=0.5/unaware", "mine:weaker=0.5"]
"""


@pytest.mark.slow
def test_they_are_ranked_and_a_killed_benchmark_ends_as_one_that_was_not(
    mine, monkeypatch, tmp_path
):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    mine(OWN)
    file = tmp_path / "tiny.toml"
    file.write_text(FILE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with compiled_once(tmp_path / "cache"):
        sweep(file, whole / "tiny")
        chunks = []

        def kill_at_the_third(finished):
            chunks.append(finished)
            if len(chunks) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sweep(file, killed / "tiny", on_chunk=kill_at_the_third)
    midway = benchmark.make_page(file, killed)
    assert "not run" in midway
    with compiled_once(tmp_path / "cache"):
        sweep(file, killed / "tiny")

    def rows(folder):
        found = store.read(folder / "tiny").rows
        return found.sort_by([("cell", "ascending"), ("arm", "ascending")]).to_pylist()

    assert str(rows(whole)) == str(rows(killed))  # NaN, too
    page = benchmark.make_page(file, whole)
    assert page == benchmark.make_page(file, killed)
    lines = page.splitlines()
    for words in ("attacker unaware", "attacker adaptive"):
        first = next(
            n
            for n, line in enumerate(lines)
            if line.startswith("## Defences") and words in line and "once" in line
        )
        ranked = "\n".join(lines[first : first + 8])
        assert "mine:weaker=0.5" in ranked and "| none" in ranked
    attacks = page[page.index("## Attacks") :]
    assert "| mine " in attacks and "| matching " in attacks
    assert "Cells with rows, by axis" in page and "mine 6 of 6" in page
    assert "Are the same victims recovered at every state (observed)?" in page
