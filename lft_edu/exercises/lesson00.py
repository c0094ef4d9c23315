"""Check of lesson 00: what four figures of the paper's abstract say, and what they do not."""

import torch

from .checking import Wrong, close, describe, exercise, tensor

LAYERS, REPLACED, SKIPPED = 24, (6, 12), (2, 3)  # Pythia-410M; layers replaced by one operator, layers left out
KL, SKIP_KL = (0.407, 0.736), (0.529, 0.932)
ANSWERS = ("replaced", "fewer", "ratio", "follows", "absent")

NOT_SAID = {
    "B": "The two methods replaced different numbers of layers, 6 and 12: nothing here compares them on the same ones.",
    "C": "No time is among these figures, nor how often an operator is evaluated per token. Six evaluations of one "
    "layer cost as much as six layers.",
    "E": "No ordinary layer was trained for comparison. Skipping does not train anything.",
    "F": "It is likely, but it is not among these figures: skipping was measured for 2 and 3 layers only.",
    "G": "There is one model here.",
}
SAID = {
    "A": "0.407 is less than 0.529, and both are distances from the same teacher.",
    "D": "Twelve layers and an operator make 13; 24 without 3 make 21; and 0.736 is less than 0.932.",
}
NOT_ABSENT = {
    "P": "That is 0, whatever the model: there is nothing to measure.",
    "R": "It would say how many skipped layers the students are worth, but not whether the *flow* makes them so.",
}


@exercise("0.1", "Read the abstract", difficulty=1, minutes=10)
def abstract(answer):
    yield f"a dict with the keys {', '.join(ANSWERS)}"
    found = answer()
    if not isinstance(found, dict):
        raise Wrong(f"You returned {describe(found)}: return a dict with the keys {', '.join(ANSWERS)}.")
    if lacking := [key for key in ANSWERS if key not in found]:
        raise Wrong(f"You returned a dict without {', '.join(lacking)}.")

    def compare(key, right, meaning, mistakes, tolerance=1e-3):
        value = tensor(found[key], (2,), key, "two numbers, first for flow matching, then for Flow Walking")
        turned = {"Flow matching comes first, then Flow Walking.": right[::-1]}
        wrong = {message: torch.tensor(outcome) for message, outcome in (mistakes | turned).items()}
        close(value, right, meaning, wrong, tolerance)

    yield "replaced: the fraction of the teacher's layers that one operator stands for"
    share = tuple(n / LAYERS for n in REPLACED)
    compare("replaced", share, "the fraction", {
        "As fractions of 1, not in percent.": tuple(100 * s for s in share),
        "That is the fraction that stays.": tuple(1 - s for s in share),
        "That is by how much the student is smaller: the next question. Replaced are 6 and 12 of 24.":
            tuple((n - 1) / LAYERS for n in REPLACED),
        "Those are the skipped layers that it is compared with.": tuple(n / LAYERS for n in SKIPPED),
    })  # fmt: skip
    yield "fewer: by how many layers the student is smaller than its teacher"
    fewer = tuple(float(n - 1) for n in REPLACED)
    compare("fewer", fewer, "the number of layers", {
        "An operator stands in their place, and it is one layer itself.": tuple(float(n) for n in REPLACED),
        "That is how many layers the student has.": tuple(LAYERS - n for n in fewer),
        "Those are the skipped layers that it is compared with.": tuple(float(n) for n in SKIPPED),
    })  # fmt: skip
    yield "ratio: the operator's KL over that of the skipping it is compared with"
    ratio = tuple(a / b for a, b in zip(KL, SKIP_KL, strict=True))
    compare("ratio", ratio, "the ratio", {
        "The other way round: the operator's KL over that of skipping.": tuple(1 / r for r in ratio),
        "That is the difference. A ratio can be compared between models, a difference of nats hardly.":
            tuple(b - a for a, b in zip(KL, SKIP_KL, strict=True)),
        "That is by how much it is smaller: 1 minus the ratio.": tuple(1 - r for r in ratio),
    }, tolerance=6e-3)  # fmt: skip

    yield "follows: the statements that these figures support, and no others"
    letters = _letters(found["follows"], {*NOT_SAID, *SAID}, "follows")
    for letter in sorted(letters & set(NOT_SAID)):
        raise Wrong(f"{letter} does not follow. {NOT_SAID[letter]}")
    for letter in sorted(set(SAID) - letters):
        raise Wrong(f"{letter} does follow. {SAID[letter]}")
    yield "absent: the comparison that would show whether a flow is needed"
    letters = _letters(found["absent"], {*NOT_ABSENT, "Q"}, "absent")
    for letter in sorted(letters & set(NOT_ABSENT)):
        raise Wrong(f"Not {letter}. {NOT_ABSENT[letter]}")


def _letters(value, known: set[str], key: str) -> set[str]:
    """Return the letters in an answer, "AB" or a collection of letters."""
    if not isinstance(value, str | list | tuple | set) or not all(isinstance(one, str) for one in value):
        raise Wrong(f"{key} is {describe(value)}: write letters, such as 'PQ'.")
    letters = {one for one in "".join(value).upper() if one not in " ,;"}
    if not letters or letters - known:
        raise Wrong(f"{key} holds {sorted(letters)}: write one or more of the letters {', '.join(sorted(known))}.")
    return letters
