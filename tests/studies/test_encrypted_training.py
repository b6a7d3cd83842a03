"""Encrypted trainings: no HE secret key on disk, resumed with a new one, refused."""

import builtins

import jax
import numpy as np
import pytest
from test_training import CutOff, cut_off_at, tiny
from tiny_studies import compiled_once

from kljax import cli
from kljax.federated import checkpoints
from kljax.federated.encryption import homomorphic
from kljax.studies.builder import from_run
from kljax.studies.training import train

CHUNK = 64  # bytes: no two places of random bytes share as many
RUN = {"arms": ("none",), "rounds": 2, "save_every": 1, "clients": 3}


@pytest.fixture(autouse=True, scope="module")
def quickly(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def contexts(monkeypatch):
    """Every context with an HE secret key that is drawn."""
    drawn, draw = [], homomorphic.new_context

    def noted():
        drawn.append(draw())
        return drawn[-1]

    monkeypatch.setattr(homomorphic, "new_context", noted)
    return drawn


def secret_chunks(context):
    """Cuts chunks that nothing but the HE secret key has, as SEAL holds and writes it.

    All of what SEAL writes is compressed and ends in the secret key; the polynomial
    itself is 64-bit words.
    """
    others = {"save_public_key": False, "save_galois_keys": False}
    others["save_relin_keys"] = False
    tenseal = context.tenseal
    written = tenseal.serialize(save_secret_key=True, **others)
    words = tenseal.secret_key().data.data()
    polynomial = np.array([words[n] for n in range(4096)], np.uint64).tobytes()
    found = []
    for whole in (written, polynomial):
        # From 512 on: the parameters, which are no secret, come before.
        places = np.linspace(512, len(whole) - CHUNK, 50).astype(int)
        found += [whole[at : at + CHUNK] for at in places]
    public = tenseal.serialize(save_secret_key=False)
    assert len(set(found)) == 100 and not any(chunk in public for chunk in found)
    return found


def found_in(folder, chunks):
    """Names the files below a folder, and the arrays of checkpoints, with a chunk."""
    places = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and any(chunk in path.read_bytes() for chunk in chunks):
            places.append(str(path.relative_to(folder)))
    # Orbax may compress: what it reads back is searched, too.
    for arm in sorted({path.parent.parent for path in folder.rglob("server/[0-9]*")}):
        for part in checkpoints.PARTS:
            for path in sorted((arm / part).iterdir()):
                for name, array in checkpoints._arrays(path).items():
                    content = np.asarray(array).tobytes()
                    if any(chunk in content for chunk in chunks):
                        places.append(f"{path.relative_to(folder)}:{name}")
    return places


def test_no_file_of_a_run_holds_the_secret_key(contexts, tmp_path):
    """Nor after it was cut off, and gone on with under a new key."""
    config, folder = tiny(**RUN, encryption="ckks"), tmp_path / "run"
    with pytest.raises(CutOff):
        train(config, folder, on_round=cut_off_at("none", 0))
    assert checkpoints.saved(folder / "none") == [1]
    result = train(config, folder)
    assert checkpoints.saved(folder / "none") == [2] and len(contexts) == 2
    assert contexts[0].name != contexts[1].name
    assert "Encryption `ckks`." in (folder / "summary.md").read_text()
    plain = train(tiny(**RUN))
    for one, other in zip(
        jax.tree.leaves(result.arms["none"].server.public),
        jax.tree.leaves(plain.arms["none"].server.public),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    chunks = [chunk for context in contexts for chunk in secret_chunks(context)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and found_in(folder, chunks) == []
    # The search finds what is there: in a file, and in an array of a checkpoint.
    for number, whole in enumerate(
        (
            contexts[1].tenseal.serialize(save_secret_key=True),
            b"".join(secret_chunks(contexts[0])[-50:]),
        )
    ):
        (folder / "forgotten.bin").write_bytes(b"before" + whole)
        assert found_in(folder, chunks) == ["forgotten.bin"], number
        (folder / "forgotten.bin").unlink()
    server = result.arms["none"].server
    secret = contexts[1].tenseal.serialize(save_secret_key=True)
    leaking = server._replace(
        round=np.int32(3), aggregator=np.frombuffer(secret, np.uint8)
    )
    checkpoints.save(folder / "none", leaking, result.arms["none"].clients)
    places = found_in(folder, chunks)
    assert "none/server/3:aggregator" in places
    assert not any(place.startswith("none/clients") for place in places)


OPTIONS = (
    "train --model dense --image-size 8 --examples 100 --test-examples 50 --arms none "
    "--public-examples 0 --batch 8 --rounds 1 --layout.kind loop --out run"
).split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ckks --aggregator median", "and median looks at each of them: take the"),
        ("pairwise-masks --aggregator krum --clients 5", "and krum=1 looks at each"),
        ("ckks --cohort 1", "'ckks' needs 2 clients in a round, and there is 1"),
        ("cks", "unknown encryption 'cks' (did you mean 'ckks'?)"),
        ("pairwise-masks=40", "after the point, from 1 to 30, got 40"),
        ("ckks=3", "encryption 'ckks' cannot be called with int"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_written(
    options, message, tmp_path, capsys
):
    assert cli.main([*OPTIONS, "--encryption", *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kljax: ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_without_tenseal_nothing_is_written(monkeypatch, tmp_path, capsys):
    def refuse(name, *args, **kwargs):
        if name.startswith("tenseal"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert cli.main([*OPTIONS, "--encryption", "ckks"]) == 2
    assert "pip install 'kljax[he]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_client_of_an_encrypted_run_is_prepared_without_a_cipher(monkeypatch):
    def missing():
        raise ImportError("no TenSEAL")

    monkeypatch.setattr(homomorphic, "_tenseal", missing)
    setup = from_run._prepare_once(tiny(**RUN, encryption="ckks"))
    assert setup.encryption is None and setup.config.clients == RUN["clients"]
