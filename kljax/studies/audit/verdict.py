"""The verdict of an audit: what its numbers allow to be said, in words.

| verdict      | when                                                                |
|--------------|---------------------------------------------------------------------|
| contradicted | the upload is not what the facts say, and nothing gives it          |
| recovered    | an image gives the upload, and a search of its own arrives at it    |
| likely       | an image gives the upload, and no other search arrives there; or    |
|              | none does, but searches arrive at one that nearly does              |
| ambiguous    | images that differ give the upload                                  |
| unsolved     | nothing that was found gives it                                     |

No verdict says that an upload is safe: a search that fails says nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kljax.metrics import assign
from kljax.metrics.outcomes import RESOLUTION
from kljax.studies.audit.candidates import Found, Misfit
from kljax.studies.audit.findings import Finding

# Images of which the root mean square of the difference is less are the same. Our
# choice: a tenth of the range, 20 dB.
ALIKE = 0.1
# An image nearly gives an upload where its misfit is less than this share of the least
# of all wrong images. Our choice.
NEARLY = 0.1


class Verdict(NamedTuple):
    """What is said of an upload.

    Attributes:
      name: of the table above.
      words: sentences, the uncertainty among them.
      threshold: misfit of the worst tensor below which an upload counts as given.
    """

    name: str
    words: str
    threshold: float


def judge(
    found: Sequence[Found],
    wrong: Sequence[Misfit],
    findings: Sequence[Finding],
    *,
    eps: float,
    hides_contrast: bool,
) -> Verdict:
    """Judges candidates, ranked from the best.

    Args:
      found: candidates, the best first.
      wrong: misfits of images that are none of the private ones: random, and grey.
      findings: what follows without a search.
      eps: relative rounding of the type in which the upload was written.
      hides_contrast: whether norm layers hide brightness and contrast.
    """
    threshold = max(RESOLUTION, 2 * eps)
    matched = [one for one in found if one.misfit.worst <= threshold]
    contradicted = [one for one in findings if one.contradicts]
    least = min(one.whole for one in wrong)
    near = found[0].misfit.whole <= NEARLY * least
    words = [_of_best(found[0], least, len(wrong))]
    name = _name(found, matched, contradicted, near)
    words.append(_reasons(name, found, matched, contradicted))
    if contradicted and name != "contradicted":
        words.append(
            "Beside that, the upload contradicts "
            f"{'; '.join(one.contradicts for one in contradicted)}."
        )
    if hides_contrast and name in ("recovered", "likely"):
        words.append(
            "Norm layers in train mode hide brightness and contrast: the images may "
            "differ from the true ones in these."
        )
    return Verdict(name, " ".join(words), threshold)


def _of_best(best: Found, least: float, count: int) -> str:
    return (
        f"The best candidate, of {best.source}, gives the upload up to "
        f"{best.misfit.whole:.2g} of its length ({best.misfit.worst:.2g} of its worst "
        f"tensor); of {count} wrong images the best gives it up to {least:.2g}."
    )


def _name(
    found: Sequence[Found],
    matched: Sequence[Found],
    contradicted: Sequence[Finding],
    near: bool,
) -> str:
    if not matched and contradicted:
        return "contradicted"
    if not matched:
        return "likely" if near and _witnesses(found, found[0]) else "unsolved"
    if len(_alike(matched, matched[0])) < len(matched):
        return "ambiguous"
    return "recovered" if _witnesses(found, matched[0]) else "likely"


def _alike(found: Sequence[Found], best: Found) -> list[Found]:
    """Lists candidates of the same images as one, itself among them."""
    return [one for one in found if _distance(one.images, best.images) < ALIKE]


def _witnesses(found: Sequence[Found], best: Found) -> list[Found]:
    """Lists the searches that arrive at the same images, but for `best` itself.

    A closed form is none: all of them solve the same equations.
    """
    return [one for one in _alike(found, best) if one.searched and one is not best]


def _arrivals(found: Sequence[Found], best: Found) -> int:
    """Counts the searches that arrive at the same images, `best` itself among them."""
    return len(_witnesses(found, best)) + best.searched


def _reasons(
    name: str,
    found: Sequence[Found],
    matched: Sequence[Found],
    contradicted: Sequence[Finding],
) -> str:
    searches = sum(one.searched for one in found)
    hits = sum(one.searched for one in matched)
    count = f"{hits} of {searches} searches give it"
    if name == "contradicted":
        facts = "; ".join(one.contradicts for one in contradicted)
        return (
            f"The upload contradicts what is said of it ({facts}), and no candidate "
            "gives it. What it gives away cannot be judged before the facts are right: "
            "a candidate may be right even so."
        )
    if name == "recovered":
        there = _arrivals(found, matched[0])
        return (
            f"That counts as given, and {there} of {searches} searches, from random "
            "starts of their own, arrive at the same image(s): what was sent gives its "
            "private images away. That no other image gives it is not proved."
        )
    if name == "likely" and not matched:
        there = _arrivals(found, found[0])
        return (
            f"None counts as given, but {there} of {searches} searches, from random "
            "starts of their own, arrive at the same image(s), which nearly give it: "
            "they are likely to be the private ones. A prior keeps a search from "
            "giving an upload exactly: more steps, or an attack without one, as 'dlg', "
            "would say more."
        )
    if name == "likely":
        return (
            f"That counts as given ({count}), and no other search arrives there: it is "
            "likely to be the private image(s); more starts would say more."
        )
    if name == "ambiguous":
        return (
            f"Candidates that differ give the upload ({count}): it does not tell which "
            "of them is right."
        )
    return (
        f"Nothing that was found gives the upload ({count}). That is no evidence that "
        "it is safe: the search failed, or the network, its weights or a fact is "
        "another. More steps, starts or another attack may do better."
    )


def _distance(images: np.ndarray, others: np.ndarray) -> float:
    """Gives the root mean square of the difference, images paired at their best."""
    ordered = np.clip(images[assign(images, others)], 0, 1)
    return float(np.sqrt(np.mean((ordered - np.clip(others, 0, 1)) ** 2)))
