"""The mutation run, on a repository of three lines."""

import subprocess

import mutate
import mutations
import pytest

SUMS = b'''"""Sums - and * more."""
import jax


def total(values: list[int] = (), scale=2.0, flag=True, rng_a=None):
    if not values:
        raise ValueError(f"{len(values) + 1} values - too few")
    check(values, scale)
    rng_b = jax.random.fold_in(rng_a, 3)
    kept = jax.lax.stop_gradient(values[0]) ** 2 - jax.numpy.where(flag, values, rng_b)
    return kept if scale <= 1 and flag else -kept // 4 + scale
'''
CHANGES = {
    ("2.0", "4.0"),
    ("True", "False"),
    ("not values", "values"),
    ("not values", "(not (not values))"),
    ("check(values, scale)", "pass"),
    ("values, scale", "scale, values"),
    ("jax.random.fold_in(rng_a, 3)", "rng_a"),
    ("rng_b", "rng_a"),
    ("rng_a, 3", "3, rng_a"),
    ("3", "0"),
    ("3", "4"),
    ("jax.lax.stop_gradient(values[0])", "values[0]"),
    ("0", "1"),
    ("**", "*"),
    ("2", "3"),
    ("-", "+"),
    ("jax.numpy.where(flag, values, rng_b)", "values"),
    ("jax.numpy.where(flag, values, rng_b)", "rng_b"),
    ("flag, values", "values, flag"),
    ("scale <= 1 and flag", "(not (scale <= 1 and flag))"),
    ("<=", "<"),
    ("1", "2"),
    ("and", "or"),
    ("-kept", "kept"),
    ("//", "/"),
    ("4", "5"),
    ("+", "-"),
}


def test_every_kind_of_change_and_no_other():
    found = mutations.mutations_of("kljax/sums.py", SUMS)
    assert {(m.before, m.after) for m in found} == CHANGES
    for mutation in found:
        changed = bytearray(SUMS)
        changed[mutation.start : mutation.end] = mutation.after.encode()
        compile(bytes(changed), "sums", "exec")
        lines = zip(SUMS.splitlines(), changed.splitlines(), strict=True)
        unlike = [n for n, (old, new) in enumerate(lines, 1) if old != new]
        assert unlike == [mutation.line]
    assert len({mutation.id for mutation in found}) == len(found)


def test_a_mutation_is_the_same_wherever_its_line_moves():
    def ids(source):
        found = mutations.mutations_of("kljax/sums.py", source)
        assert len({mutation.id for mutation in found}) == len(found)
        return [mutation.id for mutation in found]

    moved = SUMS.replace(b"import jax", b"import jax\n\nLEAST = 'none'")
    assert ids(SUMS) == ids(moved)
    twice = ids(b"def f(a):\n    a = a + 1\n    a = a + 1\n    return a\n")
    assert len(twice) == 4


def test_a_larger_sample_begins_with_a_smaller_one():
    every = mutations.mutations_of("kljax/sums.py", SUMS)
    few, more = (mutations.sample(every, count, 0) for count in (4, 9))
    assert more[:4] == few and len(set(more)) == 9
    assert mutations.sample(every, 4, 0) == few != mutations.sample(every, 4, 1)


@pytest.mark.slow
def test_the_tests_of_a_module_come_first():
    ranked = mutate.tests_by_module(mutate.ROOT)
    first = {
        "kljax/metrics/intervals.py": "tests/metrics/test_intervals.py",
        "kljax/attacks/objectives.py": "tests/attacks/test_objectives.py",
        "kljax/defences/noise.py": "tests/defences/test_defences.py",
        "kljax/federated/clients/gradient.py": "tests/federated/test_clients.py",
        "kljax/federated/rounds.py": "tests/federated/test_rounds.py",
    }
    assert {module: ranked[module][0] for module in first} == first
    paths = {m.path for m in mutations.list_mutations(mutate.ROOT, mutate.MODULES)}
    # Names of a package are its modules', and so are the tests that use them.
    assert all(ranked[path] for path in paths if "__init__" not in path)


@pytest.fixture
def repository(tmp_path):
    """Two modules; the tests of one do not see by what is multiplied."""
    files = {
        "kljax/__init__.py": "",
        "kljax/sums.py": "def total(a, b):\n    return a + b * 1\n",
        "kljax/alone.py": "def one():\n    return 1\n",
        "tests/test_sums.py": (
            "from kljax.sums import total\n\n"
            "def test_total():\n    assert total(1, 2) == 3\n"
        ),
        "tests/test_late.py": "import time\ndef test_late():\n    time.sleep(60)\n",
    }
    for name, text in files.items():
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "r", check=True)
    return tmp_path / "r"


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(repository, tmp_path, capsys):
    before = {p: p.read_bytes() for p in repository.rglob("*.py")}
    folder = tmp_path / "results"
    mutate.main([str(folder), "--count", "1", "--modules", "kljax"], repository)
    first = (folder / "results.jsonl").read_text()
    with open(folder / "results.jsonl", "a") as file:
        file.write('{"id": "cut')
    mutate.main([str(folder), "--count", "0", "--modules", "kljax"], repository)
    assert (folder / "results.jsonl").read_text().startswith(first)
    assert {p: p.read_bytes() for p in repository.rglob("*.py")} == before
    results = mutate.read_results(folder).values()
    found = {r["text"].partition(" in `")[0]: r["result"] for r in results}
    assert found == {
        "kljax/alone.py:2: 1 -> 2": "untested",
        "kljax/sums.py:2: + -> -": "killed",
        "kljax/sums.py:2: * -> /": "survived",
        "kljax/sums.py:2: 1 -> 2": "killed",
    }
    assert "2 of 4 killed, 50%" in capsys.readouterr().out
    # A test that sees it is asked again, of what was not killed alone.
    (repository / "tests" / "test_sums.py").write_text(
        "from kljax.sums import total\ndef test_total():\n    assert total(1, 2) == 3\n"
        "    assert isinstance(total(1, 2), int)\n"
    )
    again = [str(folder), "--count", "0", "--again", "--modules", "kljax"]
    mutate.main(again, repository)
    assert "3 of 4 killed, 75%" in capsys.readouterr().out


@pytest.mark.slow
def test_tests_that_fail_anyway_or_are_late_kill_nothing(repository):
    wrong = repository / "tests" / "test_sums.py"
    wrong.write_text(wrong.read_text().replace("== 3", "== 4"))
    judge = mutate.Judge(repository, limit=60)
    (mutation, *_) = mutations.list_mutations(repository, ["kljax/sums.py"])
    assert judge.judge(mutation)["result"] == "broken"
    late = mutate.run_tests(repository, ["tests/test_late.py"], limit=1)
    assert late.result == "late" and late.seconds < 30


def test_cheap_test_files_come_before_dear_ones(repository):
    judge = mutate.Judge(repository, limit=60)
    for file, seconds in (("dear", 0.4), ("cheap", 0.05)):
        (repository / f"tests/test_{file}.py").write_text(
            f"import time\ndef test():\n    time.sleep({seconds})\n"
        )
    files = [f"tests/test_{file}.py" for file in ("dear", "new", "cheap")]
    seen = mutate.run_tests(repository, [files[0], files[2]], limit=60).of_files
    assert seen[files[0]] > 0.3 > seen[files[2]] > 0.03
    judge.of_files = seen
    assert judge.cheapest_first(files) == [files[1], files[2], files[0]]


def test_what_cannot_change_a_result_is_no_mutation():
    source = b"a = max(b, c)\nd = list(zip(b, c, strict=True))\n"
    found = mutations.mutations_of("kljax/none.py", source)
    assert [(m.line, m.before, m.after) for m in found] == [(2, "b, c", "c, b")]
