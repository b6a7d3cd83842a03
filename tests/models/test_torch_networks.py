"""Networks of PyTorch taken over: the same outputs, gradients and statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch")

import outside_package
import torch
from tiny_studies import quick_compilation
from torch import nn
from torch.nn import functional as F

import kljax
from kljax import Gate
from kljax.models import from_torch, tensors_from_torch
from kljax.models.pytorch.layers import LAYERS
from kljax.studies.builder.task import find_network, make_model
from kljax.studies.inversion import build_model, is_built

SHAPE = (3, 16, 16)


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2, stride=2),
            nn.Sigmoid(),
            nn.Conv2d(6, 6, 5, padding=2),
            nn.Sigmoid(),
        )
        self.fc = nn.Linear(6 * 64, 5)

    def forward(self, x):
        x = self.body(x)
        return self.fc(x.view(x.size(0), -1))


class Block(nn.Module):
    def __init__(self, width, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1:
            conv = nn.Conv2d(width, out, 1, stride, bias=False)
            self.down = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        same = x if self.down is None else self.down(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += same
        return self.relu(x)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = Block(3, 8, 2)
        self.layer2 = nn.Sequential(Block(8, 8), Block(8, 12, 2))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.pool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class VGG(nn.Module):
    def __init__(self, rate=0.0):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Dropout(rate)
        )
        self.rate, self.head = rate, nn.Linear(16, 5)

    def forward(self, x):
        x = self.classifier(self.features(x))
        return self.head(F.dropout(x, self.rate, training=self.training))


class MobileBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1, bias=False)
        self.bn = nn.BatchNorm2d(12, momentum=0.01)
        self.depthwise = nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False)
        self.project = nn.Conv2d(12, 6, 1)
        self.other = nn.Conv2d(3, 6, 3, 2, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        y = F.relu6(self.bn(self.expand(x)))
        y = self.project(F.hardswish(self.depthwise(y)))
        x = torch.cat([y, F.leaky_relu(self.other(x), 0.2)], dim=1)
        return self.fc(x.mean([2, 3]))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.place = nn.Parameter(torch.randn(1, 17, 12))
        self.register_buffer("scale", torch.tensor(0.5))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.qkv = nn.Linear(12, 36)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.place
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0] * self.scale
        b, t, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (z.reshape(b, t, 3, 4).permute(0, 2, 1, 3) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + y.transpose(1, 2).reshape(b, t, 12)
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


NETWORKS = [LeNet, ResNet, VGG, MobileBlock, Transformer]


def made(kind, **options):
    torch.manual_seed(0)
    module = kind(**options)
    with torch.no_grad():  # norms that do something
        for name, x in module.state_dict().items():
            if "running" in name or ("bn" in name and x.ndim == 1):
                x.copy_(0.5 + torch.rand_like(x))
    return module


def batch(count=4):
    draws = np.random.default_rng(0)
    return draws.random((count, *SHAPE), np.float32), np.arange(count) % 5


def last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_gradients_and_statistics_are_pytorchs(kind):
    module = made(kind)
    model = from_torch(module)
    params, stats = model.init(jax.random.key(0))
    images, labels = batch()

    @jax.jit
    def ours(params, images):
        rngs = {"rngs": jax.random.key(0)}

        def loss(params, images):
            out = model.apply(params, stats, images, train=True, **rngs)
            losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)
            return jnp.mean(losses), out

        grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)
        still = model.apply(params, stats, images, train=False, **rngs).logits
        return grads, still, out.logits, out.stats

    with quick_compilation():
        (grads, by_image), still, moving, new = ours(params, last(images))
    again = tensors_from_torch(module, module.state_dict())
    for name, x in (params | stats).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)
    fed = torch.tensor(images, requires_grad=True)
    for mode, logits in ((False, still), (True, moving)):
        out = module.train(mode)(fed)
        wanted = out.detach().numpy()
        np.testing.assert_allclose(logits, wanted, rtol=2e-4, atol=2e-5)
    F.cross_entropy(out, torch.tensor(labels)).backward()
    wanted = tensors_from_torch(
        module, {name: p.grad for name, p in module.named_parameters()}
    )
    assert wanted.keys() == grads.keys() == params.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(grads[name], x, rtol=2e-3, atol=2e-6, err_msg=name)
    turned = np.asarray(by_image).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(turned, fed.grad.numpy(), rtol=2e-3, atol=2e-6)
    # Running variances move towards the biased one here.
    wanted = tensors_from_torch(module, module.state_dict())
    for name in new:
        loose = {"rtol": 0.05} if name.endswith("var") else {"rtol": 1e-4}
        np.testing.assert_allclose(new[name], wanted[name], atol=1e-5, **loose)


def test_gates_and_taps_are_at_the_names_of_modules():
    model = from_torch(made(ResNet))
    params, stats = model.init(jax.random.key(0))
    images = last(batch()[0])
    site = "layer2/1/bn2"
    gate = Gate(jnp.full(12, 2.0), jnp.arange(12.0))

    @jax.jit
    def tapped(images):
        at = (params, stats, images)
        return [
            model.apply(*at, gates=gates, taps=(site,), train=False).taps[site]
            for gates in ({}, {site: gate})
        ]

    with quick_compilation():
        plain, gated = tapped(images)
    assert plain.shape == (4, 4, 4, 12)  # channels last
    wanted = 2 * np.asarray(plain) + np.arange(12.0)
    np.testing.assert_allclose(gated, wanted, rtol=1e-5, atol=1e-5)


def test_dropout_is_on_in_training_alone_and_drawn():
    model = from_torch(made(VGG, rate=0.5))
    params, stats = model.init(jax.random.key(0))
    images = last(batch()[0])

    @functools.partial(jax.jit, static_argnames="train")
    def logits(rngs, train):
        return model.apply(params, stats, images, train=train, rngs=rngs).logits

    one, other = jax.random.split(jax.random.key(0))
    with quick_compilation():
        assert not np.allclose(logits(one, True), logits(other, True))
        np.testing.assert_array_equal(logits(one, False), logits(other, False))


class Options(nn.Module):
    """Functions with options, at kinks of theirs, and slices that shapes give."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = torch.sub(F.leaky_relu(x, 0.2), x.abs(), alpha=2)
        y = y + F.hardtanh(x, min_val=0.0, max_val=0.5) + F.softplus(x, beta=2)
        y = F.avg_pool2d(y, kernel_size=2, stride=1, count_include_pad=False)
        y = self.conv(y[:, :, : y.size(2) - 1]).squeeze(1)
        y += 1.0
        return y.flatten(1)


class Sequences(nn.Module):
    """Norms of channels [B, C, L] with as many places as channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 15, 1)
        self.group, self.batch = nn.GroupNorm(2, 4), nn.BatchNorm1d(4)
        nn.init.normal_(self.group.weight)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.batch(self.group(self.conv(x).flatten(2))).transpose(1, 2)
        x, _ = self.attention(query=x, key=x, value=x)[0], None
        return x.flatten(1)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3, padding_idx=2)
        self.fixed, self.head = nn.Linear(3, 3).requires_grad_(False), nn.Linear(15, 4)

    def forward(self, x):
        return self.head(self.fixed(self.embed(x)).flatten(1))


def fed_to(kind):
    if kind is Tokens:
        return np.random.default_rng(0).integers(0, 4, (4, 5))
    images, _ = batch()
    images[:, :, 4:8] = 0.0  # black, where functions have their kinks
    return (images - 0.5 * (images > 0)).astype(np.float32)


@pytest.mark.parametrize("kind", [Options, Sequences, Tokens])
def test_options_and_edges_of_layers_are_pytorchs(kind):
    module, given = made(kind), fed_to(kind)
    model = from_torch(module)
    params, stats = model.init(jax.random.key(0))

    @jax.jit
    def ours(params, fed):
        def loss(params, fed):
            out = model.apply(params, stats, fed, train=True, rngs=jax.random.key(0))
            weights = jnp.sin(1.0 + jnp.arange(out.logits.size))
            return jnp.sum(out.logits.reshape(-1) * weights), out.logits

        both = (0,) if kind is Tokens else (0, 1)
        return jax.grad(loss, argnums=both, has_aux=True)(params, fed)

    with quick_compilation():
        at = jnp.asarray(given) if kind is Tokens else last(given)
        (grads, *by_image), logits = ours(params, at)
    fed = torch.tensor(given)
    fed.requires_grad_(kind is not Tokens)
    out = module(fed)
    np.testing.assert_allclose(logits, out.detach().numpy(), rtol=2e-4, atol=2e-5)
    (out.reshape(-1) * torch.sin(1.0 + torch.arange(out.numel()))).sum().backward()
    wanted = tensors_from_torch(
        module, {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    )
    assert wanted.keys() == grads.keys() == params.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(grads[name], x, rtol=2e-3, atol=2e-5, err_msg=name)
    for x in by_image:
        turned = np.asarray(x).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(turned, fed.grad.numpy(), rtol=2e-3, atol=2e-5)


class BufferNorm(nn.Module):
    """A norm of buffers alone, written as that of detection networks."""

    def __init__(self, width):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, 0.5 + torch.rand(width))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Frozen(nn.Module):
    """Norms that are frozen in three ways, one whose scale alone is, a dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.bn_eval, self.bn_moves = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.bn_moves.requires_grad_(False)
        # A momentum of None moves nothing in a norm that is frozen.
        self.bn_mode = nn.BatchNorm2d(4, momentum=None)
        self.buffers_alone = BufferNorm(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        self.bn_eval.eval()
        self.drop.eval()

    def train(self, mode=True):
        super().train(mode)
        self.bn_mode.eval()
        return self

    def forward(self, x):
        x = self.bn_eval(self.conv(x)).relu()
        x = self.buffers_alone(self.bn_mode(self.bn_moves(x)))
        return self.head(self.drop(x.mean([2, 3])))


def test_frozen_norms_and_dropouts_are_in_evaluation_mode_while_others_train():
    module = made(Frozen)
    images, labels = batch()
    params, stats = (model := from_torch(module)).init(jax.random.key(0))
    assert {*stats} == {"bn_moves/mean", "bn_moves/var"}
    expected = {"conv/kernel", "conv/bias", "head/kernel", "head/bias"}
    expected |= {
        f"bn_{one}/{part}" for one in ("eval", "mode") for part in ("scale", "bias")
    }
    assert {*params} == expected

    @jax.jit
    def ours(params):
        out = model.apply(params, stats, last(images), train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)
        return jnp.mean(losses), out

    with quick_compilation():
        grads, out = jax.jit(jax.grad(ours, has_aux=True))(params)
    module.bn_mode.eval()  # as its own train() does
    logits = module(torch.tensor(images))
    np.testing.assert_allclose(out.logits, logits.detach(), rtol=2e-4, atol=2e-5)
    F.cross_entropy(logits, torch.tensor(labels)).backward()
    wanted = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    for name, x in tensors_from_torch(module, wanted).items():
        np.testing.assert_allclose(grads[name], x, rtol=2e-3, atol=2e-6, err_msg=name)
    moved = tensors_from_torch(module, module.state_dict())["bn_moves/mean"]
    np.testing.assert_allclose(out.stats["bn_moves/mean"], moved, rtol=1e-4, atol=1e-5)
    assert not np.allclose(moved, stats["bn_moves/mean"])


def test_a_module_in_evaluation_mode_as_a_whole_is_frozen_nowhere():
    """But for what its own train() freezes."""
    for module, trained in (
        (made(MobileBlock), ["bn"]),
        (made(Frozen), ["bn_eval", "bn_moves"]),
    ):
        _, stats = from_torch(module.eval()).init(jax.random.key(0))
        assert {*stats} == {f"{n}/{part}" for n in trained for part in ("mean", "var")}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (
            torch.zeros(6, 3, 5),
            r"'body.0.weight' has shape \(6, 3, 5\), and .* \(6, 3, 5",
        ),
        (np.zeros((5, 5, 3, 6)), r"has shape \(5, 5, 3, 6\), .* in PyTorch's layout"),
        (None, r"'body.0.weight' is None, .* one of shape \(6, 3, 5, 5\)"),
    ],
)
def test_a_tensor_of_another_shape_is_refused_by_name(tensor, words):
    module = made(LeNet)
    with pytest.raises(ValueError, match=words):
        tensors_from_torch(module, module.state_dict() | {"body.0.weight": tensor})


class Depends(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Differs(nn.Module):
    def forward(self, x):
        return x.relu() if self.training else x.tanh()


class DiffersInConstants(nn.Module):
    """Computes the same of another number in evaluation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return x * (self.scale + (1.0 if self.training else 2.0))


class Always(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 2)
        self.rnn = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x):
        return torch.cumsum(self.rnn(self.up(x)), 1)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Calls(nn.Module):
    """A network of one function of itself and its input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def overwritten(write):
    def forward(module, x):
        kept = x = module.fc(x)
        return write(module, x) * kept

    return lambda: Calls(forward, fc=nn.Linear(4, 4), relu=nn.ReLU(inplace=True))


def added(_, x):
    x += 1.0
    return x


def hooked():
    module = nn.Sequential(nn.Linear(4, 4))
    module[0].register_forward_hook(lambda module, given, out: 2 * out)
    return module


def tied():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    return module


def frozen():
    return nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)


def shared(module, x):
    return module.fc(x) @ module.fc.weight.transpose(0, 1)


def attended(module, x):
    return module.attention(x, x, x)[1]


SILENT = [
    (overwritten(added), "'mul' of 'fc', which 'iadd' has overwritten in place"),
    (overwritten(lambda _, x: F.relu(x, inplace=True)), "'relu' has overwritten"),
    (overwritten(lambda module, x: module.relu(x)), "'relu' has overwritten"),
    (overwritten(lambda _, x: x.view(-1, 4).relu_()), "'relu_' has overwritten"),
    (hooked, "hooks of '0'"),
    (tied, "parameter '2.weight', which is '0.weight', too"),
    (frozen, "no parameter of it needs a gradient"),
    (lambda: Calls(shared, fc=nn.Linear(4, 4)), "which layer 'fc' uses, too"),
    (lambda: Calls(lambda _, x: (x, x)), "an output that is no tensor"),
    (lambda: Calls(lambda _, x: F.softmax(x)), "'softmax' with dim=None"),
    (lambda: Calls(lambda _, x: x.mean(axes=1)), "unexpected keyword argument 'axes'"),
    (
        lambda: Calls(lambda m, x: m.p(x)[0], p=nn.MaxPool2d(2, return_indices=True)),
        "return_indices=True",
    ),
    (
        lambda: nn.Sequential(nn.Embedding(3, 2, scale_grad_by_freq=True)),
        "scale_grad_by_freq=True",
    ),
    (
        lambda: Calls(attended, attention=nn.MultiheadAttention(4, 2)),
        r"more is used than \[0\]",
    ),
    (
        lambda: Calls(
            lambda m, x: m.attention(x, x, x)[0],
            attention=nn.MultiheadAttention(4, 2, add_bias_kv=True),
        ),
        "add_bias_kv=True",
    ),
    (
        lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)),
        "MaxPool2d with ceil_mode=True",
    ),
]


@pytest.mark.parametrize(("module", "words"), SILENT)
def test_what_would_differ_silently_is_refused(module, words):
    with pytest.raises(ValueError, match=words):
        from_torch(module())


def test_what_is_written_over_and_not_used_again_is_no_fault():
    from_torch(made(ResNet))
    for write in (lambda m, x: m.relu(x), lambda _, x: x.relu_(), added):
        from_torch(
            Calls(
                lambda m, x, write=write: write(m, m.fc(x)) + 1,
                fc=nn.Linear(4, 4),
                relu=nn.ReLU(inplace=True),
            )
        )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Depends, "depends on values"),
        (Differs, "differs between training and evaluation"),
        (DiffersInConstants, "differs between training and evaluation"),
        (Always, "which evaluation does not end"),
        (Unknown, r"'up' \(ConvTranspose2d\).*function 'cumsum'"),
        (Two, "the argument 'y'"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding_mode="circular")),
            "padding_mode='circular'",
        ),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(3, momentum=None)),
            r"'0' \(BatchNorm2d with momentum=None: .* set a momentum, such as 0.1",
        ),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
            "track_running_stats=False: it has no statistics",
        ),
        (lambda: "lenet", "expected a torch.nn.Module"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(module, words):
    with pytest.raises(ValueError, match=words):
        from_torch(module())


def test_the_table_names_layers_that_pytorch_has():
    assert all(hasattr(nn, name) for name in LAYERS)


def test_an_upload_of_pytorchs_is_inverted():
    module = made(LeNet)
    for weight in module.parameters():
        nn.init.uniform_(weight, -0.5, 0.5)
    images, labels = batch(1)
    loss = F.cross_entropy(module(torch.tensor(images)), torch.tensor(labels))
    grads = torch.autograd.grad(loss, list(module.parameters()))
    names = [name for name, _ in module.named_parameters()]
    sent = tensors_from_torch(module, dict(zip(names, grads, strict=True)))
    model = kljax.from_torch(module)
    params, _ = model.init(jax.random.key(0))
    facts = {"image_shape": (16, 16, 3), "classifier": "fc", "steps": 2}
    with quick_compilation():
        found = kljax.invert(model, params, sent, **facts)
    assert int(found.labels[0]) == labels[0] and np.isfinite(found.loss)


@pytest.mark.parametrize("form", ["an instance", "a class", "a function"])
def test_a_network_of_pytorch_is_named_as_any_other(form, monkeypatch):
    module = made(LeNet)
    given = {"an instance": module, "a class": LeNet, "a function": lambda: module}
    monkeypatch.setattr(outside_package, "simple", given[form], raising=False)
    config = kljax.LeakConfig(
        model="outside_package:simple",
        data="outside_package:ramps",
        arms=("none",),
        attack="dlg",
        victims=1,
        steps=1,
        init=0,
        image_size=16,
    )
    network = find_network(config)
    model = make_model(config, network, outside_package.ramps((16, 16, 3)), norm=False)
    params, _ = model.init(jax.random.key(0))
    assert params["body/0/kernel"].shape == (5, 5, 3, 6)
    if form != "a class":
        wanted = tensors_from_torch(module, module.state_dict())
        for name, leaf in params.items():
            np.testing.assert_array_equal(leaf, wanted[name])
    assert is_built("outside_package:simple")
    own, _, _ = build_model("outside_package:simple", None, (16, 16, 3))
    assert own.init(jax.random.key(0))[0].keys() == params.keys()
