"""Check of exercise 4.6: a text on which a flow fails. It loads the bundled teacher and a student."""

from functools import cache

from .checking import Wrong, describe, exercise

# on evaluation data: KL 0.24 nats per token, the teacher's own loss 2.7 (assets/results/ladder.json).
KL, LOSS = 0.5, 1.3


@cache
def bundled():
    """Load the bundled teacher, its Flow Walking student over layers 6–18, and the tokenizer."""
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
        raise Wrong("You returned a string that is not valid text: it cannot be encoded as UTF-8.") from None
    if any(mark in value for mark in tokenizer.all_special_tokens):
        raise Wrong("You returned a text with a special token in it: write ordinary text.")
    if not 10 <= tokens <= 64:
        many = f"{tokens} tokens" if tokens < 2000 else f"{len(value):,} characters"
        raise Wrong(
            f"You returned a text of {many}: give 10 to 64 tokens, so that one rare token does not decide the mean."
        )
    there, here = (capture(model, tokenizer, value) for model in (teacher, student))
    kl, loss = divergence(there, here), float(there.loss().mean())
    worst = ", ".join(f"{there.tokens[i]!r} {kl[i]:.1f}" for i in kl.argsort(descending=True)[:4].tolist())
    found = (
        f"Yours, {tokens} tokens: KL {kl.mean():.2f} nats per token (wanted: at least {KL}; evaluation code: 0.24), "
        f"the teacher's loss {loss:.2f} (wanted: at most {LOSS}; evaluation code: 2.7).\nThe student differs most "
        f"after: {worst}."
    )
    yield f"the teacher predicts well: at most {LOSS} nats per token, less than half of its usual loss"
    if loss > LOSS:
        raise Wrong(
            f"The teacher itself predicts this text badly. Put text that it predicts well around the failure.\n{found}"
        )
    yield f"the student does not follow: a KL of at least {KL}, more than twice the usual"
    if kl.mean() < KL:
        raise Wrong(f"The student follows too well.\n{found}")
