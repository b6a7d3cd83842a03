"""Rebuilds the embedded corpus: every fourth verse of the King James Bible, in pieces.

What: reads the text with Debian's reader (packages bible-kjv and bible-kjv-text),
learns pieces of words from all 31,102 verses with the package tokenizers, and writes
every fourth verse as numbers of pieces into kljax/data/text.npz (see
`kljax.data.text`). Device: CPU, half a minute. Number: 7,776 verses of 1,189 chapters,
4,096 pieces, 31.9 pieces a verse, 298 KiB.

    pip install "kljax[text]" && python experiments/text_corpus.py

It needs Debian's apt-get and dpkg-deb, or the text as a file of ``BOOK<tab>CHAPTER<tab>
VERSE`` lines: python experiments/text_corpus.py verses.tsv
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = Path(__file__).parent.parent / "kljax" / "data" / "text.npz"
PIECES = 4096
EVERY = 4  # the package stays small, and neighbours are not next to each other
SPACE = "▁"  # begins a piece that begins a word
PACKAGES = ("bible-kjv", "bible-kjv-text")
HEADER = re.compile(r"^((?:[1-3] )?[A-Z][A-Za-z ]*?) (\d+)$")
VERSE = re.compile(r"^ *\d+ (.+)$")

# -- The text, as Debian has it -------------------------------------------------------


def read_debian() -> list[tuple[str, int, str]]:
    """Reads (book, chapter, verse) of the whole Bible."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(("apt-get", "download", *PACKAGES), cwd=folder, check=True)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(("dpkg-deb", "-x", package, folder), check=True)
        command = [f"{folder}/usr/bin/bible", "-l9999", "-p", f"{folder}/usr/lib"]
        command.append("gen1:1-rev22:21")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    verses, place = [], None
    for line in done.stdout.splitlines():
        if header := HEADER.match(line):
            place = header[1], int(header[2])
        elif verse := VERSE.match(line):
            verses.append((*place, verse[1]))
    return verses


def read_file(path: str) -> list[tuple[str, int, str]]:
    """Reads (book, chapter, verse) from lines with tabs."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    parts = (line.split("\t") for line in lines)
    return [(book, int(chapter), text) for book, chapter, text in parts]


# -- Pieces ---------------------------------------------------------------------------


def learn_pieces(texts: list[str]) -> Tokenizer:
    """Learns a byte-pair encoding whose pieces never cross a word's end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(SPACE),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE)
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Writes the corpus."""
    verses = read_file(sys.argv[1]) if len(sys.argv) > 1 else read_debian()
    texts = [text for _, _, text in verses]
    tokenizer = learn_pieces(texts)
    names = list(dict.fromkeys(book for book, _, _ in verses))
    chapters = {c: i for i, c in enumerate(dict.fromkeys(v[:2] for v in verses))}

    kept = verses[::EVERY]
    numbers = [found.ids for found in tokenizer.encode_batch([v[2] for v in kept])]
    for (_, _, text), ids in zip(kept, numbers, strict=True):
        assert tokenizer.decode(ids) == text, text
    np.savez_compressed(
        OUT,
        pieces=np.array([tokenizer.id_to_token(i) for i in range(PIECES)]),
        tokens=np.concatenate(numbers).astype(np.uint16),
        lengths=np.array([len(ids) for ids in numbers], np.uint16),
        books=np.array([names.index(v[0]) for v in kept], np.uint8),
        chapters=np.array([chapters[v[:2]] for v in kept], np.uint16),
        names=np.array(names),
    )
    mean = np.mean([len(ids) for ids in numbers])
    print(
        f"{OUT}: {len(kept)} of {len(verses)} verses, {len(chapters)} chapters, "
        f"{len(names)} books, {PIECES} pieces, {mean:.1f} a verse, "
        f"{OUT.stat().st_size / 1024:.0f} KiB"
    )


if __name__ == "__main__":
    main()
