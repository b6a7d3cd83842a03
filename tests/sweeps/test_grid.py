"""Sweep files: what they say, what they refuse, and the cells they stand for."""

import itertools
import json
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljax import data
from kljax.studies.config import LeakConfig
from kljax.studies.store.manifest import make_manifest
from kljax.studies.sweeps import (
    SweepOptions,
    expand,
    parse_sweep,
    read_sweep,
    sweep_to_dict,
)
from kljax.studies.sweeps.fields import DEFAULTS

FILE = """
[fixed]
model = "dense"
image_size = 8
init = 1

[axes]
arm = ["none", "keylock/known", "keylock/regress_gates"]
seed = [0, 7]

[axes.budget]
short = { steps = 100 }
"long one" = { steps = 1000, restarts = 4 }

[axes.lock_weights]
known = { threat = ["lock_weights=known"] }
hidden = { threat = ["lock_weights=hidden"] }

[[exclude]]
seed = 7
budget = "long one"

[[exclude]]
arm = ["none", "keylock/regress_gates"]
lock_weights = "known"

[options]
reconstructions = true
"""

# arm, seed, steps, restarts, lock_weights; written by hand from the file above.
CELLS = [
    ("none", 0, 100, 1, "hidden"),
    ("none", 0, 1000, 4, "hidden"),
    ("none", 7, 100, 1, "hidden"),
    ("keylock/known", 0, 100, 1, "known"),
    ("keylock/known", 0, 1000, 4, "known"),
    ("keylock/known", 7, 100, 1, "known"),
    ("keylock/regress_gates", 0, 100, 1, "hidden"),
    ("keylock/regress_gates", 0, 1000, 4, "hidden"),
    ("keylock/regress_gates", 7, 100, 1, "hidden"),
]


def grid(text):
    return expand(parse_sweep(tomllib.loads(text)))


def refused(text):
    """Reads a sweep that is refused, and gives the words."""
    with pytest.raises(ValueError) as error:
        grid(text)
    return str(error.value)


# --- expansion ---------------------------------------------------------------------


def test_a_file_becomes_the_cells_written_by_hand(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(FILE)
    sweep = read_sweep(path)
    assert sweep.options == SweepOptions(reconstructions=True)
    found = expand(sweep)
    expected = [
        LeakConfig(
            model="dense",
            image_size=8,
            init=1.0,
            arms=(arm,),
            seed=seed,
            steps=steps,
            restarts=restarts,
            threat=(f"lock_weights={weights}",),
            layout=DEFAULTS.layout,
        )
        for arm, seed, steps, restarts, weights in CELLS
    ]
    assert [cell.config for cell in found.cells] == expected
    assert [tuple(cell.point.values()) for cell in found.cells] == [
        (arm, str(seed), "short" if steps == 100 else "long one", weights)
        for arm, seed, steps, _, weights in CELLS
    ]
    assert list(found.cells[0].point) == ["arm", "seed", "budget", "lock_weights"]
    # By the first exclusion 3 x 2; by the second 2 x 3 x 1 of the others; keylock/known
    # at hidden lock weights, 3 of what is left.
    assert (found.excluded, found.illegal) == (6 + 6, 3)
    assert len({cell.id for cell in found.cells}) == len(CELLS)


def test_a_sweep_without_axes_is_one_cell():
    (only,) = grid('fixed = { arm = "none", sites = "all" }').cells
    assert only.point == {}
    assert only.config == LeakConfig(
        arms=("none",), sites=("all",), layout=DEFAULTS.layout
    )


def test_a_run_of_training_can_be_attacked_at_many_points():
    found = grid(
        """
        [fixed]
        from_run = "runs/fl"     # not looked at before the sweep is run
        upload = "update"
        local_steps = 4
        batch = 2
        [axes]
        round = [0, 10]
        client = [0, 2]
        arm = ["none", "keylock/known", "keylock/fixed_random"]
        client_optimiser = ["fresh"]
        threat = [[], ["lock_weights=known", "stats=visible"]]
        """
    )
    assert len(found.cells) == 24 and not found.illegal
    first, *_, last = found.cells
    assert (first.config.from_run, first.config.local_steps) == ("runs/fl", 4)
    assert (last.config.round, last.config.client) == (10, 2)
    assert last.point["threat"] == "lock_weights=known,stats=visible"
    assert first.point["threat"] == "default" and first.config.threat == ()


def test_facts_of_several_places_are_joined():
    found = grid(
        """
        [fixed]
        arm = "keylock/known"
        threat = "stats=visible"
        [axes.weights]
        known = { threat = ["lock_weights=known"] }
        hidden = { threat = ["lock_weights=hidden"] }
        [axes.gradients]
        shared = { threat = ["lock_grads=shared"] }
        """
    )
    (only,) = found.cells
    assert only.config.threat == (
        "stats=visible",
        "lock_weights=known",
        "lock_grads=shared",
    )
    assert found.illegal == 1


@pytest.mark.parametrize(
    ("facts", "legal"),
    [
        (["lock_weights=hidden"], False),
        (["lock_weights=known"], True),
        (["private_key=hidden"], False),
        ([], True),
    ],
)
def test_only_an_attacker_who_knows_too_little_is_left_out(facts, legal):
    fixed = {"arm": "keylock/known", "threat": facts}
    sweep = parse_sweep({"fixed": fixed, "axes": {"seed": [0, 1]}})
    if legal:
        assert len(expand(sweep).cells) == 2
    else:
        with pytest.raises(ValueError, match="no cell is left: 0 are excluded, 2 have"):
            expand(sweep)


def test_names_of_ones_own_stand_in_every_place():
    found = grid(
        """
        [fixed]
        image_size = 7
        classifier = "head"
        [axes]
        model = ["dense", "outside_package:Tiny"]
        data = ["digits", "outside_package:ramps"]
        arm = ["none", "outside_package:half_gradient"]
        attack = ["outside_package:reveal", "outside_package:measured_reveal"]
        optimiser = ["outside_package:exploding"]
        loss = ["optax:softmax_cross_entropy"]
        """
    )
    assert len(found.cells) == 16
    assert found.cells[-1].config.model == "outside_package:Tiny"
    assert found.cells[-1].config.attack == "outside_package:measured_reveal"


@pytest.mark.slow
def test_nothing_is_run_for_a_list_of_cells(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(FILE)
    script = (
        "import sys, jax; from kljax.studies import sweeps\n"
        f"assert len(sweeps.expand(sweeps.read_sweep({str(path)!r})).cells) == 9\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        # This is refused as soon as JAX has looked for a device.
        "jax.config.update('jax_num_cpu_devices', 2)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --- what is refused ---------------------------------------------------------------

ARM = '[fixed]\narm = "none"\n'
REFUSED = {
    # names of sections, fields and options
    "section": ("[axis]\nseed = [1]", "[axis]: no such section (did you mean 'axes'?)"),
    "fixed field": ("[fixed]\nstep = 3", "[fixed] step: no such field (did you mean"),
    "axis": (
        f'{ARM}[axes]\nattak = ["dlg"]',
        "[axes] attak: no such field (did you mean 'attack'?)",
    ),
    "field of a point": (
        f"{ARM}[axes.budget]\nlong = {{ stepss = 3 }}",
        "[axes.budget.long] stepss: no such field (did you mean 'steps'?)",
    ),
    "option": (
        f"{ARM}[options]\nreconstruction = true",
        "[options] reconstruction: no such option (did you mean 'reconstructions'?)",
    ),
    "condition": (
        f"{ARM}[axes]\nseed = [1]\n[[exclude]]\nsed = 1",
        "[[exclude]] 1, sed: no such axis or field (did you mean 'seed'?)",
    ),
    "arms": ('[fixed]\narms = ["none"]', "[fixed] arms: a cell has one arm: write arm"),
    "layout": ('[fixed]\nlayout = "vmap"', "[fixed] layout: it changes speed alone"),
    # names of things
    "attack": (
        f'{ARM}[axes]\nattack = ["dlg", "machting"]',
        "[axes] attack: unknown attack 'machting' (did you mean 'matching'?)",
    ),
    "model": (
        f'{ARM}model = "lennet"',
        "[fixed] model: unknown model 'lennet' (did you mean 'lenet'?)",
    ),
    "data": (
        f'{ARM}[axes.place]\nthere = {{ data = "fashion_mnis" }}',
        "[axes.place.there] data: unknown dataset 'fashion_mnis' (did you mean "
        "'fashion_mnist'?)",
    ),
    "defence": (
        '[axes]\narm = ["none", "gausian-noise=1"]',
        "[axes] arm: unknown defence 'gausian-noise' (did you mean 'gaussian-noise'?)",
    ),
    "secret strategy": (
        '[fixed]\narm = "keylock/knwon"',
        "[fixed] arm: arm 'keylock/knwon': unknown secret strategy 'knwon' (did you "
        "mean 'known'?)",
    ),
    "optimiser": (
        f'{ARM}optimiser = "adm"',
        "[fixed] optimiser: unknown optimiser 'adm' (did you mean 'adam'?)",
    ),
    "step size": (
        f'{ARM}optimiser = "lbfgs"\nstep_size = 1',
        "[fixed] optimiser: optimiser 'lbfgs' finds its own step sizes",
    ),
    "loss": (f'{ARM}loss = "cross"', "[fixed] loss: unknown loss 'cross'"),
    "labels": (
        f'{ARM}labels = "recoverd"',
        "[fixed] labels: unknown label strategy 'recoverd' (did you mean 'recovered'?)",
    ),
    "fact": (
        f'{ARM}[axes]\nthreat = ["lock_weight=known"]',
        "[axes] threat: unknown threat fact 'lock_weight' (did you mean "
        "'lock_weights'?)",
    ),
    "value of a fact": (
        f'{ARM}threat = "lock_weights=hiden"',
        "[fixed] threat: unknown value of threat fact lock_weights 'hiden' (did you "
        "mean 'hidden'?)",
    ),
    "choice": (
        f'{ARM}weights = "frsh"',
        "[fixed] weights: expected 'fresh' or 'shared', got 'frsh' (did you mean "
        "'fresh'?)",
    ),
    "module": (
        f'{ARM}attack = "no_module:attack"',
        "[fixed] attack: attack 'no_module:attack': cannot import module 'no_module'",
    ),
    "attribute": (
        f'{ARM}attack = "outside_package:attak"',
        "[fixed] attack: attack 'outside_package:attak': <module",
    ),
    "point of a condition": (
        f"{ARM}[axes]\nseed = [1, 2]\n[[exclude]]\nseed = [1, 3]",
        "[[exclude]] 1, seed: no cell is at '3'; there are 1, 2",
    ),
    "value of a condition": (
        f'{ARM}[axes]\nseed = [1, 2]\n[[exclude]]\nmodel = "lennet"\nseed = 1',
        "[[exclude]] 1, model: no cell is at 'lennet' (did you mean 'lenet'?)",
    ),
    # values
    "whole number": (
        f"{ARM}steps = 1.5",
        "[fixed] steps: expected an integer, got 1.5",
    ),
    "truth": (f"{ARM}chained = 1", "[fixed] chained: expected true or false, got 1"),
    "no truth": (
        f"{ARM}[axes]\nseed = [true]",
        "[axes] seed: expected an integer, got",
    ),
    "string": (f"{ARM}data = 3", "[fixed] data: expected a string, got 3"),
    "number": (f'{ARM}init = "1"', "[fixed] init: expected a number, got '1'"),
    "strings": (f"{ARM}sites = [1]", "[fixed] sites: expected a list of strings, got"),
    "range": (
        f"{ARM}[axes]\nsteps = [10, 0]",
        "[axes] steps: steps must be an integer >= 1, got 0",
    ),
    "not a number": (f"{ARM}init = nan", "[fixed] init: init must be a number >= 0"),
    "precision": (
        f'{ARM}precision = "lowest"',
        "[fixed] precision: precision='lowest'",
    ),
    "needs": (
        f"{ARM}[axes]\nround = [0, 3]",
        "[axes] round: round=3 needs from_run",
    ),
    "two wrong values": (
        f'{ARM}model = "lennet"\nsteps = 0',
        "[fixed] steps: steps must be an integer >= 1, got 0",
    ),
    "strength": (
        '[axes]\narm = ["none=3"]',
        "[axes] arm: arm 'none=3': none has no options",
    ),
    "control of a norm that is not there": (
        '[fixed]\nmodel = "outside_package:Tiny"\n[axes]\narm = ["none", "bn-control"]',
        "[fixed] model: arm 'bn-control' needs a network with an argument lockable",
    ),
    "sites that are not there": (
        '[fixed]\nmodel = "outside_package:Tiny"\n[axes]\narm = ["keylock/known"]',
        "[fixed] model: arm 'keylock/known' gates layers, and none are named",
    ),
    "fact without a value": (
        f'{ARM}threat = "stats"',
        "[fixed] threat: threat fact 'stats': write it as field=value",
    ),
    "fact twice": (
        f'{ARM}threat = "stats=visible"\n[axes]\nthreat = ["stats=hidden"]',
        "[fixed] threat and [axes] threat: threat fact 'stats' is stated twice",
    ),
    "fact that is an option": (
        f'{ARM}threat = "examples=2"',
        "[fixed] threat: threat fact 'examples': set the option examples instead",
    ),
    "upload that is another": (
        f'{ARM}threat = "upload=update"',
        "[fixed] threat: threat fact 'upload=update': what is seen of the victims of "
        "this study follows from its options upload and average_clients",
    ),
    "option of another type": (
        f"{ARM}[options]\nreconstructions = 1",
        "[options] reconstructions: expected true or false, got 1",
    ),
    # the form
    "no table": ("fixed = 3", "[fixed]: expected a table, got 3"),
    "one value": (
        f"{ARM}[axes]\nseed = 3",
        "[axes] seed: expected a list of values, or a table of named points, got 3",
    ),
    "no point": (f"{ARM}[axes]\nseed = []", "[axes] seed: an axis needs at least one"),
    "no named point": (f"{ARM}[axes.a]", "[axes] a: an axis needs at least one point"),
    "point twice": (f"{ARM}[axes]\nseed = [1, 1]", "[axes] seed: 1 is there twice"),
    "arm spelled twice": (
        '[axes]\narm = ["gaussian-noise=.1", "gaussian-noise=0.1"]',
        "[axes] arm: arms 'gaussian-noise=.1' and 'gaussian-noise=0.1' are the same",
    ),
    "snapshots of nothing": (
        '[fixed]\narm = "none"\nsnapshots = 4',
        "snapshots are kept beside reconstructions: write reconstructions = true",
    ),
    "point without fields": (
        f"{ARM}[axes.budget]\nlong = 3",
        "[axes.budget] long: a point sets fields, such as { steps = 100 }, got 3",
    ),
    "point without a name": (
        f'{ARM}[axes.budget]\n"" = {{ steps = 3 }}',
        "[axes.budget]: a point without a name",
    ),
    "axis name": (
        f'{ARM}[axes."my budget"]\nlong = {{ steps = 3 }}',
        "[axes.my budget]: the name of an axis has letters",
    ),
    "field twice": (
        f"{ARM}steps = 3\n[axes]\nsteps = [1, 2]",
        "[axes] steps: it sets steps, and so does [fixed]",
    ),
    "field in two axes": (
        f"{ARM}[axes]\nsteps = [1, 2]\n[axes.budget]\nlong = {{ steps = 3 }}",
        "[axes] budget: it sets steps, and so does axis steps",
    ),
    "one exclusion": (
        f"{ARM}[axes]\nseed = [1]\n[exclude]\nseed = 1",
        "[exclude]: write [[exclude]]",
    ),
    "exclusion of all": (f"{ARM}[[exclude]]", "[[exclude]] 1: it names no condition"),
    "exclusion of no value": (
        f"{ARM}[[exclude]]\nseed = []",
        "[[exclude]] 1, seed: an empty list",
    ),
    "exclusion by a table": (
        f"{ARM}[[exclude]]\nseed = {{ a = 1 }}",
        "[[exclude]] 1, seed: expected a value",
    ),
    "exclusion of nothing": (
        f"{ARM}[axes.budget]\na = {{ steps = 1 }}\nb = {{ steps = 2 }}\n"
        '[[exclude]]\nbudget = "a"\nsteps = 2',
        "[[exclude]] 1: it leaves out no cell",
    ),
    # the whole
    "no arm": ("[axes]\nseed = [1, 2]", "cell seed=1: no arm"),
    "no cell": (
        f"{ARM}[axes]\nseed = [1]\n[[exclude]]\nseed = 1",
        "no cell is left: 1 are excluded, 0 have an attacker who knows too little",
    ),
    "twins": (
        f"{ARM}[axes.budget]\nlong = {{ steps = 2000 }}\nusual = {{}}",
        "cell budget=long and cell budget=usual are the same",
    ),
    "twins by speed": (
        f'{ARM}[axes]\nconvolution = ["lax", "matmul"]',
        "cell convolution=lax and cell convolution=matmul are the same",
    ),
    "twins by order": (
        f'{ARM}[axes]\nthreat = [["stats=hidden", "labels=known"], '
        '["labels=known", "stats=hidden"]]',
        "cell threat=stats=hidden,labels=known and cell threat=labels=known,"
        "stats=hidden are the same",
    ),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named_with_its_place(text, words):
    assert refused(text).startswith(words)


def test_what_is_no_toml_is_named_with_its_file(tmp_path):
    path = tmp_path / "sweep.toml"
    for content in (b"[fixed\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is no TOML"):
            read_sweep(path)
    with pytest.raises(FileNotFoundError):
        read_sweep(tmp_path / "missing.toml")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(FILE, encoding="utf-8-sig")
    assert read_sweep(path) == parse_sweep(tomllib.loads(FILE))


@pytest.mark.parametrize(
    ("content", "words"),
    (
        (FILE.encode("utf-16"), "is no TOML: at byte 0 it is not UTF-8; save it as"),
        (b"[fixed]\nmodel = " + b"[" * 100_000, "is no TOML"),
        (b"[fixed]\nseed = " + b"1" * 5000, "is no TOML"),
        (b"[fixed]\nseed = 0x1" + b"0" * 5000, r"\[fixed\] seed: an integer of 20001"),
        (b"[axes]\ninit = [0x1" + b"0" * 5000 + b"]", "init: an integer of 20001"),
        (b"[[exclude]]\nseed = 0x1" + b"0" * 5000, "seed: an integer of 20001 bits"),
    ),
)
def test_files_without_end_are_refused_in_a_line(content, words, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_sweep(path)
    assert len(str(error.value)) < 500


def test_sweeps_of_absurd_sizes_are_refused_before_they_are_written_out():
    seeds = list(range(1000))
    axes = {"seed": seeds, "steps": [s + 1 for s in seeds], "arm": ["none"]}
    with pytest.raises(ValueError, match="1,000,000 points, and a sweep at most"):
        expand(parse_sweep({"axes": axes}))
    many = parse_sweep({"fixed": {"arm": "none", "victims": 2**31 - 1}})
    with pytest.raises(ValueError, match="2,147,483,647 victims in parts of 64"):
        make_manifest("many", many, expand(many))
    assert make_manifest("many", many, expand(many), 10_000)["part"] == 10_000


def test_a_set_without_code_is_looked_for_where_it_lies(monkeypatch):
    """TFDS lists what it has code for; other sets may have been prepared."""
    looked = []
    monkeypatch.setattr(
        data, "load", lambda name, **where: looked.append((name, where))
    )
    fixed = {"arm": "none", "data": "scraps", "data_dir": "some/where"}
    assert len(expand(parse_sweep({"fixed": fixed})).cells) == 1
    assert looked == [("scraps", {"data_dir": "some/where"})]
    expand(parse_sweep({"fixed": fixed | {"data": "mnist"}}))
    assert len(looked) == 1


# --- exclusions --------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "excluded"),
    [
        ('sites = "all"', 4),
        ('sites = ["all"]', 4),
        ('sites = ["all", ["norm1", "norm2"]]\nchained = false', 4),
        ('sites = "norm1,norm2"', 4),
        ("chained = true", 4),
        ("init = 1\nchained = [true]", 2),
        ("init = [1.0, 0.5]\nchained = true", 4),
        ('steps = 2000\nsites = "all"', 4),
        ('optimiser = "default"\nthreat = "default"\ninit = 0.5', 4),
    ],
)
def test_conditions_are_written_as_the_values_are(conditions, excluded):
    """Whatever is nowhere in the file is at its default."""
    text = """
        [fixed]
        arm = "keylock/regress_gates"
        [axes]
        sites = [["norm1", "norm2"], "all"]
        chained = [false, true]
        init = [0.5, 1]
        [[exclude]]
        """
    found = grid(text + conditions)
    assert (len(found.cells), found.excluded) == (8 - excluded, excluded)


AXES = {"seed": [0, 1, 2], "steps": [10, 20], "victims": [1, 2, 3, 4]}
EXCLUSIONS = st.dictionaries(
    st.sampled_from(sorted(AXES)), st.none(), min_size=1
).flatmap(
    lambda names: st.fixed_dictionaries(
        {
            name: st.one_of(
                st.sampled_from(AXES[name]),
                st.lists(st.sampled_from(AXES[name]), min_size=1, max_size=3),
            )
            for name in names
        }
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EXCLUSIONS, max_size=3))
def test_exclusions_leave_out_what_they_name_and_nothing_else(exclude):
    def is_left_out(values):
        return any(
            all(values[n] in (v if isinstance(v, list) else [v]) for n, v in e.items())
            for e in exclude
        )

    points = [
        dict(zip(AXES, values, strict=True))
        for values in itertools.product(*AXES.values())
    ]
    left = [point for point in points if not is_left_out(point)]
    content = {"fixed": {"arm": "none"}, "axes": AXES, "exclude": exclude}
    sweep = parse_sweep(content)
    if not left:
        with pytest.raises(ValueError, match="no cell is left: 24 are excluded"):
            expand(sweep)
        return
    found = expand(sweep)
    configs = [cell.config for cell in found.cells]
    assert [{n: getattr(c, n) for n in AXES} for c in configs] == left
    assert (found.excluded, found.illegal) == (len(points) - len(left), 0)
    # What a manifest keeps of the file is the same sweep.
    again = json.loads(json.dumps(sweep_to_dict(sweep)))
    assert parse_sweep(again) == sweep and expand(parse_sweep(again)) == found
