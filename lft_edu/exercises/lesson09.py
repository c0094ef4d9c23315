"""Check of lesson 09: texts that differ in one thing only."""

import ast
import re
from functools import cache

import torch

from .checking import Unfilled, Wrong, describe, exercise

PAIRS, DEEPER = 8, 2  # how many pairs, and by how many blocks the second text of a pair must be deeper


@cache
def bundled():
    from ..loading.teachers import load_student, load_teacher

    teacher, tokenizer = load_teacher("bundled")
    return teacher, tokenizer, load_student("bundled/flow-walking-6-18", teacher)


def depth_of(text: str) -> int:
    """The blocks that are open where the last line stands, by its indentation in fours."""
    last = text.split("\n")[-1]
    return (len(last) - len(last.lstrip(" "))) // 4


def agreement(texts: list[str]) -> int:
    """The number of texts after which teacher and student find the same token most likely."""
    teacher, tokenizer, student = bundled()
    same = 0
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            mine, theirs = (model(input_ids=ids).logits[0, -1].argmax() for model in (student, teacher))
            same += bool(mine == theirs)
    return same


@exercise("9.1", "A clean test set", difficulty=2, minutes=20)
def clean(answer):
    yield f"at least {PAIRS} pairs of texts, (shallow, deep), all different"
    pairs = answer()
    if not isinstance(pairs, (list, tuple)):
        raise Wrong(f"You returned {describe(pairs)}: return a list of pairs.")
    if not pairs:
        raise Unfilled("You returned an empty list: there are no pairs yet.")
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Wrong(f"One of the pairs is {describe(pair)}: each is (shallow text, deep text).")
    if len({text for pair in pairs for text in pair}) < 2 * PAIRS:
        raise Wrong(f"You returned {len(pairs)} pairs; at least {PAIRS} are needed, and no text twice.")

    yield "each text is Python, and ends with the colon that opens a block"
    for text in (text for pair in pairs for text in pair):
        if not text.endswith(":"):
            raise Wrong(f"This text does not end with a colon, after which a line must be indented: {text[-40:]!r}")
        try:
            ast.parse(f"{text} pass")
        except (SyntaxError, ValueError) as error:
            raise Wrong(f"This is not the beginning of Python code ({error}):\n{text}") from None

    yield f"the deep one is at least {DEEPER} blocks deeper"
    for shallow, deep in pairs:
        if depth_of(deep) - depth_of(shallow) < DEEPER:
            raise Wrong(
                f"The last line of the deep text stands {depth_of(deep)} blocks deep, that of the shallow one "
                f"{depth_of(shallow)}:\n{shallow}\n---\n{deep}"
            )

    yield "both have the same words"
    for shallow, deep in pairs:
        mine, theirs = (sorted(re.findall(r"\w+|[^\w\s]", text)) for text in (shallow, deep))
        if mine != theirs:
            only = sorted(set(mine) ^ set(theirs)) or ["the same words, but not equally often"]
            raise Wrong(
                "If the deep text has other words, a difference may be due to the words. Use the same lines in another "
                f"arrangement. In one of the two only: {', '.join(only[:6])}"
            )
    yield "the same last line"
    for shallow, deep in pairs:
        if shallow.split("\n")[-1].strip() != deep.split("\n")[-1].strip():
            raise Wrong(
                "What is predicted follows the last line: it must be the same in both, apart from its indentation.\n"
                f"{shallow}\n---\n{deep}"
            )
    yield "the same number of tokens"
    tokenizer = bundled()[1]
    for shallow, deep in pairs:
        lengths = [len(tokenizer(text)["input_ids"]) for text in (shallow, deep)]
        if lengths[0] != lengths[1]:
            raise Wrong(
                f"{lengths[0]} and {lengths[1]} tokens: a longer text is harder by itself. A word at the start of a "
                "line is split differently from one after spaces: put everything into a function, so that every line "
                f"is indented.\n{shallow}\n---\n{deep}"
            )
    found = [agreement([pair[i] for pair in pairs]) for i in (0, 1)]
    yield (
        f"measured: Flow Walking on 6–18 agrees with its teacher after {found[0]} of {len(pairs)} shallow texts and "
        f"{found[1]} of {len(pairs)} deep ones"
    )
