"""Progress bars: tqdm in a terminal, text that vanishes in a notebook."""

import contextlib

import IPython.display
import pytest

from lft_edu.support import progress
from lft_edu.support.progress import NotebookBar, in_notebook, progress_bar, quiet_libraries


@pytest.fixture
def shown(monkeypatch):
    """A notebook whose outputs are kept in a list: the bundle displayed, then its updates."""
    bundles = []

    class Handle:
        def update(self, bundle, raw):
            assert raw
            bundles.append(bundle)

    def display(bundle, raw, display_id):
        assert raw
        assert display_id
        bundles.append(bundle)
        return Handle()

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "WAIT", 0)
    monkeypatch.setattr(IPython.display, "display", display)
    return bundles


def test_a_bar_in_a_notebook_is_text_and_leaves_nothing(shown):
    assert list(progress_bar([1, 2, 3], desc="scan", mininterval=0, delay=0)) == [1, 2, 3]
    assert "scan" in shown[0]["text/plain"]
    assert "3/3" in shown[-2]["text/plain"]
    assert shown[-1] == {}  # an output without data is not drawn
    assert all(set(bundle) <= {"text/plain"} for bundle in shown)


def test_a_bar_that_is_moved_by_hand_and_stopped_by_an_error_leaves_nothing(shown):
    with contextlib.suppress(KeyError), progress_bar(total=10, desc="train", mininterval=0, delay=0) as bar:
        bar.update(4)
        bar.set_postfix_str("loss 0.5")
        raise KeyError
    assert "loss 0.5" in shown[-2]["text/plain"]
    assert shown[-1] == {}


def test_short_work_and_a_disabled_bar_show_nothing(shown):
    assert list(progress_bar(range(5), disable=True, mininterval=0, delay=0)) == [0, 1, 2, 3, 4]
    list(progress_bar(range(5), mininterval=0, delay=60))
    assert not shown


def test_a_terminal_has_an_ordinary_bar(capsys):
    assert not in_notebook()
    bar = progress_bar(range(3), desc="evaluate", unit="batch")
    assert not isinstance(bar, NotebookBar)
    assert list(bar) == [0, 1, 2]
    assert "evaluate: 100%" in capsys.readouterr().err


def test_libraries_are_quiet_in_a_notebook_only_while_they_load(monkeypatch):
    import datasets
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    for notebook in (True, False):
        monkeypatch.setattr(progress, "in_notebook", lambda: notebook)  # noqa: B023
        logging.enable_progress_bar()
        datasets.enable_progress_bars()
        with quiet_libraries():
            assert datasets.are_progress_bars_disabled() == (not logging.is_progress_bar_enabled()) == notebook
        assert logging.is_progress_bar_enabled()
        assert not datasets.are_progress_bars_disabled()
    if not before[0]:
        logging.disable_progress_bar()
    if before[1]:
        datasets.disable_progress_bars()
