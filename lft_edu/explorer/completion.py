"""Compare completions of one text by several models."""

import html
from typing import TYPE_CHECKING

from ..text import complete

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def side_by_side(models: dict, tokenizer: "PreTrainedTokenizerBase", text: str, tokens: int = 40) -> str:
    """Return an HTML table of completions of one text by several models, with all text escaped.

    Args:
        models: heading → model.
        tokens: at most this many new tokens each.
    """
    style = "vertical-align:top;text-align:left;padding:6px 14px 6px 0"
    cells, heads = [], []
    for name, model in models.items():
        heads.append(f"<th scope='col' style='{style}'>{html.escape(name)}</th>")
        new = html.escape(complete(model, tokenizer, text, tokens))
        cells.append(
            f"<td style='{style}'><pre style='margin:0;word-break:normal'>{html.escape(text)}<b>{new}</b></pre></td>"
        )
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody><tr>{''.join(cells)}</tr></tbody></table>"


class CompletionApp:
    """A text box, a length slider and each model's completion. Displays itself as the last line of a cell.

    Args:
        models: heading → model.
        text: initial text.
    """

    def __init__(self, models: dict, tokenizer, text: str = "def __init__(self"):
        import ipywidgets as widgets

        self.models, self.tokenizer = models, tokenizer
        wide = widgets.Layout(width="100%", max_width="900px")
        self.text = widgets.Textarea(value=text, description="Python:", layout=wide, rows=3)
        self.length = widgets.IntSlider(value=30, min=1, max=80, description="new tokens:", continuous_update=False)
        self.button = widgets.Button(
            description="Complete", button_style="primary", tooltip="Complete the text with every model"
        )
        self.result = widgets.HTML()
        self.button.on_click(lambda _: self.update())
        self.length.observe(lambda _: self.update(), "value")
        self.view = widgets.VBox([self.text, widgets.HBox([self.length, self.button]), self.result])
        self.update()

    def update(self) -> None:
        """Complete the text again; show an error in place of the result."""
        self.button.disabled = True
        try:
            self.result.value = side_by_side(self.models, self.tokenizer, self.text.value, self.length.value)
        except (ValueError, IndexError, RuntimeError) as error:
            self.result.value = f"<p role='alert' style='color:#B00020'>{html.escape(str(error))}</p>"
        finally:
            self.button.disabled = False

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)
