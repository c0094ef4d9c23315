"""Text into blocks of tokens.

Every corpus becomes rows of exactly ``block_size`` token ids, documents joined by the tokenizer's end-of-text token.
The offline default is Python source: it is on every machine that can run this course. Files are assigned to
train (90 %), validation (5 %) or test (5 %) by a hash of their *path* inside the library, not of their content, so a
file that changed by one line between two Python versions stays on the same side of the split.
"""

import hashlib
import importlib.machinery
import itertools
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..support.errors import unknown_name_error
from ..support.statistics import evenly_spaced

SPLITS = ("train", "validation", "test")
# Packages whose Python source joins the standard library in "python-packages"; those not installed are passed over.
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
    """A data set of the hub. ``streamed``: too large to download; ``lines``: a row is a line, not a document; ``files``
    of each split, where the hub could not tell."""

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
LINES = 50  # that are tokenized as one piece, so that a processor's cores share the pieces
NAMES = ("python-stdlib", "python-packages", *HUB)


def split_of(path: str) -> str:
    """The split a file belongs to, from the SHA-256 of its path relative to its library's root."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _roots(name: str) -> Iterator[tuple[str, Path]]:
    yield "", Path(sysconfig.get_paths()["stdlib"])
    if name == "python-packages":
        for package in PACKAGES:
            # not importlib.util.find_spec: looking for pip with it makes a later import of setuptools fail
            spec = importlib.machinery.PathFinder.find_spec(package)
            if spec and spec.submodule_search_locations:
                yield package + "/", Path(next(iter(spec.submodule_search_locations)))


# Not taken: other libraries' files, and files that stand nearly word for word in two places and so on both sides of
# the split (setuptools vendors distutils; the encodings are one table with other numbers).
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "distutils", "_distutils", "_vendor", "encodings", "lib2to3"}


def python_files(name: str, split: str) -> list[Path]:
    """Source files of the running Python in a split, ordered by path hash, so that any prefix is a random choice."""
    found = {}
    for prefix, root in _roots(name):
        for path in root.rglob("*.py"):
            inside = path.relative_to(root)
            key = prefix + inside.as_posix()
            if SKIPPED_FOLDERS.isdisjoint(inside.parts) and split_of(key) == split:
                found[key] = path
    return [found[key] for key in sorted(found, key=lambda key: hashlib.sha256(key.encode()).digest())]


def read_texts(paths: Iterable[Path], window: int | None = None) -> Iterator[str]:
    """The text of each file; files that are not UTF-8 or hold nothing but white space are passed over.

    ``window``: of a longer file only about this many characters, from a place that depends on its text alone.
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
    """Characters to take of each file so that ``max_tokens`` come from all files rather than from a few whole ones.

    Twice each file's fair share, since some are shorter; at least two blocks; four characters a token.
    """
    return max_tokens and 4 * max(2 * block_size, 2 * max_tokens // max(1, files))


def pack(texts: Iterable[str], tokenizer, block_size: int, whole: bool = False) -> list[list[int]]:
    """Token blocks of ``block_size`` from texts, each ended by end-of-text; the last, incomplete block is dropped.

    ``whole``: the texts are pieces of one, which is ended only once.
    """
    texts = list(texts)
    # The tokenizer warns of texts longer than its model's context; ours are cut into blocks on the next lines.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    end = [tokenizer.eos_token_id]
    stream = list(itertools.chain.from_iterable(ids if whole else ids + end for ids in encoded)) + end * whole
    return [stream[i : i + block_size] for i in range(0, len(stream) - block_size + 1, block_size)]


def token_sequences(name: str, tokenizer, split: str, block_size: int, max_tokens: int | None = None) -> torch.Tensor:
    """Blocks of an offline Python corpus as one long tensor ``(N, block_size)``. Needs no ``datasets``."""
    paths = python_files(name, split)
    texts = read_texts(paths, window_for(max_tokens, len(paths), block_size))
    blocks = []
    while group := list(itertools.islice(texts, 256)):
        blocks += pack(group, tokenizer, block_size)
    if max_tokens:
        blocks = [blocks[i] for i in evenly_spaced(len(blocks), max(1, max_tokens // block_size))]
    return torch.tensor(blocks, dtype=torch.long)


def load_corpus(
    name: str | Path,
    tokenizer,
    split: str = "train",
    block_size: int = 128,
    max_tokens: int | None = None,
    streaming: bool | None = None,
    revision: str | None = None,
):
    """A corpus as a ``datasets.Dataset`` (or ``IterableDataset``, for a streamed one) with a column ``input_ids``.

    Args:
        name: ``"python-stdlib"`` (the running Python's standard library), ``"python-packages"`` (that and the
            installed scientific packages), ``"wikitext-103"``, ``"wikitext-2"``, ``"pile"`` (streamed),
            or the path of a text file or of a folder of them.
        tokenizer: a transformers tokenizer with an ``eos_token_id``.
        split: ``"train"``, ``"validation"`` or ``"test"``. A path has no splits: all of it is returned.
        block_size: tokens a row, at least 2.
        max_tokens: about this many tokens, spread evenly over all files (a stream gives its first).
        streaming: read a corpus of the hub while it is used, without downloading it; as the corpus needs, if None.
        revision: commit, tag or branch of a corpus on the hub; the newest, if None.

    Raises:
        ValueError: unknown name or split, a block size below 2, or too little text for one block.
        FileNotFoundError: a path, or a data set of the hub, that is not there.
        ConnectionError: a corpus of the hub without the hub.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}.")
    if block_size < 2:
        raise ValueError(f"block_size={block_size}: a block needs at least 2 tokens, one to read and one to predict.")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: give a positive number, or None for the whole corpus.")
    if not str(name):
        raise ValueError(f"The corpus name is empty. Choose one of {', '.join(NAMES)}, or give a path.")
    texts = _text_dataset(str(name), split, max_tokens, block_size, streaming, revision)
    lines = str(name) in HUB and HUB[str(name)].lines

    def to_blocks(batch):
        rows = batch["text"]
        if not lines:
            return {"input_ids": pack(filter(str.strip, rows), tokenizer, block_size)}
        pieces = ["".join(rows[i : i + LINES]) for i in range(0, len(rows), LINES)]
        return {"input_ids": pack(pieces, tokenizer, block_size, whole=True)}

    # A stream in small batches, so that none is long waited for; lines in large ones, which lose less at their ends.
    batch = 1000 if lines else 256 if hasattr(texts, "__len__") else 64
    columns = texts.column_names or ["text", "meta"]
    corpus = texts.map(to_blocks, batched=True, batch_size=batch, remove_columns=columns)
    rows = None if max_tokens is None else max(1, max_tokens // block_size)
    if hasattr(corpus, "__len__"):
        if len(corpus) == 0:
            raise ValueError(
                f"Corpus {str(name)!r} ({split}) is too short: not even one block of block_size={block_size} tokens. "
                "Give more text or a smaller block_size."
            )
        return corpus if rows is None else corpus.select(evenly_spaced(len(corpus), rows))
    return corpus if rows is None else corpus.take(rows)


def _text_dataset(name: str, split: str, max_tokens: int | None, block_size: int, streaming, revision):
    import datasets  # half a second: only where a corpus is loaded

    if name in ("python-stdlib", "python-packages"):
        files = python_files(name, split)
        return datasets.Dataset.from_dict(
            {"text": list(read_texts(files, window_for(max_tokens, len(files), block_size)))}
        )
    if name in HUB:
        return _hub_texts(name, split, streaming, revision)
    path = Path(name).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        texts = list(read_texts(files, window_for(max_tokens, len(files), block_size)))
        if not texts:
            raise ValueError(f"{path} holds no readable UTF-8 text. Give a text file or a folder of them.")
        return datasets.Dataset.from_dict({"text": texts})
    if "/" in name or "\\" in name or path.suffix:
        raise FileNotFoundError(f"No file or folder {name!r}. Give an existing path, or one of {', '.join(NAMES)}.")
    raise unknown_name_error("corpus", name, NAMES, ", or give a path")


def _hidden(path: Path, root: Path) -> bool:
    """In a folder such as .git or .venv."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _hub_texts(name: str, split: str, streaming: bool | None, revision: str | None):
    import datasets

    from . import hub

    corpus = HUB[name]
    streaming = corpus.streamed if streaming is None else streaming
    try:
        return datasets.load_dataset(
            corpus.repository, corpus.configuration, split=split, streaming=streaming, data_files=corpus.files,
            revision=revision,
        )  # fmt: skip
    except Exception as error:  # the hub's clients raise a dozen unrelated classes for "no network"
        instead = 'use "python-stdlib", which needs no network'
        raise hub.explain(error, f"{corpus.repository} ({split})", instead=instead) from error
