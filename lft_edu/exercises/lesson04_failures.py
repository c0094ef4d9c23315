"""The check of exercise 4.6: a text on which a flow fails. It takes the bundled teacher and a student."""

from functools import cache

from .checking import Wrong, describe, exercise

# On held-out code: KL 0.24 nats a token, the teacher's own loss 2.7 (assets/results/ladder.json).
KL, LOSS = 0.5, 1.3


@cache
def bundled():
    """The bundled teacher, its Flow-Walking student over layers 6–18, and the tokenizer."""
    from ..loading import teachers

    teacher, tokenizer = teachers.load_teacher("bundled", device="cpu")
    return teacher, teachers.load_student("bundled/flow-walking-6-18", teacher), tokenizer


@exercise("4.6", "Where the flow fails", difficulty=3, minutes=20)
def text(answer):
    from ..trajectories import capture, divergence

    yield "a text of 10 to 64 tokens"
    value = answer()
    if not isinstance(value, str):
        raise Wrong(f"You returned {describe(value)}: return a string.")
    teacher, student, tokenizer = bundled()
    try:
        tokens = len(tokenizer(value)["input_ids"]) if len(value) < 2000 else 2000
    except (TypeError, UnicodeError):
        raise Wrong("You returned a string that is no valid text: it cannot be written as UTF-8.") from None
    if any(mark in value for mark in tokenizer.all_special_tokens):
        raise Wrong("You returned a text with a special token in it: write ordinary text.")
    if not 10 <= tokens <= 64:
        many = f"{tokens} tokens" if tokens < 2000 else f"{len(value):,} characters"
        raise Wrong(f"You returned a text of {many}: give 10 to 64 tokens, or one rare place decides everything.")
    there, here = (capture(model, tokenizer, value) for model in (teacher, student))
    kl, loss = divergence(there, here), float(there.loss().mean())
    worst = ", ".join(f"{there.tokens[i]!r} {kl[i]:.1f}" for i in kl.argsort(descending=True)[:4].tolist())
    found = (
        f"Yours, {tokens} tokens: KL {kl.mean():.2f} nats a token (wanted: at least {KL}; held-out code: 0.24), the "
        f"teacher's loss {loss:.2f} (wanted: at most {LOSS}; held-out code: 2.7).\n"
        f"The student differs most after: {worst}."
    )
    yield f"the teacher knows its way: at most {LOSS} nats a token, less than half of its usual loss"
    if loss > LOSS:
        raise Wrong(
            f"On average the teacher is lost here itself. Around one bad place it needs others it knows.\n{found}"
        )
    yield f"the student does not: a KL of at least {KL}, more than twice the usual"
    if kl.mean() < KL:
        raise Wrong(f"The student follows too well.\n{found}")
