"""Lesson 09: every typical mistake in a test set gets the message meant for it."""

import pytest

from lft_edu.exercises import check, lesson09

START = "def load(self):"
SHALLOW = [START, "    if x:", "        x = 0", "    while True:", "        x = 0", "    for i in range(n):"]
DEEP = [START, "    x = 0", "    x = 0", "    if x:", "        while True:", "            for i in range(n):"]
NAMES = ("load", "main", "check", "update", "read", "write", "close", "open")


def pairs(shallow=SHALLOW, deep=DEEP, names=NAMES):
    return lambda: [tuple("\n".join(text).replace("load", name) for text in (shallow, deep)) for name in names]


def with_pass(lines):
    """At the start of a line the word is two tokens, after spaces one."""
    return [line.replace("x = 0", "pass") for line in lines]


MISTAKES = [
    (list, "there are no pairs yet"),
    (lambda: "pairs", "return a list of pairs"),
    (lambda: [("a:",)] * 8, "(shallow text, deep text)"),
    (lambda: [("a:", 3)] * 8, "(shallow text, deep text)"),
    (pairs(names=NAMES[:3]), "at least 8 are needed"),
    (pairs(names=["load"] * 8), "no text twice"),
    (pairs(deep=[*DEEP, "                x = 0"]), "does not end with a colon"),
    (pairs(deep=[START, "  x = 0", "    x = 0", *DEEP[3:]]), "not the beginning of Python code"),
    (pairs(deep=SHALLOW, shallow=DEEP), "stands 1 blocks deep, that of the shallow one 3"),
    (pairs(deep=[*DEEP[:2], "    y = 0", *DEEP[3:]]), "In one of the two only: y"),
    (pairs(deep=[START, "    x = 0", *DEEP[3:]]), "not equally often"),
    (
        pairs(deep=[*DEEP[:3], "    for i in range(n):", "        while True:", "            if x:"]),
        "it must be the same in both",
    ),
    (pairs(with_pass(SHALLOW), with_pass(["x = 0", "x = 0", START, *DEEP[3:]])), "tokens: a longer text"),
]


@pytest.mark.parametrize(("answer", "words"), MISTAKES)
def test_typical_mistakes_in_a_test_set_get_their_message(answer, words):
    report = check("9.1", answer)
    assert not report
    assert words in report.message


def test_a_clean_set_is_measured():
    report = check("9.1", pairs())
    assert report, report
    assert "of 8 shallow texts" in report.passed[-1]


def test_agreement_counts_texts():
    texts = ["\n".join(SHALLOW), "\n".join(DEEP)]
    assert lesson09.agreement(texts) == sum(lesson09.agreement([text]) for text in texts)
    assert [lesson09.depth_of(text) for text in texts] == [1, 3]
