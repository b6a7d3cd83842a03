"""Facts of an audit: what is said about an upload, and what is assumed of the rest."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from kljax.core.checks import check_number, check_whole
from kljax.metrics.image import SSIM_WINDOW

# What is taken where nothing is said, in the order in which it is told.
ASSUMED: dict[str, Any] = {
    "image_size": 32,
    "channels": 3,
    "examples": 1,
    "upload": "gradient",
    "loss": "cross_entropy",
    "norm": "train",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is known of one upload, and how much is spent on it.

    A fact that is None is assumed (`ASSUMED`), or read off the upload, and told so.

    Attributes:
      upload_file: ``.npz`` or ``.safetensors`` of what a client sent: the mean gradient
        of its examples, or trained minus received weights.
      weights: the same of the weights that it started from; statistics of norm layers
        may be among them.
      model: network: a name of the catalogue, or ``package.module:function``.
      image_size: height of the images, and their width if that is not said.
      image_width: their width.
      channels: of the images.
      classes: of the network; None to read them off the classifier's weights.
      examples: that the upload was computed on.
      labels: of the examples, if they are known.
      upload: ``gradient`` of one step, or the ``update`` of local training by SGD.
      learning_rate, local_steps, batch: of an update.
      loss: that the client trained by.
      norm: mode of its norm layers, ``train`` or ``eval``.
      classifier: path of the last dense layer; None for the network's own.
      map: ``NETWORK=FILE`` for tensors that neither name nor shape tells.
      attacks: that search, by name.
      starts: searches of each attack, from different starts.
      steps: evaluations of each search.
      label_candidates: label sequences at most that are tried where labels are hidden
        and their order matters, or the rule that reads them may be wrong; 1 to take
        them as they are read.
      wrong: random images that candidates are compared with, beside a grey one.
      seed: of everything random.
      truth: ``.npz`` with ``images`` [B, H, W, C], and ``labels`` [B] perhaps, to score
        by; no attack sees it.

    Raises:
      ValueError: for numbers out of range, and facts about an update where a gradient
        is uploaded, or the reverse.
    """

    upload_file: Path
    weights: Path
    model: str
    image_size: int | None = None
    image_width: int | None = None
    channels: int | None = None
    classes: int | None = None
    examples: int | None = None
    labels: tuple[int, ...] | None = None
    upload: Literal["gradient", "update"] | None = None
    learning_rate: float | None = None
    local_steps: int | None = None
    batch: int | None = None
    loss: str | None = None
    norm: Literal["train", "eval"] | None = None
    classifier: str | None = None
    map: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ("matching",)
    starts: int = 3
    steps: int = 1000
    label_candidates: int = 64
    wrong: int = 8
    seed: int = 0
    truth: Path | None = None

    def __post_init__(self):
        check_whole(
            self,
            {"starts": 1, "steps": 1, "label_candidates": 1, "wrong": 2, "seed": 0},
        )
        least = {"image_size": SSIM_WINDOW, "image_width": SSIM_WINDOW}
        least |= dict.fromkeys(("channels", "examples", "local_steps", "batch"), 1)
        least |= {"classes": 2}
        check_whole(
            self, {n: v for n, v in least.items() if getattr(self, n) is not None}
        )
        if self.learning_rate is not None:
            check_number(self, "learning_rate", positive=True)
        of_update = ("learning_rate", "local_steps", "batch")
        if self.fact("upload") == "gradient":
            for name in of_update:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} is of an update, and upload "
                        "is 'gradient': give upload='update', or leave it out"
                    )
        elif self.learning_rate is None:
            raise ValueError(
                "upload='update' needs learning_rate, which the client trained by"
            )
        else:
            self._check_steps()
        for pair in self.map:
            if not all(pair.partition("=")[::2]):
                raise ValueError(f"map={pair!r}: expected NETWORK=FILE")

    def _check_steps(self) -> None:
        examples, steps = self.fact("examples"), self.local_steps or 1
        trained = steps * (self.batch or examples)
        if trained < examples:
            raise ValueError(
                f"local_steps={steps} of batch={self.batch} are {trained} of "
                f"examples={examples}, and an upload says nothing of the others: give "
                "more steps, or fewer examples"
            )

    def fact(self, name: str) -> Any:
        """Gives what is said of a fact, or what is assumed."""
        said = getattr(self, name)
        return ASSUMED.get(name) if said is None else said

    @property
    def shape(self) -> tuple[int, int, int]:
        """Gives [H, W, C] of one image."""
        height = self.fact("image_size")
        return height, self.image_width or height, self.fact("channels")

    def told(self) -> list[tuple[str, str, str]]:
        """Lists (fact, value, ``said`` or ``assumed``) of what an audit rests on."""
        names = [*ASSUMED, "labels"]
        names += ["learning_rate", "local_steps", "batch"] * (
            self.fact("upload") == "update"
        )
        rows = [("model", self.model, "said")]
        for name in names:
            said = getattr(self, name) is not None
            value = self.fact(name) if said or name in ASSUMED else _UNSAID[name]
            rows.append((name, str(value), "said" if said else "assumed"))
        rows.append(("defence", "none: sent as it was computed", "assumed"))
        return rows


_UNSAID = {
    "labels": "hidden",
    "learning_rate": "not said",
    "local_steps": "1",
    "batch": "all examples",
}
