"""Real embeddings without a download: the sentences of the standard library's docstrings.

TF-IDF over the sentences, reduced to 256 dimensions by a truncated SVD (latent semantic analysis),
rows of length 1: about 13,900 x 256 float32. It takes some 8 s once; the result is cached.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmq._cache import cache_dir

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DIMENSIONS", "Corpus", "DemoDataError", "load"]

DIMENSIONS: Final = 256
SENTENCE_CHARS_MIN: Final = 40
SENTENCE_WORDS_MIN: Final = 5
SENTENCE_CHARS_MAX: Final = 400
SENTENCES_MIN: Final = 2 * DIMENSIONS
# A new number where the sentences or the vectors change for the same Python.
VERSION: Final = 1
# Parts of the standard library that are tests, or generated, or belong to other packages.
_SKIPPED: Final = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
_BREAK: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


class DemoDataError(Exception):
    """The vectors cannot be computed on this machine."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences and their vectors, row by row.

    Attributes:
        sentences: The texts.
        vectors: Read-only float32 array, len(sentences) x 256, C-contiguous, rows of length 1.
        digest: SHA-256 of the vectors' bytes, hexadecimal.
        was_cached: The vectors were read from the cache.
    """

    sentences: tuple[str, ...]
    vectors: NDArray[np.float32]
    digest: str
    was_cached: bool


def load() -> Corpus:
    """Read the vectors from the cache, or compute and cache them.

    Returns:
        The same Corpus at each call on one machine with one Python and one scikit-learn.

    Raises:
        DemoDataError: scikit-learn is not installed, or the sources of the standard library are
            not.
    """
    sklearn_version = _sklearn_version()
    name = f"demo-{VERSION}-python{platform.python_version()}-sklearn{sklearn_version}.npz"
    file = cache_dir() / name
    kept = _read(file)
    if kept is not None:
        return _corpus(*kept, was_cached=True)
    sentences = _sentences()
    if len(sentences) < SENTENCES_MIN:
        raise DemoDataError(
            f"expected at least {SENTENCES_MIN} docstring sentences in the standard library, "
            f"got {len(sentences)}; this Python comes without its sources"
        )
    vectors = _embed(sentences)
    _write(file, sentences, vectors)
    return _corpus(sentences, vectors, was_cached=False)


def _corpus(sentences: list[str], vectors: NDArray[np.float32], *, was_cached: bool) -> Corpus:
    vectors.flags.writeable = False
    digest = hashlib.sha256(vectors).hexdigest()
    return Corpus(tuple(sentences), vectors, digest, was_cached)


def _sklearn_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scikit-learn")
    except PackageNotFoundError:
        raise DemoDataError(
            "the demo computes its vectors with scikit-learn: pip install 'vecmq[all]'"
        ) from None


def _sentences() -> list[str]:
    """Give every sentence of every docstring once, in the order of the files' names."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: dict[str, None] = {}
    for file in sorted(root.rglob("*.py")):
        if _SKIPPED.isdisjoint(file.relative_to(root).parts):
            for docstring in _docstrings(file):
                seen.update(dict.fromkeys(_split(docstring)))
    return list(seen)


def _docstrings(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            # Old escapes in some modules; parsed, never run.
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _split(docstring: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", docstring):
        for sentence in _BREAK.split(" ".join(paragraph.split())):
            words = sum(word.isalpha() for word in sentence.split())
            is_long_enough = len(sentence) >= SENTENCE_CHARS_MIN and words >= SENTENCE_WORDS_MIN
            if is_long_enough and len(sentence) <= SENTENCE_CHARS_MAX:
                yield sentence


def _embed(sentences: list[str]) -> NDArray[np.float32]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english", dtype=np.float32)
    weights = terms.fit_transform(sentences)
    reduced = TruncatedSVD(DIMENSIONS, n_iter=2, random_state=0).fit_transform(weights)
    norms = np.linalg.norm(reduced, axis=1, keepdims=True)
    # A sentence of words that occur nowhere else has no direction; it stays zero.
    vectors = reduced / np.maximum(norms, np.float32(1e-12))
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _read(file: Path) -> tuple[list[str], NDArray[np.float32]] | None:
    """Read the cache; None where there is none or it cannot be used."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            vectors = kept["vectors"]
            sentences = json.loads(kept["sentences"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if vectors.dtype != np.float32 or vectors.shape != (len(sentences), DIMENSIONS):
        return None
    return sentences, np.ascontiguousarray(vectors)


def _write(file: Path, sentences: list[str], vectors: NDArray[np.float32]) -> None:
    """Write the cache as a whole or not at all; a cache that cannot be written is no error."""
    text = np.frombuffer(json.dumps(sentences).encode(), dtype=np.uint8)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as stream:
            np.savez(stream, vectors=vectors, sentences=text)
        os.replace(stream.name, file)
    except OSError:
        return
