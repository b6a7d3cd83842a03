"""The small network of PyTorch's tutorial on CIFAR-10, common in benchmarks."""

import jax
from flax import nnx

from kljax.models import max_pool, uniform


class TutorialCNN(nnx.Module):
    """Convolves 3->6->16 (kernel 5, no padding), pools after each; three dense layers.

    62,006 parameters at 32x32 and ten classes, as PyTorch initialises them.

    Reference: https://pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """

    def __init__(self, num_classes=10, *, image_shape=(32, 32, 3), rngs):
        if tuple(image_shape) != (32, 32, 3):
            raise ValueError(f"expected images of (32, 32, 3), got {image_shape}")

        def layer(kind, fan_in, *args, **kwargs):
            init = uniform(fan_in**-0.5)  # PyTorch's
            return kind(*args, **kwargs, kernel_init=init, bias_init=init, rngs=rngs)

        window = {"kernel_size": (5, 5), "padding": "VALID"}
        self.conv1 = layer(nnx.Conv, 75, 3, 6, **window)
        self.conv2 = layer(nnx.Conv, 150, 6, 16, **window)
        self.fc1 = layer(nnx.Linear, 400, 400, 120)
        self.fc2 = layer(nnx.Linear, 120, 120, 84)
        self.fc3 = layer(nnx.Linear, 84, 84, num_classes)

    def __call__(self, images):
        """Maps images [B, 32, 32, 3] to logits [B, Kc]."""
        x = images
        for conv in (self.conv1, self.conv2):
            x = max_pool(jax.nn.relu(conv(x)), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for dense in (self.fc1, self.fc2):
            x = jax.nn.relu(dense(x))
        return self.fc3(x)
