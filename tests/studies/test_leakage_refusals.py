"""The main job: what is refused, before anything is computed."""

import dataclasses

import pytest
from test_leakage import USERS
from tiny_studies import study, tiny

from kljax.studies.config import LeakConfig
from kljax.studies.config.leak import WHOLE
from kljax.studies.leakage import leak

# ---- What is refused, before anything is computed -----------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, least - 1) for name, least in WHOLE.items()),
        *((name, value) for name in WHOLE for value in (-1, 2.0, "3", True)),
        ("image_size", 6),
        ("seed", -1),
        ("weights", "frozen"),
        ("arms", ()),
        ("arms", "none"),
        ("arms", ("none", "keylock/known", "none")),
        ("sites", "layers/0"),
        ("threat", "labels=known"),
        ("init", -0.5),
        ("init", float("nan")),
        ("init", "half"),
        ("lock_init", -1),
        ("lock_activation", "tanh"),
        ("precision", "exact"),
        ("precision", 32),
        ("lock_init", float("inf")),
    ],
)
def test_bad_fields_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        LeakConfig(**{name: value})


def test_no_field_is_unknown_and_none_can_be_changed_unseen():
    with pytest.raises(TypeError, match="victim"):
        LeakConfig(victim=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LeakConfig().victims = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "lennet"}, "unknown model 'lennet' .did you mean 'lenet'"),
        ({"model": "outside_package:missing"}, "has no attribute 'missing'"),
        ({"data": "digitz"}, "unknown dataset 'digitz' .did you mean 'digits'"),
        ({"data": "outside_package:missing"}, "has no attribute 'missing'"),
        ({"split": "train"}, "dataset 'digits' has no splits.*'train'"),
        # The last arm is wrong: the first must not have run.
        ({"arms": ("none", "keylok/known")}, "unknown defence 'keylok'"),
        ({"arms": ("none", "keylock/guess")}, "unknown secret strategy 'guess'"),
        ({"arms": ("none", "bn-control")}, "'bn-control' needs .* lockable; 'dense'"),
        ({"model": "vit", "arms": ("bn-control",)}, "'bn-control' .* lockable; 'vit'"),
        ({"arms": ("none", "bn-control+norm-clipping")}, "needs .* lockable; 'dense'"),
        ({"attack": "matchin"}, "unknown attack 'matchin' .did you mean 'matching'"),
        ({"optimiser": "sgd"}, "unknown optimiser 'sgd'"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"labels": "guessed"}, "labels='guessed'.*'given', 'joint', 'recovered'"),
        ({"sites": ("layers",)}, "no module at 'layers'"),
        ({"convolution": "fft"}, "convolution must be .* got 'fft'"),
        ({"classifier": "layers/9"}, "classifier 'layers/9'.*'dense'.*fc, layers/0"),
        # Sites
        ({"sites": ("layer/0",)}, "no module at 'layer/0' .did you mean 'layers/0'"),
        ({"sites": ("fc", "fc")}, "sites .'fc'. are repeated"),
        ({"model": "lenet", "sites": ("norm4",)},
         "'norm4' .did you mean.* is no norm layer.*norm1, norm2, norm3"),
        (USERS | {"sites": ("all",), "arms": ("keylock/known",)}, "known.*sites"),
        (USERS | {"arms": ("none", "keylock/known")}, "keylock/known.*sites"),
        ({"model": "outside_package:Tiny", "classifier": "fc"},
         "classifier 'fc'.*body, head"),
        # Knowledge and strategy
        ({"threat": ("lock_weights=hidden",), "arms": ("none", "keylock/known")},
         "secret='known' needs lock_weights='known'.*lock_weights='hidden'"),
        ({"threat": ("private_key=hidden",), "arms": ("keylock/known",)},
         "secret='known' needs private_key='known'"),
        ({"threat": ("lock_grads=hidden",), "arms": ("keylock/extract",)},
         "secret='extract' needs lock_grads='shared'"),
        ({"threat": ("lock_weights=hidden",), "arms": ("keylock/fixed_mean",)},
         "secret='fixed_mean' needs lock_weights='known' or 'initial'"),
        ({"threat": ("labels=hidden",), "labels": "given"},
         "labels='given' needs labels='known'"),
        ({"threat": ("secrets=known",)}, "unknown facts .'secrets'."),
        ({"threat": ("labels=maybe",)}, "labels='maybe'.*'known', 'hidden'"),
        ({"threat": ("labels",)}, "'labels': write it as field=value"),
        ({"threat": ("examples=2",)}, "set the option examples"),
        ({"threat": ("upload=update",)}, "upload=update"),
        ({"threat": ("upload=average",)}, "how many clients.*average_clients=4"),
        ({"average_clients": 2, "threat": ("upload=gradient",)}, "upload=average"),
        ({"threat": ("clients=2",)}, "set the option average_clients"),
        ({"average_clients": 2, "arms": ("selective-random=0.5",)},
         "average of 2 client.*sums of all entries"),
        ({"average_clients": 2, "arms": ("keylock/peel",)},
         "secret='peel' needs upload='gradient' or 'update'.*upload='average'"),
        ({"average_clients": 2, "arms": ("keylock/extract",)}, "needs upload="),
        ({"average_clients": 2, "arms": ("adadefense/undo",)}, "write 'adadefense'"),
        ({"average_clients": 2, "arms": ("gaussian-noise=0.1",),
          "attack": "likelihood"}, "density of what is sent.*mean over clients"),
        ({"average_clients": 2, "attack": "gradinversion", "arms": ("none",)},
         "batch statistics.*upload='average'"),
        ({"average_clients": 2, "arms": ("outside_package:sees_what_is_sent",)},
         "upload of each client cannot be simulated.*sees_what_is_sent/unaware"),
        ({"average_clients": 900, "victims": 2, "labels": "given"}, "has 1797"),
        ({"examples": 2, "label_rule": "idlg"}, "'idlg' needs examples=1"),
        # Victims
        ({"victims": 1798}, "victims=1798 .* dataset 'digits' has 1797"),
        ({"victims": 900, "examples": 2, "labels": "given"}, "'digits' has 1797"),
        ({"data": "outside_package:ramps", "victims": 7}, "'ramps' has 6"),
        ({"data": "outside_package:nan_image"}, "image 4 of .*'broken' holds NaN"),
        ({"data": "outside_package:constant_image"}, "image 3 .* is constant"),
        ({"data": "outside_package:label_out_of_range"},
         r"example 2 .* label 7; labels must lie in \[0, 2\)"),
        ({"data": "outside_package:lazy_nan_image", "victims": 6},
         "image 4 of .*'late' holds NaN"),
        ({"data": "outside_package:small_images"}, "small_images.*(6, 6, 3).*SSIM"),
        ({"data": "outside_package:no_dataset"}, "gave ndarray, expected .*Dataset"),
    ],
)  # fmt: skip
def test_bad_studies_are_refused_before_anything_is_computed(
    changes, message, nothing_runs
):
    with pytest.raises(ValueError, match=message):
        leak(tiny(**changes))


def test_good_studies_would_have_begun(nothing_runs):
    # Otherwise the test above would show nothing.
    for changes in (
        {},
        {"threat": ("lock_weights=known",), "arms": ("keylock/known",)},
        {"threat": ("lock_weights=initial",), "arms": ("keylock/fixed_mean",)},
        {"examples": 2, "labels": "given"},
        {"data": "outside_package:ramps", "victims": 6},
        USERS | {"sites": ("body",), "arms": ("keylock/known",)},
        {"victims": 1797},
        {"sites": ("single",), "arms": ("keylock/known",)},
    ):
        with pytest.raises(AssertionError, match="the study has begun"):
            leak(tiny(**changes))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"optimiser": None, "step_size": 0.1}, "step_size=0.1 needs an optimiser"),
        ({"optimiser": "lbfgs", "step_size": 0.1}, "'lbfgs' finds its own step sizes"),
        ({"step_size": -1.0}, "step_size must be a number > 0"),
    ),
)
def test_a_step_size_without_a_taker_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        study(**options)
