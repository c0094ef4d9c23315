"""Lesson 00: every misreading of the abstract gets the message meant for it. (Solutions: test_exercises.py.)"""

import pytest
from test_exercises import solutions

from lft_edu.exercises import check, lesson00
from lft_edu.recipes import real_report


def reading(**changes):
    return lambda: solutions()["0.1"]() | changes


MISTAKES = [
    (lambda: "AD", "return a dict with the keys"),
    (lambda: {"ratio": (1, 1)}, "without replaced, fewer, follows, absent"),
    (reading(replaced=0.25), "must have shape (2,)"),
    (reading(replaced=(25.0, 50.0)), "not in percent"),
    (reading(replaced=(0.75, 0.5)), "fraction that stays"),
    (reading(replaced=(5 / 24, 11 / 24)), "the next question"),
    (reading(replaced=(2 / 24, 3 / 24)), "skipped layers"),
    (reading(replaced=(0.5, 0.25)), "Flow matching comes first"),
    (reading(fewer=(6, 12)), "it is one layer itself"),
    (reading(fewer=(19, 13)), "layers the student has"),
    (reading(fewer=(2, 3)), "skipped layers"),
    (reading(ratio=(0.529 / 0.407, 0.932 / 0.736)), "other way round"),
    (reading(ratio=(0.122, 0.196)), "That is the difference"),
    (reading(ratio=(0.23, 0.21)), "1 minus the ratio"),
    (reading(ratio=(0.407 / 0.932, 0.736 / 0.529)), "Largest difference"),
    (reading(follows="ABD"), "B does not follow. The two methods"),
    (reading(follows=["A", "C", "D"]), "C does not follow. No time"),
    (reading(follows="A, D, E"), "E does not follow. No ordinary layer"),
    (reading(follows={"A", "D", "F"}), "F does not follow. It is likely"),
    (reading(follows="adg"), "G does not follow. There is one model"),
    (reading(follows="D"), "A does follow"),
    (reading(follows="A"), "D does follow"),
    (reading(follows="AX"), "write one or more of the letters A, B, C, D, E, F, G"),
    (reading(follows=""), "write one or more of the letters"),
    (reading(follows=3), "write letters"),
    (reading(absent="P"), "That is 0"),
    (reading(absent="R"), "not whether the *flow*"),
]


@pytest.mark.parametrize(("answer", "words"), MISTAKES)
def test_misreadings_get_their_message(answer, words):
    report = check("0.1", answer)
    assert not report
    assert words in report.message


def test_rounded_figures_pass():
    assert check("0.1", reading(ratio=(0.77, 0.79), follows=["d", "a"], absent=("Q",)))


def test_the_figures_are_those_of_the_tables():
    """One source of the paper's numbers: what lesson 08 and README put beside ours."""
    for kl, skipped, skip_kl, kind in zip(
        lesson00.KL, lesson00.SKIPPED, lesson00.SKIP_KL, ("flow-matching", "flow-walking"), strict=True
    ):
        assert real_report.PAPER[kind] == (kl, skipped, skip_kl)
