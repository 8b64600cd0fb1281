"""In a notebook: what objects look like, a loop under the event loop of the notebook, and the notebook of the docs.

`python tests/test_notebook.py` executes the notebook and stores its outputs, except what it writes to standard error.
"""

from __future__ import annotations

import asyncio
import copy
import html
import io
import json
import pickle
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tinker

import tinkerloop
from tinkerloop import Loop, MicroBatch, Plan
from tinkerloop.callbacks import Progress
from tinkerloop.data import load_conversations
from tinkerloop.renderers import Rendered
from tinkerloop.renderers import rendered as rendered_module
from tinkerloop.testing import OrderedService, sample_batches

NOTEBOOK = Path(__file__).parent.parent / "docs/look_inside.ipynb"
HOSTILE = '<script>alert("x")</script><|im_end|>\x1b[2J'
MESSAGES = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "<b>4</b>"}]


def example() -> Rendered:
    renderer = tinkerloop.get_renderer("qwen3_instruct", tinkerloop.get_tokenizer("tiny"))
    return renderer.build_supervised_example(MESSAGES)


def spans(page: str, css: str = "") -> list[str]:
    """Return the texts of the spans whose class contains `css`."""
    found = re.findall(r'<span class="([^"]*)"[^>]*>(.*?)</span>', page, re.DOTALL)
    return [html.unescape(text) for classes, text in found if css in classes]


def test_a_rendered_conversation_shows_its_tokens_and_shades_the_trained_ones():
    page = example()._repr_html_()
    assert "".join(spans(page, "trained")) == "<b>4</b><|im_end|>"
    assert "".join(spans(page)).startswith('<|im_start|>user⏎\n<script>alert("x")</script><|im_end|>␛[2J')
    assert "9 trained" in page


def test_a_pickled_conversation_shows_ids_and_does_not_carry_the_renderer():
    ours = example()
    for loaded in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert loaded == ours
        assert "".join(spans(loaded._repr_html_(), "trained")).split() == list(map(str, ours.tokens[-9:]))
    assert len(pickle.dumps(ours)) < 2000


def test_only_the_first_tokens_of_a_long_conversation_are_shown_and_the_others_counted(monkeypatch):
    monkeypatch.setattr(rendered_module, "SHOWN", 10)
    page = example()._repr_html_()
    assert len(spans(page)) == 10
    assert f"and {len(example()) - 10} more tokens" in page


def test_conversations_show_their_report_and_shade_trained_replies(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": MESSAGES}) + "\n" for _ in range(7)))
    page = load_conversations(path)._repr_html_()
    assert "7 rows, all used" in page
    assert "and 2 more" in page
    assert spans(page, "trained") == ["<b>4</b>"] * 5
    assert "rows.jsonl:5" in page


def test_a_reply_of_weight_0_is_not_shaded(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = {"role": "assistant", "content": "no", "weight": 0}
    path.write_text(json.dumps({"messages": [MESSAGES[0], first, *MESSAGES]}))
    assert spans(load_conversations(path)._repr_html_(), "trained") == ["<b>4</b>"]


def test_a_plan_shows_the_ids_of_its_datums_and_shades_trained_positions():
    ours = example()
    page = Plan(3, (MicroBatch((ours.to_datum(),)),), tinker.AdamParams())._repr_html_()
    assert list(map(str.strip, spans(page))) == list(map(str, ours.tokens[:-1]))
    assert len(spans(page, "trained")) == 9
    assert "step=3" in page


def test_a_datum_with_an_image_or_without_weights_is_shown_too():
    image = tinker.types.ImageChunk(data=b"any", format="png", expected_tokens=3)
    chunks: list[Any] = [tinker.EncodedTextChunk(tokens=[1]), image, tinker.EncodedTextChunk(tokens=[2])]
    datum = tinker.Datum(model_input=tinker.ModelInput(chunks=chunks), loss_fn_inputs={})
    page = Plan(0, (MicroBatch((datum,)),), tinker.AdamParams())._repr_html_()
    assert list(map(str.strip, spans(page))) == ["1", "[image, 3 tokens]", "2"]
    assert "5 tokens, 5 trained" in page


def test_nothing_that_is_shown_is_markup_of_the_text(tmp_path):
    path = tmp_path / "<i>.jsonl"
    path.write_text(json.dumps({"messages": MESSAGES, "tools": [{"name": "f", "description": HOSTILE}]}))
    for shown in (example(), load_conversations(path)):
        page = shown._repr_html_()
        assert not re.search(r"<script|<b>4|<i>|\x1b", page)


@pytest.mark.parametrize("drive", [lambda loop: loop.run(), lambda loop: list(loop.steps())])
def test_a_loop_runs_under_an_event_loop_that_is_running(drive):
    async def cell() -> None:
        loop = Loop(OrderedService().create_lora_training_client(), sample_batches(), steps=3)
        drive(loop)
        assert loop.summary is not None
        assert loop.summary.step == 3

    asyncio.run(cell())


def test_the_embedded_engine_runs_under_an_event_loop_that_is_running(tmp_path):
    async def cell() -> None:
        datums = [example().to_datum()]
        client = tinkerloop.connect("local", root=tmp_path).create_lora_training_client(base_model="tiny", rank=4)
        assert Loop(client, [datums] * 2).run().step == 2
        assert (await Loop(client, [datums] * 2).arun()).step == 2

    asyncio.run(cell())


def test_progress_with_a_file_writes_to_the_file_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    out = io.StringIO()
    Loop(
        OrderedService().create_lora_training_client(), sample_batches(), steps=2, callbacks=[Progress(file=out)]
    ).run()
    assert "ended at step 2" in out.getvalue()


def executed(folder: Path) -> Any:
    """Execute the notebook in `folder`, and return it with its outputs, without what it writes to standard error."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, 4)
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", record_timing=False, resources=place
    ).execute()
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(notebook: Any) -> list[Any]:
    """Return the values that the cells show, without what they display, which has the time."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [dict(output["data"]) for output in outputs if output["output_type"] == "execute_result"]


@pytest.mark.slow
def test_the_notebook_of_the_docs_shows_what_is_stored_in_it(tmp_path):
    stored, now = json.loads(NOTEBOOK.read_text()), executed(tmp_path)
    joined = [{kind: "".join(text) for kind, text in data.items()} for data in shown(stored)]
    assert shown(now) == joined
    displayed = [output for cell in code_cells(now) for output in cell.outputs if output.output_type == "display_data"]
    bar, end = ("".join(output["data"]["text/plain"]) for output in displayed)
    assert "5/5" in bar
    assert "tok/s" in bar
    assert "ended at step 5: steps reached" in end


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
    sys.exit()
