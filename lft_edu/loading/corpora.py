"""Turn text into token sequences of one length.

Every row of a corpus has exactly ``block_size`` token ids; documents are separated by the end-of-text token. Every row
begins with the token that the tokenizer puts before every text, if it does (those of Llama and Gemma; not ours,
Pythia's or SmolLM2's): a model that always saw it there leaves its attention sink on it, and is measured with it
everywhere. ``add_bos`` decides otherwise, and a results card says how the rows began. The offline default is Python
source code, which every machine that runs this course has. Files are assigned to train (90 %), validation (5 %) or test
(5 %) by a hash of their *path*, not their content, so a file that changed by one line between two Python versions stays
in the same split.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import itertools
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..support import checks
from ..support.errors import unknown_name_error
from ..support.progress import quiet_libraries
from ..support.statistics import evenly_spaced
from ..text import first_ids
from . import documentation
from .documentation import SPLITS, split_of

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

# Packages in "python-packages" besides the standard library; those not installed are skipped.
PACKAGES = [
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "sympy",
    "matplotlib",
    "plotly",
    "networkx",
    "umap",
    "numba",
    "jax",
    "flax",
    "optax",
    "equinox",
    "diffrax",
    "pytorch_lightning",
    "torch_geometric",
    "jinja2",
    "aiohttp",
    "fsspec",
    "pyarrow",
    "pip",
    "setuptools",
    "IPython",
    "jupyterlab",
    "notebook",
    "nbconvert",
    "hypothesis",
    "pytest",
]


@dataclass(frozen=True)
class HubCorpus:
    """A dataset on the hub.

    Attributes:
        repository, configuration: its name and configuration there.
        streamed: too large to download.
        lines: a row is a line, not a document.
        files: pattern of each split's files, if the hub does not know the splits.
    """

    repository: str
    configuration: str | None = None
    streamed: bool = False
    lines: bool = False
    files: dict[str, str] | None = None


PILE = {"train": "train/*.jsonl.zst", "validation": "val.jsonl.zst", "test": "test.jsonl.zst"}
HUB = {
    "wikitext-103": HubCorpus("Salesforce/wikitext", "wikitext-103-raw-v1", lines=True),
    "wikitext-2": HubCorpus("Salesforce/wikitext", "wikitext-2-raw-v1", lines=True),
    "pile": HubCorpus("monology/pile-uncopyrighted", streamed=True, files=PILE),  # 800 GB
}
LINES = 50  # tokenized as one text, so that the tokenizer can use all cores
NAMES = ("python-stdlib", "python-packages", "package-docs", *HUB)


def _roots(name: str) -> Iterator[tuple[str, Path]]:
    yield "", Path(sysconfig.get_paths()["stdlib"])
    if name == "python-packages":
        for package in PACKAGES:
            # not importlib.util.find_spec: looking for pip with it makes a later import of setuptools fail
            spec = importlib.machinery.PathFinder.find_spec(package)
            if spec and spec.submodule_search_locations:
                yield package + "/", Path(next(iter(spec.submodule_search_locations)))


# Skipped: other libraries' files, and near-duplicates that would be in two splits (setuptools vendors distutils; the
# encodings are one table with different numbers).
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "distutils", "_distutils", "_vendor", "encodings", "lib2to3"}


def python_files(name: str, split: str) -> list[Path]:
    """Return the source files of one split, ordered by path hash, so that any prefix is a random sample."""
    found = {}
    for prefix, root in _roots(name):
        for path in root.rglob("*.py"):
            inside = path.relative_to(root)
            key = prefix + inside.as_posix()
            if SKIPPED_FOLDERS.isdisjoint(inside.parts) and split_of(key) == split:
                found[key] = path
    return [found[key] for key in sorted(found, key=lambda key: hashlib.sha256(key.encode()).digest())]


def read_texts(paths: Iterable[Path], window: int | None = None) -> Iterator[str]:
    """Yield the text of each file; skip files that are not UTF-8 or only whitespace.

    Args:
        window: maximum length in characters. Of a longer file, yield a window whose position depends only on its text.
    """
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if window and len(text) > window:
            place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % (len(text) - window)
            place = text.rfind("\n", 0, place) + 1
            text = text[place : place + window]
        if text.strip():
            yield text


def window_for(max_tokens: int | None, files: int, block_size: int) -> int | None:
    """Return how many characters to take from each file, so that ``max_tokens`` come from all files, not from a few.

    Twice each file's equal share, since some files are shorter; at least two sequences; four characters per token.
    """
    return max_tokens and 4 * max(2 * block_size, 2 * max_tokens // max(1, files))


def pack(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    one_document: bool = False,
    first: Sequence[int] = (),
) -> list[list[int]]:
    """Pack texts into sequences of ``block_size`` tokens; drop the last, incomplete one.

    Args:
        one_document: the texts are parts of one document. End-of-text is added once, instead of after each text.
        first: what every sequence begins with (:func:`~lft_edu.text.first_ids`).

    Raises:
        ValueError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("This tokenizer has no end-of-text token, which separates documents: set tokenizer.eos_token.")
    texts, size = list(texts), block_size - len(first)
    # verbose=False: no warning about texts longer than the model's context, since they are cut below.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    end = [tokenizer.eos_token_id]
    stream = (
        list(itertools.chain.from_iterable(ids if one_document else ids + end for ids in encoded)) + end * one_document
    )
    return [[*first, *stream[i : i + size]] for i in range(0, len(stream) - size + 1, size)]


def offline_texts(name: str, split: str, block_size: int, max_tokens: int | None = None) -> Iterator[str]:
    """Yield the documents of one split of a corpus that is on this computer, enough for about ``max_tokens``."""
    if name == "package-docs":
        # 3.9 characters per token of SmolLM2's vocabulary, fewer of a smaller one: a third more than is needed
        return documentation.documents(split, max_tokens and 5 * (max_tokens + block_size))
    paths = python_files(name, split)
    return read_texts(paths, window_for(max_tokens, len(paths), block_size))


def token_sequences(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    block_size: int,
    max_tokens: int | None = None,
    add_bos: bool | None = None,
) -> torch.Tensor:
    """Return an offline corpus as one ``(N, block_size)`` long tensor, without importing ``datasets``."""
    texts = offline_texts(name, split, block_size, max_tokens)
    sequences, first = [], first_ids(tokenizer, add_bos)
    while group := list(itertools.islice(texts, 256)):
        sequences += pack(group, tokenizer, block_size, first=first)
    if max_tokens:
        sequences = [sequences[i] for i in evenly_spaced(len(sequences), max(1, max_tokens // block_size))]
    return torch.tensor(sequences, dtype=torch.long)


token_blocks = token_sequences


@checks.takes(tokenizer=checks.tokenizer, block_size=checks.whole(), max_tokens=checks.optional(checks.whole()))
def load_corpus(
    name: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    split: str = "train",
    block_size: int = 128,
    max_tokens: int | None = None,
    streaming: bool | None = None,
    revision: str | None = None,
    add_bos: bool | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a corpus as a dataset (iterable, if streamed) with a column ``input_ids`` of token sequences.

    Args:
        name: ``"python-stdlib"`` (the running Python's standard library), ``"python-packages"`` (that and the
            installed scientific packages), ``"package-docs"`` (English: descriptions, documentation and docstrings of
            the installed packages), ``"wikitext-103"``, ``"wikitext-2"``, ``"pile"`` (streamed),
            or the path of a text file or a folder of text files.
        tokenizer: a transformers tokenizer with an ``eos_token_id``.
        split: ``"train"``, ``"validation"`` or ``"test"``. A path has no splits: all its text is returned.
        block_size: sequence length in tokens, at least 2.
        max_tokens: approximate number of tokens, evenly spaced over all files (of a stream, the first ones); all if
            None.
        streaming: read a hub corpus during use instead of downloading it first; if None, only the Pile is streamed.
        revision: commit, tag or branch of a hub corpus; the newest commit if None.
        add_bos: begin every sequence with the tokenizer's beginning-of-text token; if None, do so where the tokenizer
            puts it before every text.

    Raises:
        ValueError: unknown name or split, ``block_size`` below 2, too little text for one sequence, or a tokenizer
            without an end-of-text token (or, if it is wanted, a beginning-of-text token).
        FileNotFoundError: the path or hub dataset does not exist.
        ConnectionError: the hub cannot be reached.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}.")
    if block_size < 2:
        raise ValueError(f"block_size={block_size}: give at least 2 tokens, one to read and one to predict.")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: give a positive number, or None for all of the corpus.")
    if not str(name):
        raise ValueError(f"The corpus name is empty. Choose one of {', '.join(NAMES)}, or give a path.")
    texts = _text_dataset(str(name), split, max_tokens, block_size, streaming, revision)
    lines = str(name) in HUB and HUB[str(name)].lines
    first = first_ids(tokenizer, add_bos)  # part of the function below, so that datasets maps again where it changes

    def to_sequences(batch: dict) -> dict:
        rows = batch["text"]
        if not lines:
            return {"input_ids": pack(filter(str.strip, rows), tokenizer, block_size, first=first)}
        pieces = ["".join(rows[i : i + LINES]) for i in range(0, len(rows), LINES)]
        return {"input_ids": pack(pieces, tokenizer, block_size, one_document=True, first=first)}

    # Streams use small batches, for short waits; lines use large ones, since each batch drops its last sequence.
    batch = 1000 if lines else 256 if hasattr(texts, "__len__") else 64
    columns = texts.column_names or ["text", "meta"]
    with quiet_libraries():
        corpus = texts.map(to_sequences, batched=True, batch_size=batch, remove_columns=columns)
    rows = None if max_tokens is None else max(1, max_tokens // block_size)
    if hasattr(corpus, "__len__"):
        if len(corpus) == 0:
            raise ValueError(
                f"Corpus {str(name)!r} ({split}) is too short for one sequence of block_size={block_size} tokens. "
                "Give more text or a smaller block_size."
            )
        return corpus if rows is None else corpus.select(evenly_spaced(len(corpus), rows))
    return corpus if rows is None else corpus.take(rows)


def _text_dataset(name: str, split: str, max_tokens: int | None, block_size: int, streaming, revision):
    import datasets  # half a second: only where a corpus is loaded

    if name in NAMES and name not in HUB:
        return datasets.Dataset.from_dict({"text": list(offline_texts(name, split, block_size, max_tokens))})
    if name in HUB:
        return _hub_texts(name, split, streaming, revision)
    path = Path(name).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        texts = list(read_texts(files, window_for(max_tokens, len(files), block_size)))
        if not texts:
            raise ValueError(f"{path} has no readable UTF-8 text. Give a text file or a folder of text files.")
        return datasets.Dataset.from_dict({"text": texts})
    if "/" in name or "\\" in name or path.suffix:
        raise FileNotFoundError(f"No file or folder {name!r}. Give an existing path, or one of {', '.join(NAMES)}.")
    raise unknown_name_error("corpus", name, NAMES, ", or give a path")


def _hidden(path: Path, root: Path) -> bool:
    """Return whether the path is hidden or in a hidden folder, such as .git."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _hub_texts(name: str, split: str, streaming: bool | None, revision: str | None):
    import datasets

    from . import hub

    corpus = HUB[name]
    streaming = corpus.streamed if streaming is None else streaming
    try:
        with quiet_libraries():
            return datasets.load_dataset(
                corpus.repository, corpus.configuration, split=split, streaming=streaming, data_files=corpus.files,
                revision=revision,
            )  # fmt: skip
    except Exception as error:  # the hub's clients share no error class for "no network"
        instead = 'use "python-stdlib", which needs no network'
        raise hub.explain(error, f"{corpus.repository} ({split})", instead=instead) from error
