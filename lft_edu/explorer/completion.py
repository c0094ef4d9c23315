"""Compare completions of one text by several models."""

import html
import re
import threading
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch

from ..support.progress import in_notebook
from ..text import complete
from .frame import ALERT, WIDE, App, columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = (
    "x = [1, 2, 3",  # the bundled teacher goes on counting, up to 8; its students stay at 4
    "# Copyright",
    "def __init__(self",
    "def area(width, height):\n    return ",
    "for i in range(",
    "while True:\n    try:\n        ",
)
STYLE = "vertical-align:top;text-align:left;padding:4px 14px 4px 0"
PRE = "margin:0;white-space:pre-wrap;word-break:normal;overflow-wrap:break-word;tab-size:4"
MARK = "background:#ffdf80;color:#222"  # readable in JupyterLab's dark theme, too


def side_by_side(models: dict, tokenizer: "PreTrainedTokenizerBase", text: str, tokens: int = 40) -> str:
    """Return an HTML table of completions of one text by several models, with all text escaped.

    In all but the first, the place where it first differs from the first model's is marked.

    Args:
        models: heading → model.
        tokens: at most this many new tokens each.
    """
    return table_of({name: complete(model, tokenizer, text, tokens) for name, model in models.items()}, text)


def table_of(completions: dict[str, str], text: str) -> str:
    """Return an HTML table of completions, heading → new part of ``text``, with all text escaped."""
    heads, cells = [], []
    first = next(iter(completions.values()), "")
    for name, new in completions.items():
        share = f"width:{100 // len(completions)}%"
        heads.append(f"<th scope='col' style='{STYLE};{share}'>{html.escape(name)}</th>")
        body = f"{html.escape(text)}<b>{marked(new, first)}</b>"
        cells.append(f"<td style='{STYLE}'><pre style='{PRE}'>{body}</pre></td>")
    table = f"<table style='table-layout:fixed;width:100%;max-width:1100px'><thead><tr>{''.join(heads)}</tr></thead>"
    return f"{table}<tbody><tr>{''.join(cells)}</tr></tbody></table>"


def marked(new: str, first: str) -> str:
    """Return a completion, escaped, with a mark where it first differs from ``first``."""
    differing = (i for i, (a, b) in enumerate(zip(new, first, strict=False)) if a != b)
    same = next(differing, min(len(new), len(first)))
    if same == len(new):  # equal, or it stops earlier
        return html.escape(new)
    word = any(re.match(r"\w", text[same : same + 1]) for text in (new, first))  # inside one: mark all of it
    start = len(new[:same]) - len(re.findall(r"\w*$", new[:same])[0]) if word else same
    end = max(same + 1, start + len(re.findall(r"^\w*", new[start:])[0]))
    parts = new[:start], new[start:end], new[end:]
    before, other, after = map(html.escape, parts)
    return f"{before}<mark style='{MARK}' title='the first difference'>{other}</mark>{after}"


class CompletionApp(App):
    """A text box, examples, length and temperature, and each model's completion.

    In a notebook the models work in a thread, one after the other, so that *Stop* works.

    Args:
        models: heading → model.
        text: initial text.
    """

    def __init__(self, models: dict, tokenizer: "PreTrainedTokenizerBase", text: str = EXAMPLES[0]):
        super().__init__()
        self.models, self.tokenizer = models, tokenizer
        self.thread: threading.Thread | None = None
        self.stopped = threading.Event()
        wide = widgets.Layout(width="auto")
        self.text = widgets.Textarea(value=text, placeholder="the first lines of a text", layout=wide, rows=4)
        examples = [*EXAMPLES] if text in EXAMPLES else [text, *EXAMPLES]
        self.examples = [self._example(example) for example in examples]
        self.length = widgets.IntSlider(
            value=30, min=1, max=80, description="new tokens", continuous_update=False, **WIDE
        )
        self.temperature = widgets.FloatSlider(
            value=0, min=0, max=1.5, step=0.1, description="temperature", continuous_update=False, **WIDE
        )
        self.button = widgets.Button(
            description="Complete", button_style="primary", tooltip="Complete the text with every model, or stop"
        )
        self.result = widgets.HTML()
        self.button.on_click(lambda _: self.stop() if self.running else self.update())
        for control in (self.length, self.temperature):
            control.observe(lambda _: self.update(), "value")
        listed = widgets.HBox(self.examples, layout=widgets.Layout(flex_flow="row wrap"))
        note = widgets.HTML(
            "<div style='line-height:1.4'>At temperature 0 each token is the most probable one. Examples:</div>"
        )
        controls = [self.text, self.length, self.temperature, self.button, note, listed]
        self.view = columns((controls, "0 1 320px"), ([self.result, self.status], "1 1 300px"))
        self.update(wait=True)

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def _example(self, text: str) -> widgets.Button:
        first = (text.strip() or text).partition("\n")[0]
        button = widgets.Button(description=first[:24], tooltip=text, layout=widgets.Layout(width="auto"))
        button.on_click(lambda _: self.show(text))
        return button

    def show(self, text: str) -> None:
        """Complete another text."""
        self.text.value = text
        self.update()

    def stop(self) -> None:
        """Stop after the current token; what has been written stays."""
        self.stopped.set()

    def update(self, wait: bool = False) -> None:
        """Complete the text again; show an error in place of the result.

        Args:
            wait: return when it is done, as always outside notebooks.
        """
        if self.running:
            self.stop()
            self.thread.join()  # type: ignore[union-attr]  # running: there is one
        self.stopped.clear()
        self.thread = threading.Thread(target=self._complete, daemon=True)
        self.thread.start()
        if wait or not in_notebook():
            self.thread.join()

    def _complete(self) -> None:
        self.button.description, self.button.button_style = "Stop", "warning"
        text, found = self.text.value, {}
        how = self.length.value, self.temperature.value
        try:
            for name, model in self.models.items():
                found[name] = complete(model, self.tokenizer, text, *how, stopping_criteria=[self._should_stop])
                waiting = {other: " …" for other in self.models if other not in found and not self.stopped.is_set()}
                self.result.value = table_of(found | waiting, text)
                if self.stopped.is_set():
                    self.say("Stopped.")
                    return
            same = len(set(found.values())) == 1 and len(found) > 1
            marks = "All write the same." if same else f"Marked: where it first differs from {next(iter(found), '')}."
            self.say(marks if len(found) > 1 else "")
        except (ValueError, IndexError, RuntimeError) as error:
            self.result.value = f"<p role='alert' style='color:{ALERT}'>{html.escape(str(error))}</p>"
            self.status.value = ""
        finally:
            self.button.description, self.button.button_style = "Complete", "primary"

    def _should_stop(self, ids: torch.Tensor, scores, **_) -> torch.Tensor:
        """Tell ``generate`` to stop, for each row of ``ids``."""
        return torch.full((len(ids),), self.stopped.is_set(), device=ids.device)

    def picture(self) -> str:
        """Return the completions as a table: what the application showed at first."""
        return self.result.value
