"""What the server's extension drops from a notebook before it is saved."""

import pytest

from lft_edu.support.stored import SENTENCE, VIEW, _jupyter_server_extension_points, before_saving, without_views


def notebook(*bundles: dict, **metadata) -> dict:
    outputs = [{"output_type": "display_data", "data": bundle, "metadata": {}} for bundle in bundles]
    outputs.append({"output_type": "stream", "name": "stdout", "text": "x"})
    cells = [{"cell_type": "markdown", "source": "a"}, {"cell_type": "code", "source": "b", "outputs": outputs}]
    return {"cells": cells, "metadata": metadata}


def test_views_go_and_what_else_there_is_stays():
    view = {VIEW: {"model_id": "1"}}
    book = notebook(
        {**view, "text/html": "<p>a picture</p>", "text/plain": "A picture."},
        {**view, "text/plain": "VBox(children=(…"},
        view.copy(),
        {"text/plain": "7"},
        {},
        widgets={VIEW: {}},
        kernelspec={"name": "python3"},
    )
    assert without_views(book) == 3
    assert [output.get("data") for output in book["cells"][1]["outputs"]] == [
        {"text/html": "<p>a picture</p>", "text/plain": "A picture."},
        {"text/plain": SENTENCE},
        {"text/plain": SENTENCE},
        {"text/plain": "7"},
        None,
    ]
    assert book["metadata"] == {"kernelspec": {"name": "python3"}}
    assert without_views(book) == 0


@pytest.mark.parametrize("model", [{}, {"type": "file", "content": "x"}, {"type": "notebook", "content": None}])
def test_other_files_are_left_alone(model):
    before = model.copy()
    before_saving(model, path="x", contents_manager=None)
    assert model == before


def test_the_server_finds_the_extension():
    assert _jupyter_server_extension_points() == [{"module": "lft_edu.support.stored"}]
