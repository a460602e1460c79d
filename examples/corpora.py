"""Real English text, prepared for Word2Vec: one sentence a line, lower case. Nothing of it comes with this repository.

Two sources: the test data inside gensim's wheel, and packages of Debian, fetched and unpacked with ``apt-get`` and
``dpkg-deb`` (no root). Each text becomes ``<out>/<name>.txt``; ``all.txt`` is all of them, one behind the other.
"""

from __future__ import annotations

import bz2
import gzip
import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

OUT = Path("out/corpora")

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_SENTENCE_END = re.compile(r"(?<=[.;?!])\s+|\n\s*\n")
_SHORTEST = 3  # words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Unavailable(Exception):
    """A text's source is not on this machine and cannot be fetched."""


def sentences(text: str) -> Iterator[list[str]]:
    """A text's sentences, as lower-case words of the letters a to z; those of fewer than three words are left out."""
    for sentence in _SENTENCE_END.split(text):
        words = _WORD.findall(sentence.lower())
        if len(words) >= _SHORTEST:
            yield words


def gensim_data(name: str) -> Path:
    """A file of the test data inside gensim's wheel."""
    try:
        import gensim
    except ImportError as error:
        raise Unavailable("gensim is not installed") from error
    return Path(gensim.__file__).parent / "test" / "test_data" / name


def _package(name: str, folder: Path) -> Path:
    """The unpacked files of a Debian package."""
    target = folder / name
    if target.exists():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not on this machine, the package {name} cannot be fetched")
    with tempfile.TemporaryDirectory(dir=folder) as download:
        fetched = subprocess.run(["apt-get", "download", "-q", name], cwd=download, capture_output=True, text=True)
        archives = list(Path(download).glob("*.deb"))
        if not archives:
            raise Unavailable(f"apt-get download {name}: {fetched.stderr.strip().splitlines()[-1:] or 'no file'}")
        unpacked = Path(download) / "files"
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], check=True)
        unpacked.rename(target)
    return target


def _plain(markup: str) -> str:
    without_code = re.sub(r"(?s)<(script|style).*?</\1>", " ", markup)
    return html.unescape(re.sub(r"<[^>]+>", " ", without_code))


def _lee(folder: Path) -> Iterator[str]:
    yield from gensim_data("lee_background.cor").read_text(encoding="utf-8").splitlines()


def _enwiki(folder: Path) -> Iterator[str]:
    """106 articles; markup is dropped, not rendered."""
    path = gensim_data("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")
    pages = bz2.decompress(path.read_bytes()).decode("utf-8")
    for match in re.finditer(r"(?s)<text[^>]*>(.*?)</text>", pages):
        text = html.unescape(match[1])
        if text.lstrip().lower().startswith("#redirect"):
            continue
        for pattern in (r"(?s)<!--.*?-->", r"(?s)<ref[^>/]*>.*?</ref>", r"(?s)<math>.*?</math>"):
            text = re.sub(pattern, " ", text)
        for _ in range(4):  # tables and templates are nested
            text = re.sub(r"(?s)\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", " ", text)
        text = re.sub(r"\[\[(?:File|Image|Category|[a-z-]+):[^\[\]]*\]\]", " ", text)
        text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)
        yield re.sub(r"https?://\S+|'{2,}|={2,}", " ", _plain(text))


def _kjv(folder: Path) -> Iterator[str]:
    """The King James Bible: the package's program writes it out, a verse a line."""
    data = _package("bible-kjv-text", folder) / "usr" / "lib"
    program = _package("bible-kjv", folder) / "usr" / "bin" / "bible"
    written = subprocess.run([program, "-p", data, "Genesis1:1-Revelation22:21"], capture_output=True, check=False)
    text = written.stdout.decode("utf-8", "replace")
    if len(text) < 1_000_000:
        raise Unavailable(f"the package's program wrote {len(text)} characters: {written.stderr.decode()[:200]}")
    yield re.sub(r"(?m)^\s*(?:\S+\s*)?\d+:\d+|^\s*\d+\s", " ", text)


def _gcide(folder: Path) -> Iterator[str]:
    """The Collaborative International Dictionary of English, which is Webster's of 1913 and more."""
    path = _package("dict-gcide", folder) / "usr/share/dictd/gcide.dict.dz"
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    yield re.sub(r"\[(?:1913 Webster|PJC|WordNet 1\.5)\]", "", text)


def _anarchism(folder: Path) -> Iterator[str]:
    for path in sorted((_package("anarchism", folder) / "usr/share/doc/anarchism/html").glob("*.html")):
        yield _plain(path.read_text(encoding="utf-8", errors="replace"))


def _wordnet(folder: Path) -> Iterator[str]:
    """The glosses, each behind its words."""
    for part in ("noun", "verb", "adj", "adv"):
        path = _package("wordnet-base", folder) / f"usr/share/wordnet/data.{part}"
        glosses = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("  "):
                fields, _, gloss = line.partition("|")
                parts = fields.split()
                words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
                glosses.append(" ".join(words).replace("_", " ") + " " + gloss)
        yield "\n\n".join(glosses)


def _jargon(folder: Path) -> Iterator[str]:
    path = _package("jargon-text", folder) / "usr/share/doc/jargon-text/jargon.txt.gz"
    yield gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "lee": _lee,
    "enwiki": _enwiki,
    "kjv": _kjv,
    "gcide": _gcide,
    "anarchism": _anarchism,
    "wordnet": _wordnet,
    "jargon": _jargon,
}


def prepare(name: str, out: Path = OUT) -> Path:
    """The prepared text, made if it is not there yet.

    Raises:
        Unavailable: if its source is not here and cannot be fetched.
    """
    path = out / f"{name}.txt"
    if path.exists():
        return path
    packages = out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".{name}.{os.getpid()}"
    try:
        with unfinished.open("w", encoding="ascii") as file:
            for text in TEXTS[name](packages):
                file.writelines(" ".join(words) + "\n" for words in sentences(text))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def prepare_all(out: Path = OUT, report: Callable[[str], None] = lambda line: None) -> Path:
    """``all.txt``: every text that is to be had, one behind the other, in the order above."""
    there = []
    for name in TEXTS:
        try:
            there.append(prepare(name, out))
        except Unavailable as error:
            report(f"{name}: {error}")
            continue
        text = there[-1].read_text(encoding="ascii")
        report(f"{name}: {len(text.split()):,} words, {len(text.splitlines()):,} sentences")
    path, unfinished = out / "all.txt", out / f".all.{os.getpid()}"
    try:
        with unfinished.open("wb") as file:
            for part in there:
                file.write(part.read_bytes())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@app.command()
def main(out: Annotated[Path, typer.Option(help="Where the texts go.", file_okay=False)] = OUT) -> None:
    """Prepare the texts that Word2Vec is trained and judged on."""
    console = Console(highlight=False)
    path = prepare_all(out, console.print)
    console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    app()
