"""The corpus "package-docs": English that is on every machine, split by path, without near-duplicates."""

import sysconfig

import pytest

import lft_edu as lft
from lft_edu.loading import corpora, documentation

PROSE = "The river runs from the mountains to the sea, and on its way it passes through three old towns. " * 4


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages instead of this machine's."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: dict.fromkeys(("purelib", "platlib", "stdlib"), str(tmp_path)))
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def everything() -> list[str]:
    return [text for split in corpora.SPLITS for text in documentation.documents(split)]


def test_what_is_documentation(site):
    write(site / "a-1.0.dist-info" / "METADATA", f"Name: a\nVersion: 1.0\n\nabout a. {PROSE}")
    write(site / "a-1.0.dist-info" / "licenses" / "LICENSE.txt", f"license. {PROSE}")
    write(site / "a" / "README.md", f"readme. {PROSE}")
    write(site / "a" / "AUTHORS.rst", f"authors. {PROSE}")
    write(site / "a" / "tests" / "notes.md", f"tests. {PROSE}")
    write(site / "a" / "core.py", f'def f():\n    """docstring. {PROSE}\n\n    Indented.\n    """\n    return 1\n')
    write(site / "a" / "table.txt", "0.1 0.2 0.3 0.4\n" * 100)
    write(site / "a" / "latin.txt", "")
    (site / "a" / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    starts = sorted(text.split(".")[0] for text in everything())
    assert starts == ["about a", "docstring", "readme"]
    (docstring,) = (text for text in everything() if text.startswith("docstring"))
    assert "return 1" not in docstring
    assert docstring.endswith("\n\nIndented.")


def test_a_paragraph_is_kept_once_over_all_splits(site):
    for i in range(40):
        write(
            site / f"p{i}" / "README.md",
            f"Number {i}. {PROSE}\n\nOwn words of package {'abcdefghij'[i % 10] * (i + 9)}. {PROSE[::-1]}",
        )
    whole = "\n".join(everything())
    assert whole.count(PROSE.strip()) == 1, "the same but for its number"
    sizes = {split: len(list(documentation.documents(split))) for split in corpora.SPLITS}
    assert sum(sizes.values()) == 40


def test_a_new_version_stays_in_its_split(site):
    def place():
        return next(split for split in corpora.SPLITS if list(documentation.documents(split)))

    write(site / "name-1.0.dist-info" / "METADATA", f"Name: n\n\n{PROSE}")
    before = place()
    (site / "name-1.0.dist-info").rename(site / "name-2.7.1.dist-info")
    assert place() == before


def test_enough_is_enough(site):
    for i in range(60):
        write(site / f"p{i}" / "README.md", f"{'abcdefghij'[i % 10] * (i + 9)} {PROSE[i:]}\n")
    few = list(documentation.documents("train", characters=1000))
    assert few == list(documentation.documents("train"))[: len(few)]
    assert 1000 <= sum(map(len, few)) < 1000 + 2 * len(PROSE)


def test_it_is_english_and_on_this_machine(bundled):
    _, tokenizer = bundled
    corpus = lft.load_corpus("package-docs", tokenizer, "test", block_size=128, max_tokens=4096)
    assert len(corpus) == 32
    text = tokenizer.decode([token for row in corpus["input_ids"][:] for token in row])
    assert text.lower().count(" the ") > 30
    assert corpora.token_sequences("package-docs", tokenizer, "test", 128, max_tokens=4096).shape == (32, 128)
