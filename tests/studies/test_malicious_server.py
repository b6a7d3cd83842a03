"""Studies of a server who modifies the network: staged, scored, swept, refused."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_studies import quick_compilation, scored, sites_of, study, tiny

from kljax import metrics
from kljax.attacks.closed_form import expected_singletons
from kljax.attacks.presets import PRESETS, Preset
from kljax.defences.arms import parse_arm
from kljax.parallel import Layout
from kljax.studies import leak_report, leak_summary, leakage, training
from kljax.studies.builder import study as builder_study
from kljax.studies.builder.study import build_study
from kljax.studies.builder.threat_model import declare_threat
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.sweeps.legality import is_legal
from kljax.threat import IllegalThreat

EXAMPLES = 8
IMPRINT = {"attack": "imprint", "examples": EXAMPLES, "optimiser": None}
ARMS = ("none", "keylock/unit")


@pytest.fixture(scope="module")
def finished():
    """Six batches of digits under two arms."""
    result = study(**IMPRINT, arms=ARMS, victims=6)
    return result, scored(result)


def rows_of(rows, arm):
    return [row for row in rows if row["arm"] == arm]


def test_a_lock_is_no_matter_to_it(finished):
    result, rows = finished
    locked, plain = (rows_of(rows, arm) for arm in reversed(ARMS))
    for mine in (locked, plain):
        # Of 48 images: four standard deviations of a binomial share.
        share = expected_singletons(EXAMPLES, 64) / EXAMPLES
        found = np.mean([row["bins_read"] for row in mine]) / EXAMPLES
        assert found > share - 4 * np.sqrt(share * (1 - share) / 48)
        for n in range(6):
            upload = [row for row in mine if row["upload"] == n]
            assert (
                len(upload) == EXAMPLES and len({r["bins_read"] for r in upload}) == 1
            )
            found = sum(row["psnr"] > 47.08 for row in upload)
            assert found <= upload[0]["bins_read"]
        whole = [row for row in mine if row["bins_read"] == EXAMPLES]
        assert whole
        assert all(r["psnr"] > 47.08 and r["outcome"] == "recovered" for r in whole)
    assert [r["bins_read"] for r in locked] == [r["bins_read"] for r in plain]
    assert [r["victim"] for r in locked] == [r["victim"] for r in plain]


def test_images_that_lie_open_are_recovered_whatever_becomes_of_the_others():
    """Batches of 32 in 64 bins: by its mean no batch would pass for recovered."""
    result = study(**IMPRINT | {"examples": 32}, victims=2)
    rows = scored(result)
    mine = rows_of(rows, "none")
    summary = leak_summary.summarise(result, rows)
    arm = summary["arms"]["none"]
    assert arm["ssim"] < summary["floors"]["class_mean"]["ssim"]
    open_ = [row for row in mine if row["psnr"] > 47.08]
    assert len(open_) > 20 and all(row["outcome"] == "recovered" for row in open_)
    counts = [
        sum(row["outcome"] == "recovered" for row in mine if row["upload"] == n)
        for n in range(2)
    ]
    assert arm["recovered_of_uploads"] == counts and min(counts) >= 10
    assert arm["recovered_rate"] == pytest.approx(sum(counts) / 64)
    (line,) = leak_report.upload_lines(summary)
    assert f"none: recovered {min(counts)} to {max(counts)} (mean" in line
    assert "of the 32 images of an upload" in line and "lower bound" in line
    assert line in leak_report.markdown(result, summary)


def test_a_study_says_that_the_server_is_malicious(finished):
    result, rows = finished
    (knows, *_) = leak_report.threat_lines(result)
    assert "server=malicious" in knows and f"examples={EXAMPLES}" in knows
    summary = leak_summary.summarise(result, rows)
    header, lines = leak_report.table(summary)
    assert "bins read" in header
    assert summary["arms"]["none"]["bins_read"] > EXAMPLES / 2
    honest = study(victims=1)
    assert "server=honest" in leak_report.threat_lines(honest)[0]
    header, _ = leak_report.table(leak_summary.summarise(honest, scored(honest)))
    assert "bins read" not in header


def test_all_arms_get_the_modified_network_and_no_public_image_is_a_victims(
    monkeypatch,
):
    seen = []
    preset = PRESETS["imprint"]

    def survey(images):
        seen.append(images)
        return preset.inserts.survey(images)

    spied = preset._replace(inserts=preset.inserts._replace(survey=survey))
    monkeypatch.setitem(PRESETS, "imprint", spied)
    prepared = build_study(tiny(**IMPRINT, arms=ARMS, victims=50))
    for job in prepared.attacks:
        params, _ = jax.eval_shape(job.setting.task.model.init, jax.random.key(0))
        assert params["imprint/kernel"].shape == (192, 64)
        assert "fc/kernel" in params and job.setting.task.chain == ()
    (public,) = seen
    assert len(public) == 1797 // 2
    victims = prepared.victims.inputs.reshape(400, -1)
    known = {image.tobytes() for image in public.reshape(len(public), -1)}
    twins = sum(image.tobytes() in known for image in victims)
    assert twins == 0


def test_too_many_victims_leave_nothing_public():
    with pytest.raises(ValueError, match="898 public images.*leave 797 of 1797"):
        build_study(tiny(**(IMPRINT | {"examples": 1}), victims=1000))


@pytest.mark.parametrize("attack", ("imprint", "imprint-one-shot"))
def test_an_honest_server_has_no_imprint(attack):
    config = tiny(**(IMPRINT | {"attack": attack}))
    assert is_legal(config)
    honest = dataclasses.replace(config, threat=("server=honest",))
    assert not is_legal(honest)
    with pytest.raises(IllegalThreat, match="needs server='malicious'.*'honest'"):
        build_study(honest)


def test_a_preset_that_inserts_needs_a_malicious_server_whatever_it_says():
    arm = parse_arm("keylock/unit", sites_of("layers/0"), {})
    forgetful = Preset(None, "recovered", None, inserts=PRESETS["imprint"].inserts)
    with pytest.raises(IllegalThreat, match="needs server='malicious'"):
        declare_threat(tiny(), arm, forgetful)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("keylock/known",)}, "secret='known'"),
        ({"arms": ("keylock/regress_gates",)}, "secret='regress_gates'"),
        ({"features": 0.1}, "imprint has no objective that features=0.1"),
    ],
)
def test_what_says_nothing_of_an_imprint_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(tiny(**(IMPRINT | changes)))


# --- other seeds share the compilation --------------------------------------------


def test_a_study_prepared_again_measures_its_own_public_images():
    first = build_study(tiny(**IMPRINT))
    config = tiny(**IMPRINT, seed=3)
    again, anew = build_study(config, first), build_study(config)
    inputs = [found.attacks[0].inputs for found in (again, anew)]
    jax.tree.map(np.testing.assert_array_equal, *inputs)
    old = first.survey
    assert not np.array_equal(again.survey, old)
    with quick_compilation():
        source = jax.tree.map(lambda x: x[0], inputs[0][0])
        draw = again.attacks[0].client.draws[0]
        params, _ = jax.jit(draw)(source)
    np.testing.assert_allclose(params["imprint/bias"], -again.survey, rtol=1e-6)


# --- a client of a run -------------------------------------------------------------

RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=60,
    test_examples=20,
    public_examples=30,
    clients=2,
    rounds=1,
    batch=4,
    private_key_size=16,
    keep_rounds=(0, 1),
    arms=("keylock",),
    layout=Layout("loop"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "run"
    with quick_compilation():
        training.train(RUN, place)
    return str(place)


def of_run(folder, **changes):
    options = {
        "from_run": folder,
        "round": 1,
        "victims": 2,
        "arms": ("keylock/unit",),
        "layout": Layout("chunked", 2),
    }
    return LeakConfig(**(IMPRINT | options | changes))


@pytest.mark.slow
def test_a_trained_network_is_modified_too(folder, monkeypatch):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    config = of_run(folder)
    with quick_compilation():
        result = leakage.leak(config)
    rows = rows_of(scored(result), "keylock/unit")
    assert all(row["bins_read"] >= 4 for row in rows)
    found = result.arms[0].attacked.reconstruction
    single = np.asarray(found.info["bins"]) >= 0
    errors = [
        np.min(np.mean((images[:, None] - truths[None]) ** 2, axis=(2, 3, 4)), axis=1)
        for images, truths in zip(found.inputs, result.victims.inputs, strict=True)
    ]
    assert np.median(np.stack(errors)[single]) < 1e-8


def test_what_a_run_cannot_give_is_refused(folder, monkeypatch):
    update = {"upload": "update", "victims": 1, "local_steps": 2, "examples": 1}
    with pytest.raises(ValueError, match="attack upload='gradient'"):
        build_study(of_run(folder, **update))
    capture = builder_study.capture

    def without_public(config):
        found = capture(config)
        return found._replace(setup=found.setup._replace(public=None))

    monkeypatch.setattr(builder_study, "capture", without_public)
    with pytest.raises(ValueError, match="has none .public_examples of kljax train"):
        build_study(of_run(folder))
