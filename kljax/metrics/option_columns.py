"""Columns that say what a row is of, and under which options it was made."""

from kljax.metrics.columns import Column


def _option(name: str, dtype: str, meaning: str, option: str = "", **more) -> Column:
    """Makes the column of an option, which is public unless it is said otherwise."""
    return Column(
        name=name,
        dtype=dtype,
        meaning=meaning,
        option=option or name,
        **{"knows": "attacker"} | more,
    )


WHICH = (
    Column(name="schema_version", dtype="int32", meaning="version of the columns"),
    _option("arm", "string", "defence and secret strategy, or floor/NAME", "arms"),
    Column(
        name="victim",
        dtype="int64",
        meaning="index of the image in the dataset; of a captured run in the whole of "
        "what the run's training examples were taken from",
        unit="from 0",
    ),
    Column(name="upload", dtype="int64", meaning="number of the upload", unit="from 0"),
    Column(
        name="example",
        dtype="int64",
        meaning="place of the image in its upload",
        unit="from 0",
    ),
    Column(
        name="group",
        dtype="int64",
        meaning="bootstrap cluster: that of the upload's first example",
    ),
    Column(name="label", dtype="int64", meaning="true class", unit="from 0"),
    Column(
        name="kind",
        dtype="string",
        meaning="kind of the input that is scored: image, text, table, or your own",
    ),
    Column(
        name="input",
        dtype="string",
        meaning="of several inputs of an example, the one that the row scores",
    ),
)

OPTIONS = (
    _option("model", "string", "network under attack"),
    _option("data", "string", "dataset that the victims come from"),
    _option("split", "string", "split of the dataset"),
    _option("image_size", "int64", "height of the images", unit="pixels"),
    _option("image_width", "int64", "their width, if another", unit="pixels"),
    _option("channels", "int64", "channels of the images"),
    _option("tokens", "int64", "tokens of a sentence"),
    _option("seed", "int64", "seed of everything random", knows="scorer"),
    _option("weights", "string", "fresh network weights for each victim, or shared"),
    _option("init", "float64", "network weights from U(-init, init); 0: their own"),
    _option("loss", "string", "training loss of the clients"),
    _option("classifier", "string", "path of the last dense layer, if it was named"),
    _option("lock_init", "float64", "lock weights from U(-lock_init, lock_init)"),
    _option("lock_activation", "string", "activation of the lock's dense layers"),
    _option("private_key_size", "int64", "length of the private key"),
    _option("sites", "string", "layers that are locked, with commas between"),
    _option("chained", "bool", "whether each site is fed by the gates before"),
    _option("examples", "int64", "images in each upload", unit="from 1"),
    _option("from_run", "string", "run whose client is attacked"),
    _option("round", "int64", "attacked is the state before it", unit="from 0"),
    _option("client", "int64", "client that is attacked", unit="from 0"),
    _option("upload_kind", "string", "gradient of one step, or update", "upload"),
    _option("local_steps", "int64", "local steps of an update"),
    _option("local_epochs", "int64", "passes of an update through its examples"),
    _option("batch", "int64", "images in a local step"),
    _option("client_optimiser", "string", "client's optimiser: kept, or fresh"),
    _option(
        "average_clients", "int64", "clients whose uploads are averaged", unit="from 1"
    ),
    _option("earlier", "int64", "gradients that the client has sent before"),
    _option("observations", "int64", "uploads of the same examples that are pooled"),
    _option("pooling", "string", "how their matching losses become one"),
    _option("threat", "string", "facts about the wire that were set, with commas"),
    _option("attack", "string", "attack", rows="attack"),
    Column(
        name="secret_strategy",
        dtype="string",
        meaning="what the attacker does about what the defence hides",
        knows="attacker",
        rows="attack",
        formerly="lock_strategy",
    ),
    _option(
        "label_strategy", "string", "where labels come from", "labels", rows="attack"
    ),
    _option(
        "label_rule", "string", "how labels were recovered, if they were", rows="attack"
    ),
    _option("features", "float64", "weight of the classifier's input", rows="attack"),
    _option(
        "attack_options",
        "string",
        "options of the attack that were set, with commas",
        rows="attack",
    ),
    _option("generator", "string", "trained generator that the attacker has"),
    _option(
        "denoise",
        "string",
        "denoiser that is used after the attack, and how strongly",
        rows="attack",
    ),
    _option(
        "public_data",
        "string",
        "dataset that the attacker has learned from, if it is another",
        rows="attack",
    ),
    _option("optimiser", "string", "optimiser, if not the attack's own", rows="search"),
    _option("step_size", "float64", "its step size, if it was set", rows="search"),
    _option("restarts", "int64", "independent starts", unit="from 1", rows="search"),
    _option("steps", "int64", "evaluations per restart", unit="from 1", rows="search"),
    _option("matmul_precision", "string", "precision of products", "precision"),
    Column(name="device", dtype="string", meaning="kind of device that it was made on"),
)
