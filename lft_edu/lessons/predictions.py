"""Predict first: a question before the experiment, what the learner said, and the answer after it."""

import html
from typing import Any

from . import progress

_made: dict[str, "Prediction"] = {}  # by question, in this kernel, in the order in which they were asked


class Prediction:
    """A question that a learner may answer before the cell that answers it runs. Made by :func:`predict`."""

    def __init__(self, question: str, choices: tuple[str, ...]):
        self.question, self.choices = question, choices
        self.said: str | None = None
        self.right: bool | None = None  # None: not revealed, or nothing to compare with
        self._control: Any = None
        self._handle: Any = None

    def __repr__(self) -> str:
        listed = " / ".join(self.choices) if self.choices else "your own words"
        answer = f"You said: {self.said}" if self.said else f"Your prediction: {listed}?"
        return f"{self.question}\n{answer}"

    def _repr_html_(self) -> str:
        if self.said:
            answer = f"You said: <b>{html.escape(self.said)}</b>"
        else:
            answer = " · ".join(html.escape(choice) for choice in self.choices) or "Say it in your own words."
        return _box(f"<b>{html.escape(self.question)}</b><br>{answer}")

    def say(self, answer: str) -> None:
        """Record the learner's answer, show it in the place of the question, and keep it in the copy of the course."""
        self.said = str(answer).strip() or None
        if self._handle is not None:
            self._handle.update(self)
        progress.keep("predictions", self.question, {"said": self.said, "lesson": progress.lesson_of_notebook()})

    def _ask(self) -> None:
        """Show the question and, below it, buttons or a line to write in."""
        import ipywidgets
        from IPython.display import display

        self._handle = display(self, display_id=True)
        if self.choices:
            self._control = ipywidgets.ToggleButtons(
                options=self.choices, value=None, style={"button_width": "auto"}, layout={"width": "auto"}
            )
        else:
            self._control = ipywidgets.Text(placeholder="Write, then press Enter", continuous_update=False)
        self._control.observe(lambda change: self.say(change["new"]), "value")
        display(self._control)

    def reveal(self, answer: str, explanation: str = "") -> None:
        """Show what the learner said beside the answer. The buttons go: a saved notebook keeps the words only.

        Args:
            answer: one of the choices, or the answer in words.
            explanation: why, and what most people say.

        Raises:
            ValueError: the answer is not among the choices.
        """
        if self.choices and answer not in self.choices:
            raise ValueError(f"answer={answer!r} is not among the choices {', '.join(map(repr, self.choices))}.")
        if self._control is not None:
            self._control.close()
            self._control = None
        if self.said and self.choices:
            self.right = self.said == answer
        said = {True: "✓ As you said. ", False: f"✗ You said: {self.said}. ", None: f"You said: {self.said}. "}[
            self.right
        ]
        verdict = said if self.said else ""
        progress.keep(
            "predictions", self.question,
            {"said": self.said, "right": self.right, "lesson": progress.lesson_of_notebook()},
        )  # fmt: skip
        _display(f"{verdict}Answer: {answer}. {explanation}".strip(), _box(
            f"{html.escape(verdict)}Answer: <b>{html.escape(answer)}</b>.<br>{html.escape(explanation)}"
        ))  # fmt: skip


def predict(question: str, *choices: str) -> Prediction:
    """Ask for a prediction; the answer follows in a later cell, by :meth:`Prediction.reveal`.

    ``guess = lft.predict("As N grows, R …", "grows", "falls", "stays")``, and after the experiment
    ``guess.reveal("grows", "The denser the sample, the nearer the next stranger.")``

    Args:
        question: as the learner reads it.
        choices: the answers to choose from; none: a line to write in.

    Returns:
        The prediction. What was said earlier, in the learner's copy of the course, is there again.

    Raises:
        ValueError: one choice, or two that are the same.
    """
    if len(choices) == 1 or len(set(choices)) != len(choices):
        raise ValueError(f"choices={choices!r}: give none, or at least two that differ.")
    prediction = Prediction(question, choices)
    earlier = progress.load().get("predictions", {}).get(question)
    if isinstance(earlier, dict) and earlier.get("said") in (choices or (earlier.get("said"),)):
        prediction.said = earlier["said"]
    _made.pop(question, None)
    _made[question] = prediction
    prediction._ask()
    return prediction


def my_predictions() -> None:
    """Say how many of this page's predictions came true."""
    graded = [one for one in _made.values() if one.choices]
    made = [one for one in graded if one.said]
    right = sum(bool(one.right) for one in made)
    silent = len(graded) - len(made)
    text = f"You were right {right} of {len(made)}" if made else "You made no predictions"
    text += f"; {silent} not made." if made and silent else "."
    _display(text, _box(html.escape(text)))


def _box(inner: str) -> str:
    return f"<div style='border-left:4px solid #5E3C99;padding:4px 12px;margin:4px 0;max-width:46em'>{inner}</div>"


def _display(text: str, page: str) -> None:
    from IPython.display import display

    # JupyterLab shows the first line beside a folded output's dots: a blank one tells nothing
    display({"text/plain": text, "text/html": f" \n{page}"}, raw=True)
