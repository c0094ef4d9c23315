"""Progress bars: on stderr in a terminal, and in a notebook as text that vanishes when the work is done.

``tqdm.auto`` and the bars of transformers, datasets and huggingface_hub are widgets in a notebook. Each leaves a widget
view in the saved file, which is shown as an error when the file is opened again without the kernel that made it.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm.std import tqdm

WAIT = 1.0  # seconds: shorter work shows no bar, so most calls in a notebook leave no output at all


class NotebookBar(tqdm):
    """A bar in one output of a notebook's cell, emptied at the end: the saved file then shows nothing."""

    def __init__(self, *args, **options):
        self.output = None  # before super, which may refresh
        super().__init__(*args, **{"mininterval": 0.5, "delay": WAIT, "ncols": 88, **options, "gui": True})

    def display(self, msg=None, pos=None, **_):
        """Write the bar; ``msg=""`` empties the output, as in tqdm."""
        from IPython.display import display

        if msg is None and (self._time() < self.start_t + self.delay):
            return
        text = str(self) if msg is None else msg
        bundle = {"text/plain": text} if text else {}
        if self.output is not None:
            self.output.update(bundle, raw=True)
        elif text:
            self.output = display(bundle, raw=True, display_id=True)

    def close(self):
        """Empty the output."""
        if not self.disable and self.output is not None:
            self.display("")
        self.disable = True


def progress_bar(iterable: Iterable | None = None, **options) -> tqdm:
    """Return a progress bar, with tqdm's arguments: ``total``, ``desc``, ``unit``, ``disable``, ….

    Every bar of the library is made here. It iterates over ``iterable``, or is moved by ``update``.
    """
    return (NotebookBar if in_notebook() else tqdm)(iterable, **{"mininterval": 1.0, **options})


def in_notebook() -> bool:
    """Is this a Jupyter kernel? Without importing IPython where nothing else has."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switch the bars of transformers and datasets off in a notebook, such as "Loading weights" and "Map"."""
    if not in_notebook():
        yield
        return
    from transformers.utils import logging

    datasets = sys.modules.get("datasets")  # half a second to import: its bars appear only where it was
    drawing, mapping = logging.is_progress_bar_enabled(), datasets and not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if mapping:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawing:
            logging.enable_progress_bar()
        if mapping:
            datasets.enable_progress_bars()
