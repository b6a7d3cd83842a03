"""Recipe: a network. Any NNX module with one logit per class."""

import pytest

NETWORKS = {
    "without a norm": """
        from flax import nnx

        class Network(nnx.Module):
            def __init__(self, num_classes, *, image_shape, rngs):
                height, width, channels = image_shape
                self.hidden = nnx.Linear(height * width * channels, 5, rngs=rngs)
                self.head = nnx.Linear(5, num_classes, rngs=rngs)

            def __call__(self, images):
                x = images.reshape(len(images), -1)
                return self.head(nnx.sigmoid(self.hidden(x)))
        """,
    "with a norm and dropout": """
        from flax import nnx

        class Network(nnx.Module):
            def __init__(self, num_classes, *, image_shape, rngs):
                self.conv = nnx.Conv(image_shape[-1], 4, (3, 3), strides=2, rngs=rngs)
                self.norm = nnx.BatchNorm(4, rngs=rngs)
                self.dropout = nnx.Dropout(0.5, rngs=rngs)
                self.head = nnx.Linear(4, num_classes, rngs=rngs)

            def __call__(self, images):
                x = nnx.sigmoid(self.norm(self.conv(images))).mean(axis=(1, 2))
                return self.head(self.dropout(x))
        """,
}


@pytest.mark.slow
@pytest.mark.parametrize("source", NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_attacked(mine, leak, source):
    mine(source)
    job = leak("--model", "mine:Network", "--classifier", "head")
    assert {row["model"] for row in job.rows} == {"mine:Network"}
    assert "# Leakage of `mine:Network` on `digits`" in job.report
    assert float(job.of_arms()[0]["matching_loss"]) > 0


@pytest.mark.slow
def test_it_is_locked_at_any_of_its_layers(mine, leak):
    mine(NETWORKS["with a norm and dropout"])
    options = "--model mine:Network --classifier head --sites norm --arms keylock/known"
    (row,) = leak(*options.split()).of_arms()
    assert row["secret_strategy"] == "known"
    assert 0 <= int(row["live_channels"]) <= 4
