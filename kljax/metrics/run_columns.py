"""Every column of the rows of a training, which are one per arm and round."""

from kljax.metrics.columns import Column, by_name

# Batches and private keys are the clients': a server cannot measure these.
ACCURACY = {"unit": "[0, 1]", "form": ".1%"}

RUN_COLUMNS = by_name(
    (
        Column(name="schema_version", dtype="int32", meaning="version of the columns"),
        Column(name="arm", dtype="string", meaning="defence"),
        Column(name="round", dtype="int64", meaning="the round run", unit="from 0"),
        Column(
            name="loss",
            meaning="mean over local steps and clients, weighted as they are",
            form=".4f",
        ),
        Column(
            name="train_accuracy",
            meaning="accuracy in the step that used the example; of numbers none",
            **ACCURACY,
        ),
        Column(
            name="test_accuracy",
            meaning="accuracy after the round; own private key, own lock. Of sequences "
            "it is that of tokens, of numbers R2",
            **ACCURACY,
        ),
        Column(
            name="attack_success",
            meaning="share of triggered test images that are taken for the attackers' "
            "class after the round",
            **ACCURACY,
        ),
        Column(
            name="epsilon",
            meaning="of differential privacy, after the round and all before it, at "
            "the run's delta, of the client that has released most; empty where an arm "
            "has no guarantee. See kljax.defences.accounting for what is assumed",
            unit="from 0",
            form=".2f",
        ),
        Column(name="clients", dtype="int64", meaning="clients in the cohort"),
        Column(
            name="examples",
            dtype="int64",
            meaning="examples that the cohort used",
        ),
        Column(
            name="excluded",
            dtype="string",
            meaning="clients left out as not finite, with spaces between",
        ),
        Column(name="compile_s", meaning="time of compiling", unit="s"),
        Column(name="run_s", meaning="time of running", unit="s"),
    )
)
