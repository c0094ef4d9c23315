"""Kill training runs at random moments, resume them, and compare the result with an uninterrupted run, bit for bit.

    python -m benchmarks.crash                # 40 kills of each kind of run, about half an hour on a slow core
    python -m benchmarks.crash --kills 6      # a quick look

Two kinds of run: text of this computer, and text that is streamed from a hub (a server on this computer, which hands
out half a file and hangs up from time to time). A kill is SIGKILL, which no process sees coming: anywhere, while it
trains, or while it writes a file. Each run is killed up to four times, then left alone. Weights, optimizer, history,
logged losses and results must then be those of the run that nobody killed. Writes ``benchmarks/results/crash.json``;
exit status 1 if anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from lft_edu.support.files import write_json
from lft_edu.support.progress import progress_bar
from lft_edu.training.checkpoints import read_checkpoint
from lft_edu.training.logs import read_metrics

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "crash.json"
MOMENTS = ("anywhere", "training", "writing")
TRAIN = ["--span", "6:12", "--num-steps", "1", "--solver", "euler", "--batch-size", "8", "--sequence-length", "32"]
TRAIN += ["--tokens", "12k", "--eval-tokens", "512", "--save-every", "3", "--optimizer", "muon", "--lr", "0.02"]
TIMES = {
    "seconds",
    "tokens_per_second",
    "sittings",
    "time",
    "actual",
    "memory",
    "date",
    "hardware",
    "out",
    "latency_ms_per_token",
}


def start(out: Path, text: list[str], env: dict) -> subprocess.Popen:
    """Start, or resume, the run in this folder."""
    command = [sys.executable, "-m", "lft_edu", "train", *TRAIN, *text, "--resume", "--out", str(out)]
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=ROOT)


def kill(process: subprocess.Popen, out: Path, moment: str, draw: random.Random, limit: float) -> bool:
    """Kill a run at such a moment; return whether it still ran."""
    rows, deadline = _size(out / "metrics.jsonl"), time.monotonic() + limit
    wait = draw.uniform(0, limit) if moment == "anywhere" else draw.uniform(0, limit / 4)
    if moment != "anywhere":  # until it has trained a step
        while process.poll() is None and _size(out / "metrics.jsonl") == rows and time.monotonic() < deadline:
            time.sleep(0.005)
    until = time.monotonic() + wait
    while process.poll() is None and time.monotonic() < until:
        if moment == "writing" and any(out.rglob("*.partial")):
            break
        time.sleep(0.001 if moment == "writing" else 0.02)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def differences(whole: Path, broken: Path) -> list[str]:
    """What is not the same in two finished runs: weights, optimizer, notes of the last checkpoint, losses, results."""
    found = []
    for path in (Path("student/model.safetensors"), Path("checkpoints") / newest(whole)):
        if not (broken / path).exists():
            found.append(f"{path} is missing")
            continue
        a, b = load_file(whole / path), load_file(broken / path)
        if a.keys() != b.keys():
            found.append(f"{path}: other tensors")
        found += [f"{path}: {name}" for name in a.keys() & b.keys() if not a[name].equal(b[name])]
    notes = [_notes(run / "checkpoints" / newest(run)) for run in (whole, broken)]
    found += [f"checkpoint notes: {name}" for name in notes[0] if notes[0][name] != notes[1].get(name)]
    if _losses(whole) != _losses(broken):
        found.append("metrics.jsonl: losses")
    cards = [without_times(json.loads((run / "card.json").read_text(encoding="utf-8"))) for run in (whole, broken)]
    return found + [f"card.json: {name}" for name in cards[0] if cards[0][name] != cards[1].get(name)]


def newest(run: Path) -> str:
    return max(path.name for path in (run / "checkpoints").glob("step-*.safetensors"))


def _notes(checkpoint: Path) -> dict:
    return without_times(read_checkpoint(checkpoint)[0])


def _losses(run: Path) -> dict[int, float]:
    """Step → loss; a step that was trained again after a kill was logged twice, and must have the same loss."""
    found: dict[int, float] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        if "loss" in row and found.setdefault(row["step"], row["loss"]) != row["loss"]:
            raise SystemExit(f"{run}: step {row['step']} was trained twice, with other losses.")
    return found


def without_times(value):
    """JSON without what the clock and the machine say."""
    if isinstance(value, dict):
        return {name: without_times(one) for name, one in value.items() if name not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def campaign(name: str, text: list[str], env: dict, kills: int, seed: int, folder: Path, between=lambda: None) -> dict:
    """Kill and resume runs until so many kills have hit one; compare each finished run with the uninterrupted one.

    Args:
        text: options of ``lft-edu train`` that choose teacher and corpus.
        between: called before each start, such as to make a server fail.
    """
    whole, draw = folder / name / "whole", random.Random(seed)
    began = time.monotonic()
    whole.parent.mkdir(parents=True)
    if start(whole, text, env).wait() != 0:
        raise SystemExit(f"The uninterrupted run failed; see {whole.with_suffix('.log')}.")
    limit, hit, runs, failures = time.monotonic() - began, dict.fromkeys(MOMENTS, 0), 0, []
    with progress_bar(total=kills, desc=name, unit="kill") as bar:
        while sum(hit.values()) < kills:
            out, runs, mine = folder / name / f"run{runs}", runs + 1, []
            for _ in range(min(4, kills - sum(hit.values()))):
                between()
                moment = draw.choice(MOMENTS)
                if not kill(start(out, text, env), out, moment, draw, limit):
                    break
                hit[moment] += 1
                mine.append(moment)
                bar.update()
            between()
            code = start(out, text, env).wait()
            wrong = differences(whole, out) if code == 0 else [f"exit status {code}"]
            if wrong:
                failures.append({"run": runs - 1, "kills": mine, "wrong": wrong})
                shutil.copytree(out, ROOT / "runs" / "crash" / name / out.name, dirs_exist_ok=True)
            shutil.rmtree(out, ignore_errors=True)
    return {"runs": runs, "kills": hit, "failures": failures, "seconds": round(time.monotonic() - began)}


def locked_out(text: list[str], env: dict, folder: Path) -> bool:
    """Start a second run in the folder of one that trains; return whether it was turned away and harmed nothing."""
    out = folder / "twice"
    out.mkdir()
    first = start(out, text, env)
    while first.poll() is None and not _size(out / "metrics.jsonl"):
        time.sleep(0.01)
    command = [sys.executable, "-m", "lft_edu", "train", *TRAIN, *text, "--resume", "--out", str(out)]
    second = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    return second.returncode != 0 and "another" in second.stderr and first.wait() == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from hub import Hub, hub_environment, parquet_bytes

    local = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name, Hub(Path(name) / "hub") as hub:
        folder = Path(name)
        lines = [f" = Title {i} = \n def f_{i}(x):\n    return x + {i * i}\n" for i in range(3000)]
        files = {f"wikitext-2-raw-v1/{s}-00000-of-00001.parquet": parquet_bytes(lines[:n])
                 for s, n in (("train", 3000), ("test", 200), ("validation", 100))}  # fmt: skip
        splits = "".join(
            f"  - {{split: {s}, path: wikitext-2-raw-v1/{s}-*}}\n" for s in ("train", "test", "validation")
        )
        card = f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n{splits}---\n"
        hub.add("Salesforce/wikitext", files | {"README.md": card.encode()}, kind="dataset")
        away = hub_environment(hub, folder / "home") | {"OMP_NUM_THREADS": "1"}
        texts = {"local": [], "streamed": ["--corpus", "wikitext-2", "--streaming"]}
        found = {"second run locked out": locked_out(texts["local"], local, folder)}
        found["local"] = campaign("local", texts["local"], local, a.kills, a.seed, folder)
        fail = lambda: hub.cut(".parquet", after_bytes=20_000)  # noqa: E731
        found["streamed"] = campaign("streamed", texts["streamed"], away, a.kills, a.seed, folder, fail)
    write_json(a.out, found)
    print(json.dumps(found, indent=1))
    if not found["second run locked out"] or any(found[kind]["failures"] for kind in texts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
