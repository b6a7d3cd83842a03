"""The experiments on text: parts that are arms, and lines of their pages."""

import jax
import jax.numpy as jnp
import numpy as np
import partial_gradients
import pytest
import text_lock
from timing.entries.lamp import Work, compare
from timing.peers import lamp

from kljax.core.types import Public
from kljax.models import NETWORKS, from_nnx
from kljax.threat.parts import list_readable, readable_tensors


def sent():
    network = NETWORKS["transformer"]
    model = from_nnx(lambda rngs: network.factory(8, image_shape=(8,), rngs=rngs))
    return Public(jax.eval_shape(model.init, jax.random.key(0))[0])


def test_an_arm_lets_read_what_the_fact_of_its_name_does():
    upload = sent()
    assert len(partial_gradients.PARTS) == 15

    def masks(number):
        return partial_gradients.partial(number).visible(None, upload, None)

    run = jax.jit(masks)  # the number is data
    for number, pattern in enumerate(partial_gradients.PARTS.values()):
        wanted = readable_tensors(upload, pattern)
        found = run(jnp.float32(number))
        same = jax.tree.map(lambda a, b: bool(np.all(a == b)), wanted, found)
        assert all(jax.tree.leaves(same)), pattern


@pytest.mark.slow
def test_a_component_is_one_matrix():
    upload = {name: leaf.size for name, leaf in sent().model.items()}
    sizes = {
        name: sum(upload[tensor] for tensor in list_readable(sent(), pattern))
        for name, pattern in partial_gradients.PARTS.items()
    }
    assert sizes["attention/query, block 1"] == 64 * 64
    assert sizes["contract, block 0"] == 256 * 64
    assert sizes["all"] == sum(upload.values())


ROWS = [
    {
        "token_accuracy": share,
        "floor_token_accuracy": 0.25,
        "group": group,
        "exact_match": share == 1,
        "rouge_1": share,
        "rouge_2": 0.0,
        "rouge_l": share,
        "visible_share": 0.5,
        "matching_loss": 0.1,
        "matching_loss_floor": floor,
        "outcome": "ambiguous" if share < 1 else "recovered",
    }
    for group, (share, floor) in enumerate(((1.0, 0.2), (0.5, 0.2), (0.75, 0.05)))
]


def test_lines_of_pages_sum_sentences_up():
    line = partial_gradients.line_of("fc", ROWS)
    assert line[:2] == ("fc", "50.00%") and line[2].startswith("75% [50 to 100]")
    assert line[3].startswith("50% [25 to 75]") and line[-1] == "2 of 3"
    line = text_lock.line_of({"part": "DLG", "arm": "none", "rows": ROWS})
    assert line[:3] == ("DLG", "none", "1 of 3") and line[-2:] == ("2 of 3", "2")


@pytest.mark.slow
def test_peers_judge_orders_as_ours(monkeypatch, options, torch_python):
    monkeypatch.setattr(
        lamp,
        "settings",
        lambda name, orders: [
            lamp.Setting(name.split("-")[1], orders, 1, 1 + ("2" in name))
        ],
    )
    peers = options(*lamp.PEERS, torch_python=torch_python)
    (made,) = compare(peers, Work(victims=2, orders=8, length=4))
    differences = made["settings"]["largest_difference_to_peer"]
    assert len(differences) == 4 and max(differences.values()) < 1e-5
    assert made["ours"]["low"] > 0
