"""experiments/aggregation_speed.py: every rule is in it, and is given what it needs."""

import aggregation_speed
import numpy as np
from toys import toy_model

from kljax.federated.aggregation import AGGREGATORS, make_aggregator


def test_every_rule_of_the_catalogue_is_timed():
    named = {text.partition("=")[0] for text in aggregation_speed.rules(20)}
    # The other metric of FedBoosting adds uploads up as the first.
    assert named == set(AGGREGATORS) - {"fedboosting-accuracy"}


def test_what_is_timed_is_the_aggregate():
    uploads, server = aggregation_speed.drawn(toy_model(), 20)
    weights = np.arange(1, 21, dtype=np.float32)
    kernel = uploads.delta.model["fc/kernel"]
    assert np.linalg.norm(kernel[3]) > 5 * np.linalg.norm(kernel[4])
    for name, expected in (
        ("mean", np.average(kernel, axis=0, weights=weights)),
        ("median", np.median(kernel, axis=0)),
    ):
        rule = make_aggregator(name)
        given, _ = aggregation_speed.work_of(rule, uploads, server, weights)()
        found = given.delta.model["fc/kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
