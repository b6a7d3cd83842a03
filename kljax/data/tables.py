"""The tables that scikit-learn carries in its wheel, as mixed rows.

| name          | rows | continuous | discrete                                       |
|---------------|------|------------|------------------------------------------------|
| breast-cancer | 569  | 20         | 10: the *worst* values, cut at their quartiles |
| wine          | 178  | 9          | 4: colour, hue, OD280/OD315, proline, the same |
| diabetes      | 442  | 9          | 1: sex, which is discrete by itself            |

The first two have no discrete column of their own. The last third of their columns, in
the order of the file, is therefore cut at its quartiles: what stands in a cell is one
of four ranges. In breast-cancer each is of a quantity whose mean and deviation are
continuous columns. Labels of diabetes are made: whether a year's progression is above
its median, for it is a number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kljax.core.tables import TableColumn, encode_rows, table_of
from kljax.data.dataset import Dataset

BINS = 4
# Of a column's deviation: TabLeak's code, datasets/base_dataset.py.
TOLERANCE = 0.319
SOURCE = "as carried by scikit-learn, which states no licence for it; see {}"
LICENCES = {
    "breast-cancer": "Breast Cancer Wisconsin, diagnostic (W. Wolberg, W. Street and "
    "O. Mangasarian, 1995), "
    + SOURCE.format("https://doi.org/10.24432/C5DW2B, where it is CC BY 4.0"),
    "wine": "Wine (S. Aeberhard and M. Forina, 1992), "
    + SOURCE.format("https://doi.org/10.24432/C5PC7J, where it is CC BY 4.0"),
    "diabetes": "Diabetes (B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, 2004), "
    + SOURCE.format("https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html"),
}


def load_breast_cancer() -> Dataset:
    """Loads 569 tumours: 20 continuous columns, 10 discrete ones, two classes."""
    found = _bundled("load_breast_cancer")
    names = [str(name) for name in found.feature_names]
    classes = tuple(map(str, found.target_names))
    cut = names[-(len(names) // 3) :]
    return _mixed("breast-cancer", found.data, found.target, names, cut, classes)


def load_wine() -> Dataset:
    """Loads 178 wines: 9 continuous columns, 4 discrete ones, three classes."""
    found = _bundled("load_wine")
    names = [str(name) for name in found.feature_names]
    cut = names[-(len(names) // 3) :]
    classes = ("cultivar 0", "cultivar 1", "cultivar 2")
    return _mixed("wine", found.data, found.target, names, cut, classes)


def load_diabetes() -> Dataset:
    """Loads 442 patients: 9 continuous columns, their sex, and two classes."""
    found = _bundled("load_diabetes", scaled=False)
    worse = (found.target > np.median(found.target)).astype(int)
    names = [str(name) for name in found.feature_names]
    classes = ("slower progression", "faster progression")
    return _mixed("diabetes", found.data, worse, names, (), classes, levels_of=("sex",))


TABLES: dict[str, Callable[[], Dataset]] = {
    "breast-cancer": load_breast_cancer,
    "wine": load_wine,
    "diabetes": load_diabetes,
}


def _bundled(loader: str, **options: Any) -> Any:
    # Importing scikit-learn takes a second that users of other data need not wait.
    from sklearn import datasets

    return getattr(datasets, loader)(**options)


def _mixed(
    name: str,
    values: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    cut: Sequence[str],
    classes: tuple[str, ...],
    levels_of: Sequence[str] = (),
) -> Dataset:
    """Makes a dataset of a table [n, k].

    Args:
      name: of the dataset.
      values: [n, k].
      labels: [n].
      names: k of them.
      cut: columns that are cut at their quartiles.
      classes: names of them.
      levels_of: columns that are discrete by themselves.
    """
    columns, encoded, first = [], np.array(values, float), 0
    for place, column in enumerate(names):
        own = encoded[:, place]
        if column in cut:
            edges = np.quantile(own, np.arange(1, BINS) / BINS)
            encoded[:, place] = np.searchsorted(edges, own, side="right")
            categories = _ranges(edges)
        elif column in levels_of:
            levels = np.unique(own)
            encoded[:, place] = np.searchsorted(levels, own)
            categories = tuple(f"{level:g}" for level in levels)
        else:
            low, high = own.min(), own.max()
            tolerance = TOLERANCE * own.std() / (high - low)
            columns.append(
                TableColumn(
                    column, (first,), (), float(low), float(high), float(tolerance)
                )
            )
            first += 1
            continue
        entries = tuple(range(first, first + len(categories)))
        columns.append(TableColumn(column, entries, categories))
        first += len(entries)
    return Dataset(
        name=name,
        inputs=encode_rows(encoded, columns),
        labels=labels,
        num_classes=len(classes),
        groups=None,
        licence=LICENCES[name],
        class_names=classes,
        input_spec=table_of(columns),
    )


def _ranges(edges: np.ndarray) -> tuple[str, ...]:
    """Names what is between edges: ``<1``, ``1..2``, ``>=2``."""
    pairs = zip(edges[:-1], edges[1:], strict=True)
    between = [f"{low:.4g}..{high:.4g}" for low, high in pairs]
    return (f"<{edges[0]:.4g}", *between, f">={edges[-1]:.4g}")
