"""TabLeak: rows of tables, from relaxed categories and a pooled ensemble."""

from collections.abc import Sequence

from kljax.attacks.attack import Attack, Optimiser, Unknown, Unknowns
from kljax.attacks.drivers import descend
from kljax.attacks.ensembles import median_of_rows
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import cosine
from kljax.attacks.optimisers import sign_adam
from kljax.attacks.priors import with_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import uniform
from kljax.attacks.unknowns import searched
from kljax.core.tables import TableColumn, relax_rows


def tableak(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    learning_rate: float = 0.06,
) -> Attack:
    """Makes TabLeak: 30 restarts of 1,500 steps, whose median is the reconstruction.

    Categories are looked for behind a softmax, numbers behind a sigmoid between their
    least and largest value, from U(-1, 1), by the cosine of gradients and Adam on the
    sign. Rows of a batch have no order: those of each restart are paired with those of
    the restart of lowest loss, by the least squared distance among rows of the same
    label. The median over the restarts, entry by entry, is then read as categories and
    numbers. Its ``info`` has ``confidence`` [B, k]: of a discrete column 1 minus the
    normalised entropy of the pooled categories, of a continuous one minus the standard
    deviation over the restarts; the latter is on a scale of its own.

    Differs from the code: pairing is by squared distance, and not by cells within a
    tolerance, and never across labels; the restart that others are paired with is that
    of lowest loss before categories are read; of each restart the best iterate counts,
    and not the last; the median of an even number is the mean of the two in the middle.
    One restart is an ensemble of one.

    Raises:
      ValueError: for inputs without columns of a table, and where labels are optimised:
        rows of other labels cannot be pooled.

    Reference: Vero, Balunović, Dimitrov, Vechev, "TabLeak: Tabular Data Leakage in
    Federated Learning" (ICML 2023), algorithm 1; code eth-sri/tableak,
    run_inversion_attacks.py (configuration 46) and attacks/ensembling.py.
    """
    columns = setting.task.inputs.columns
    if not columns:
        raise ValueError(
            "tableak looks for rows of a table, and these inputs have no columns: give "
            "them a spec of kljax.core.tables.table_of"
        )
    if setting.threat.strategy.labels == "joint":
        raise ValueError(
            "tableak pools rows of the same labels, and label strategy 'joint' "
            "optimises them: write 'recovered' or 'given'"
        )
    secret = secret_of(setting)
    rows = searched(setting, uniform(-1.0, 1.0))
    return descend(
        Unknowns(
            _relaxed(rows, columns),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        cosine(),
        optimiser or sign_adam(learning_rate),
        prior=with_feature(setting, secret.gates),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
        pool=median_of_rows(columns),
    )


def _relaxed(rows: Unknown, columns: Sequence[TableColumn]) -> Unknown:
    """Looks for rows behind a softmax of categories and a sigmoid of numbers."""

    def decode(free, fixed):
        return relax_rows(rows.decode(free, fixed), columns)

    return rows._replace(decode=decode)
