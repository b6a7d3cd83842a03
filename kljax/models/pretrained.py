"""Weights of BERT and GPT-2 from safetensors files, by the names of Hugging Face.

Letters: d width, H heads, V tokens, T places. Their dense layers hold weights
[out, in], those of GPT-2 (its ``Conv1D``) [in, out]; ours are [in, out], with heads on
an axis of their own in an attention. GPT-2 holds query, key and value side by side.

Names and layouts are those of the library transformers, ``modeling_bert.py`` and
``modeling_gpt2.py``.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kljax.core.types import Array, Path

HEAD = "fc/"  # of the task at hand: where a file has none, it is drawn
KERNEL, BIAS = "kernel", "bias"


class Source(NamedTuple):
    """Where one parameter is in a file, and how it is brought into our form."""

    name: str
    convert: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _same(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    del shape
    return tensor


def _first_rows(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return tensor[: shape[0]]


def _heads(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Splits, or joins, axes of heads; numbers of entries that differ stay seen."""
    return tensor.reshape(shape) if tensor.size == np.prod(shape) else tensor


def _transposed(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return _heads(tensor.T, shape)


def _part(index: int) -> Callable[[np.ndarray, tuple[int, ...]], np.ndarray]:
    """Takes query, key or value out of the three."""

    def convert(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return _heads(np.split(tensor, 3, axis=-1)[index], shape)

    return convert


EMBEDDINGS = {
    "tokens/embedding": ("embeddings.word_embeddings.weight", "wte.weight"),
    "positions": ("embeddings.position_embeddings.weight", "wpe.weight"),
    "types": ("embeddings.token_type_embeddings.weight", None),
}
NORMS = {
    "embedding_norm": ("embeddings.LayerNorm", None),
    "norm": (None, "ln_f"),
    "norm1": ("attention.output.LayerNorm", "ln_1"),
    "norm2": ("output.LayerNorm", "ln_2"),
}
DENSE = {
    "attention/query": ("attention.self.query", "attn.c_attn"),
    "attention/key": ("attention.self.key", "attn.c_attn"),
    "attention/value": ("attention.self.value", "attn.c_attn"),
    "attention/out": ("attention.output.dense", "attn.c_proj"),
    "expand": ("intermediate.dense", "mlp.c_fc"),
    "contract": ("output.dense", "mlp.c_proj"),
    "pooler": ("pooler.dense", None),
    "fc": ("classifier", "score"),
}
JOINED = ("attention/query", "attention/key", "attention/value")  # in GPT-2's order
PREFIXES = ("bert.", "transformer.")
# Heads of their pretraining, and buffers; a tied head is the embeddings once more.
UNUSED = re.compile(
    r"cls\..*|embeddings\.position_ids|lm_head\.weight|h\.\d+\.attn\.(masked_)?bias"
)


def load_pretrained(network: nnx.Module, path: str | FilePath) -> nnx.Module:
    """Gives a network the weights of BERT or GPT-2 from a safetensors file.

    Args:
      network: of `kljax.models.transformer.bert`, ``gpt`` or ``gpt_classifier``, of the
        file's sizes, that is changed in place. Of the file's places it takes the first
        T. A classifier ``fc`` that is not in the file stays as it is.
      path: of the file.

    Returns:
      The network, for a builder: ``lambda rngs: load_pretrained(bert(3, ...,
      rngs=rngs), path)``.

    Raises:
      ValueError: for tensors that are missing, unexpected, or of another shape, each
        with its name; and for a network that is neither.
    """
    from safetensors.numpy import load_file

    state = nnx.state(network, nnx.Param)
    flat = {"/".join(map(str, parts)): leaf for parts, leaf in nnx.to_flat_state(state)}
    shapes = {name: leaf.get_value().shape for name, leaf in flat.items()}
    for name, value in convert_weights(load_file(path), shapes).items():
        flat[name].set_value(value)
    return network


def convert_weights(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[Path, tuple[int, ...]]
) -> dict[Path, Array]:
    """Brings tensors of Hugging Face's names into our names and form.

    Args:
      tensors: by their names, with or without ``bert.`` or ``transformer.`` in front.
      shapes: of our parameters.

    Returns:
      Parameters by path, float32; ``fc`` is left out where there is none.

    Raises:
      ValueError: see `load_pretrained`.
    """
    found = {_bare(name): tensor for name, tensor in tensors.items()}
    places = {path: _source(path, found, shapes) for path in shapes}
    missing = sorted(
        place.name
        for path, place in places.items()
        if place.name not in found and not path.startswith(HEAD)
    )
    wanted = {place.name for place in places.values()}
    strange = sorted(
        name for name in found.keys() - wanted if not UNUSED.fullmatch(name)
    )
    if missing or strange:
        raise ValueError(
            "the weights do not fit the network: missing "
            f"{', '.join(missing) or 'none'}; unexpected {', '.join(strange) or 'none'}"
        )
    loaded = {}
    for path, (name, convert) in places.items():
        if name not in found:
            continue
        value = convert(found[name], shapes[path])
        if value.shape != shapes[path]:
            raise ValueError(
                f"tensor {name!r} of shape {found[name].shape} does not fit {path!r} "
                f"of shape {shapes[path]}: build the network in the file's sizes"
            )
        loaded[path] = jnp.asarray(value, jnp.float32)
    return loaded


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _source(
    path: Path, found: Mapping[str, np.ndarray], shapes: Mapping[Path, tuple[int, ...]]
) -> Source:
    """Finds where a parameter is.

    Raises:
      ValueError: for a parameter that neither has.
    """
    is_gpt = "embedding_norm/scale" not in shapes
    if path in EMBEDDINGS and EMBEDDINGS[path][is_gpt]:
        return Source(
            EMBEDDINGS[path][is_gpt], _first_rows if path == "positions" else _same
        )
    layer, _, kind = path.rpartition("/")
    block = re.match(r"blocks/(\d+)/", layer)
    where = ""
    if block:
        where = f"h.{block[1]}." if is_gpt else f"encoder.layer.{block[1]}."
        layer = layer[block.end() :]
    names = (NORMS | DENSE).get(layer, (None, None))
    if not names[is_gpt]:
        raise ValueError(
            f"{'GPT-2' if is_gpt else 'BERT'} has no parameter {path!r}: load weights "
            "into a network of kljax.models.transformer.bert, gpt or gpt_classifier"
        )
    if layer in NORMS:
        mine = "weight" if kind == "scale" else "bias"
        old = {"weight": "gamma", "bias": "beta"}[mine]  # in files of TensorFlow's
        name = f"{where}{names[is_gpt]}"
        return Source(f"{name}.{old if f'{name}.{old}' in found else mine}", _same)
    name = f"{where}{names[is_gpt]}.{'weight' if kind == KERNEL else BIAS}"
    if is_gpt and layer in JOINED:
        return Source(name, _part(JOINED.index(layer)))
    transposes = kind == KERNEL and (not is_gpt or layer == "fc")
    return Source(name, _transposed if transposes else _heads)
