"""The audit of an upload that PyTorch wrote, and what an audit refuses.

``torch_upload/`` is written by ``experiments/audit/torch_upload.py``, which imports no
kljax.
"""

import json
import pathlib
import types

import numpy as np
import optax
import pytest
from safetensors.numpy import save_file
from tiny_studies import quick_compilation

import kljax
from kljax import cli
from kljax.attacks import Protocol
from kljax.core.inputs import images_of
from kljax.models.flattening import flattened_inputs
from kljax.studies.audit import AuditConfig, audit
from kljax.studies.audit.candidates import (
    Found,
    Misfit,
    closed_forms,
    pair_labels,
)
from kljax.studies.audit.findings import Finding, find_without_search
from kljax.studies.audit.page import page_of
from kljax.studies.audit.tensors import match_tensors
from kljax.studies.audit.verdict import judge
from kljax.studies.inversion import build_model, make_setting, make_view

UPLOAD = pathlib.Path(__file__).parent / "torch_upload"
SHAPE, LABEL = (8, 8, 3), 3


def read(name):
    return dict(np.load(UPLOAD / f"{name}.npz"))


def config(**changes):
    files = {"upload_file": UPLOAD / "gradient.npz", "weights": UPLOAD / "weights.npz"}
    small = {"model": "lenet", "image_size": 8, "starts": 1, "steps": 2, "wrong": 2}
    return AuditConfig(**files | small | changes)


def written(folder, tensors, name="upload.npz"):
    np.savez(folder / name, **tensors)
    return folder / name


# --- which tensor is which ----------------------------------------------------------


@pytest.fixture(scope="module")
def lenet():
    model, classifier, _ = build_model("lenet", 10, SHAPE)
    setting = make_setting(
        model,
        images_of(SHAPE),
        classifier,
        examples=1,
        known_labels=False,
        attack="matching",
        loss="cross_entropy",
        protocol=None,
    )
    wanted = {name: leaf.shape for name, leaf in setting.task.shapes()[0].items()}
    return setting, wanted, flattened_inputs(model, SHAPE)


def matched(tensors, lenet, **options):
    _, wanted, flattened = lenet
    return match_tensors(tensors, wanted, what="file", flattened=flattened, **options)


def in_our_layout(name, lenet):
    return {path: match.array for path, match in matched(read(name), lenet).items()}


def test_pytorch_names_and_axes_are_understood(lenet):
    sent = read("gradient")
    found = matched(sent, lenet)
    assert {match.how for match in found.values()} == {"name"}
    kernel = found["conv2/kernel"].array
    assert kernel[1, 2, 3, 4] == sent["conv2.weight"][4, 3, 1, 2]
    # Channels first in PyTorch's row of a picture [2, 2, 12], last in Flax's.
    row = (1 * 2 + 0) * 12 + 5
    assert found["fc/kernel"].array[row, 7] == sent["fc.weight"][7, 5 * 4 + 2 * 1 + 0]
    assert "rows from channels, height, width (12, 2, 2)" in found["fc/kernel"].moved


def test_flax_names_are_understood_and_nothing_is_moved(lenet):
    ours = {
        name: match.array for name, match in matched(read("gradient"), lenet).items()
    }
    for sep in "/.":
        again = matched(
            {f"params.{n}".replace("/", sep): x for n, x in ours.items()}, lenet
        )
        assert all(not match.moved for match in again.values())
        for name, match in again.items():
            np.testing.assert_array_equal(match.array, ours[name])


def test_what_names_do_not_tell_shapes_do_where_they_are_unique(lenet):
    sent = read("gradient")
    renamed = dict(sent)
    renamed["head.weight"] = renamed.pop("fc.weight")
    found = matched(renamed, lenet)["fc/kernel"]
    assert (found.source, found.how) == ("head.weight", "shape")
    for other in ("conv2", "conv3"):
        renamed[f"body.{other[-1]}.weight"] = renamed.pop(f"{other}.weight")
    with pytest.raises(ValueError, match="conv2/kernel, conv3/kernel.*--map"):
        matched(renamed, lenet)
    given = {"conv2/kernel": "body.2.weight"}
    assert matched(renamed, lenet, given=given)["conv3/kernel"].how == "shape"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv2.bias"), "no tensor for 'conv2/bias'"),
        (lambda t: t.update(more=np.ones(3)), "more is no tensor of this network"),
        (
            lambda t: t.update({"fc/bias": np.ones(10)}),
            "may be any of fc.bias, fc/bias",
        ),
        (lambda t: t.update({"fc.bias": np.ones(7)}), r"'fc.bias' has shape \(7,\)"),
    ],
    ids=("missing", "unknown", "twice", "another shape"),
)
def test_tensors_that_do_not_fit_are_named(change, message, lenet):
    tensors = read("gradient")
    change(tensors)
    with pytest.raises(ValueError, match=message):
        matched(tensors, lenet)


# --- files and facts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dense"}, "no tensor for 'layers/0/"),
        ({"image_size": 16}, "another network, number of classes or image size"),
        ({"model": "lennet"}, "did you mean 'lenet'"),
        ({"upload": "update"}, "needs learning_rate"),
        ({"learning_rate": 0.1}, "is of an update"),
        (
            {"upload": "update", "learning_rate": 0.1, "examples": 4, "batch": 1},
            "local_steps=1 of batch=1 are 1 of examples=4",
        ),
        ({"examples": 0}, "examples must be"),
        ({"map": ("fc",)}, "expected NETWORK=FILE"),
        ({"map": ("nothing=fc.bias",)}, "the network has no 'nothing'"),
        ({"attacks": ("rgap",)}, "is a closed form"),
        ({"attacks": ("imprint",)}, "of a malicious server"),
        ({"labels": (1, 2)}, r"give \(1,\)"),
        ({"truth": UPLOAD / "weights.npz"}, "no array 'images'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(list(value)),
)
def test_facts_that_do_not_fit_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr("kljax.studies.audit.auditing.solve", lambda *_: ())
    monkeypatch.setattr("kljax.studies.audit.auditing.search", lambda *_, **__: [NEAR])
    monkeypatch.setattr("kljax.studies.audit.auditing.measure_wrong", lambda *_: WRONG)
    with pytest.raises(ValueError, match=message):
        audit(config(**changes))


def test_an_audit_that_would_try_nothing_is_refused(monkeypatch):
    monkeypatch.setattr("kljax.studies.audit.auditing.solve", lambda *_: ())
    with pytest.raises(ValueError, match="no closed form applies .* no attack"):
        audit(config(attacks=()))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    sent = read("gradient")
    nan = sent | {"fc.bias": np.full(10, np.nan)}
    whole = {name: x.astype(np.int32) for name, x in sent.items()}
    for tensors, message in (
        (nan, "10 of 10 entries of 'fc.bias' are not finite"),
        (whole, "is of type int32"),
        ({}, "holds no tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            audit(config(upload_file=written(tmp_path, tensors)))
    for name in ("upload.pt", "upload.txt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04 pickled?")
        with pytest.raises(ValueError, match="may run code|expected .npz|damaged"):
            audit(config(upload_file=tmp_path / name))
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        audit(config(upload_file=tmp_path / "nothing.npz"))


# --- what follows without a search --------------------------------------------------


def findings(lenet, change=lambda name, x: x, eps=1e-7, **setting):
    changed = {name: change(name, x) for name, x in read("gradient").items()}
    base = lenet[0]
    knowledge = dict(examples=1, known_labels=False, attack="matching", protocol=None)
    base = make_setting(
        base.task.model,
        images_of(SHAPE),
        "fc",
        loss="cross_entropy",
        **knowledge | setting,
    )
    arrays = (
        {name: match.array for name, match in matched(tensors, lenet).items()}
        for tensors in (read("weights"), changed)
    )
    view = make_view(base, *arrays, stats=None, labels=None)
    return {one.about: one for one in find_without_search(base, view, eps)}


def contradicted(found):
    return {name for name, one in found.items() if one.contradicts}


def test_a_true_gradient_contradicts_nothing_and_tells_its_label(lenet):
    found = findings(lenet)
    assert contradicted(found) == set()
    assert found["labels"].says.startswith(f"{LABEL} by the rule")
    assert "rank 1:" in found["rank"].says
    assert "the classifier's weights are right" in found["features"].says


def test_float16_contradicts_nothing(lenet):
    found = findings(lenet, lambda n, x: x.astype(np.float16), eps=2**-10)
    assert contradicted(found) == set()


def test_an_update_called_a_gradient_is_told_by_its_signs(lenet):
    found = findings(lenet, lambda n, x: -0.1 * x)
    assert "upload='update'" in found["signs"].says and found["signs"].contradicts
    right = Protocol(optax.sgd(0.1), 1, 1, 0.1)
    assert contradicted(findings(lenet, lambda n, x: -0.1 * x, protocol=right)) == set()
    wrong = findings(lenet, protocol=right)
    assert "upload='gradient'" in wrong["signs"].says


def test_a_sum_over_examples_noise_and_other_weights_are_told(lenet):
    assert "size" in contradicted(findings(lenet, lambda n, x: 40 * x))
    draws = np.random.default_rng(0)
    noisy = findings(lenet, lambda n, x: x + draws.normal(0, 0.05, x.shape))
    assert {"sum", "rank", "features"} <= contradicted(noisy)
    turned = findings(lenet, lambda n, x: x[:, ::-1] if n == "fc.weight" else x)
    assert "features" in contradicted(turned)


def test_zeros_say_nothing(lenet):
    with pytest.raises(ValueError, match="says nothing"):
        findings(lenet, lambda n, x: 0 * x)


def test_labels_of_a_closed_form_are_paired_by_the_upload():
    """Which image has which label a reading of a batch does not say."""
    tried = []

    def measure(images, labels):
        tried.append(labels.tolist())
        off = float(np.sum(labels != np.array([7, 2, 7])))
        return Misfit(off, off)

    images = np.zeros((3, 4, 4, 1), np.float32)
    wrong = Found("spear", images, np.array([2, 7, 7]), 0.0, Misfit(2.0, 2.0), False)
    found = pair_labels(wrong, measure)
    assert found.labels.tolist() == [7, 2, 7] and found.misfit.whole == 0
    assert len(tried) == 3  # of two alike
    many = wrong._replace(images=np.zeros((5, 4, 4, 1)), labels=np.arange(5))
    assert pair_labels(many, measure) is many and len(tried) == 3
    one = made(0.2, 0.5, False)
    assert pair_labels(one, measure) is one


def test_what_has_to_learn_first_is_no_closed_form_of_an_upload(lenet):
    names = {form.name for form in closed_forms(lenet[0])}
    assert "rgap" in names and "learned" not in names


# --- verdicts -----------------------------------------------------------------------


def made(value, misfit, searched=True):
    images = np.full((1, 4, 4, 1), value, np.float32)
    return Found("x", images, np.zeros(1, int), 0.0, Misfit(misfit, misfit), searched)


WRONG = [Misfit(0.5, 0.9)] * 3
NEAR = made(0.2, 1e-2)
SIGNS = [Finding("signs", "Wrong.", "upload")]


@pytest.mark.parametrize(
    ("found", "findings", "name"),
    [
        ([made(0.2, 1e-6), made(0.25, 1e-5)], (), "recovered"),
        ([made(0.2, 1e-6, False), made(0.22, 1e-2)], (), "recovered"),
        ([made(0.2, 1e-6, False), made(0.2, 1e-6, False)], (), "likely"),
        ([made(0.2, 1e-6), made(0.9, 0.4)], (), "likely"),
        ([made(0.2, 1e-6), made(0.9, 1e-6)], (), "ambiguous"),
        ([NEAR, made(0.21, 1e-2)], (), "likely"),
        ([NEAR, made(0.9, 1e-2)], (), "unsolved"),
        ([made(0.5, 0.3), made(0.5, 0.3)], (), "unsolved"),
        ([made(0.5, 0.3)], SIGNS, "contradicted"),
        ([made(0.2, 1e-6), made(0.2, 1e-6)], SIGNS, "recovered"),
    ],
)
def test_a_verdict_is_what_the_numbers_allow(found, findings, name):
    verdict = judge(found, WRONG, findings, eps=1e-7, hides_contrast=False)
    assert verdict.name == name
    assert ("safe" in verdict.words) == (name == "unsolved")
    assert not findings or "upload" in verdict.words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        # The best by the whole upload need not be the one that gives it.
        (
            [made(0.9, 1e-2), made(0.2, 1e-6), made(0.22, 1e-2), made(0.9, 0.4)],
            "2 of 4 searches, from random starts",
        ),
        ([made(0.2, 1e-6, False), made(0.22, 1e-2)], "1 of 1 searches, from random"),
        ([NEAR, made(0.21, 1e-2), made(0.9, 0.4)], "2 of 3 searches, from random"),
    ],
)
def test_a_verdict_counts_all_searches_that_arrive_at_its_image(found, words):
    one = found[0]._replace(misfit=found[0].misfit._replace(whole=1e-7))
    verdict = judge([one, *found[1:]], WRONG, (), eps=1e-7, hides_contrast=False)
    assert words in verdict.words


def test_rounding_of_the_file_widens_what_counts_as_given():
    found = [made(0.2, 1.5e-3), made(0.2, 1.5e-3)]
    judged = (judge(found, WRONG, (), eps=e, hides_contrast=True) for e in (1e-7, 1e-3))
    assert [one.name for one in judged] == ["likely", "recovered"]


# --- whole --------------------------------------------------------------------------


@pytest.mark.slow
def test_pytorchs_upload_is_recovered_from_the_command_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_file(read("gradient"), "gradient.safetensors")
    line = (
        "audit gradient.safetensors --model lenet --image-size 8 --steps 150 --starts 1"
    )
    line += f" --weights {UPLOAD / 'weights.npz'} --truth {UPLOAD / 'truth.npz'}"
    with quick_compilation():
        assert cli.main([*line.split(), "--out", "out"]) == 0
    folder = tmp_path / "out"
    files = {"audit.md", "audit.png", "audit.json", "best.npz"}
    assert {path.name for path in folder.iterdir()} == files
    numbers = json.loads((folder / "audit.json").read_text())
    assert numbers["verdict"]["name"] in ("recovered", "likely")
    assert numbers["scores"]["rgap"]["ssim"] > 0.99
    assert numbers["candidates"][0]["labels"] == [LABEL]
    wrong = min(one["whole"] for one in numbers["wrong_images"])
    assert numbers["candidates"][0]["whole"] < 1e-4 < wrong
    truth = np.load(UPLOAD / "truth.npz")["images"]
    np.testing.assert_allclose(np.load(folder / "best.npz")["images"], truth, atol=1e-3)
    page = (folder / "audit.md").read_text()
    assert "| conv2/kernel" in page and "examples" in page and "assumed" in page
    assert numbers["verdict"]["words"].split(".")[0] in page
    printed = capsys.readouterr().out
    assert "channels = 3 (assumed)" in printed and "image_size = 8 (said)" in printed


def test_invert_is_one_call(lenet):
    arrays = [in_our_layout(file, lenet) for file in ("weights", "gradient")]
    with quick_compilation():
        found = kljax.invert("lenet", *arrays, image_shape=SHAPE, attack="rgap")
    truth = np.load(UPLOAD / "truth.npz")["images"]
    np.testing.assert_allclose(found.inputs, truth, atol=1e-3)
    assert found.labels.tolist() == [LABEL]
    with pytest.raises(ValueError, match="missing .'conv1/bias'"):
        arrays[1].pop("conv1/bias")
        kljax.invert("lenet", *arrays, image_shape=SHAPE)
    with pytest.raises(ValueError, match="params are missing"):
        kljax.invert("lenet", None, arrays[1], image_shape=SHAPE)


def test_the_classes_of_a_known_network_are_read_off_its_classifier():
    """Trees of JAX are sorted by name, and 'fc' of `dense` comes before its layers."""
    shapes = {"layers/0/kernel": (192, 64), "layers/0/bias": (64,)}
    shapes |= {"fc/kernel": (64, 10), "fc/bias": (10,)}
    params = {name: np.zeros(shapes[name]) for name in sorted(shapes)}
    sent = {name: x for name, x in params.items() if name != "fc/bias"}
    with pytest.raises(ValueError, match="missing .'fc/bias'"):
        kljax.invert("dense", params, sent, image_shape=SHAPE)
    del sent["fc/kernel"]
    with pytest.raises(ValueError, match="sent has no 'fc/kernel'; it has layers/0"):
        kljax.invert("dense", params, sent, image_shape=SHAPE)


def test_names_in_somebodys_file_are_no_markup(lenet):
    sent = read("gradient")
    sent["<img src=x>|`.weight"] = sent.pop("fc.weight")
    matches = matched(sent, lenet)
    told = types.SimpleNamespace(
        config=config(upload_file=UPLOAD / "a<b>.npz"),
        matches=matches,
        findings=[],
        forms=[],
        found=[NEAR],
        wrong=WRONG,
        verdict=judge([NEAR], WRONG, (), eps=1e-7, hides_contrast=False),
        scores={},
        type="float32",
        stats="",
    )
    page = page_of(told)
    assert "# Audit of a&lt;b&gt;.npz" in page and "<img" not in page
    assert "&lt;img src=x&gt;\\|" in page


@pytest.mark.slow
def test_labels_of_two_steps_are_found_by_the_attackers_own_loss():
    """Four images in two steps of PyTorch: which label, and which step, is hidden."""
    done = audit(
        config(
            upload_file=UPLOAD / "four.npz",
            truth=UPLOAD / "four_truth.npz",
            examples=4,
            upload="update",
            learning_rate=0.1,
            local_steps=2,
            batch=2,
            steps=600,
            label_candidates=24,
        )
    )
    best = done.found[0]
    assert sorted(best.labels[:2].tolist()) == [3, 5]
    assert sorted(best.labels[2:].tolist()) == [1, 7]
    assert best.loss < 1e-3 and done.scores[best.source]["ssim"] > 0.9
    (tried,) = [one for one in done.findings if one.about == "labels tried"]
    assert "24 of 3025 label sequences" in tried.says
