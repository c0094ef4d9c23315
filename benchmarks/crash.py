"""Kill training runs at random moments, resume them, and compare with runs that nothing interrupted, bit for bit.

    python -m benchmarks.crash              # 40 kills, a quarter of an hour on a slow core
    python -m benchmarks.crash --kills 6    # a quick look

A kill is SIGKILL, which no process sees coming. Every sitting is the same command, ``lft-edu train … --resume``, in a
process of its own; a run is killed three to six times, then left to end. One kind of run streams its text from a hub
on this computer, which hands out half a file and hangs up from time to time. After *every* kill, whatever stands on
the disk is compared with the uninterrupted run: weights, optimizer state and place in the text of each checkpoint, the
rows of the log; at the end also the student's files and the results card, and whether unfinished files are left. Clocks
are left out (seconds, tokens per second, latency). Last, a second process is sent into the folder of a run. Writes
``benchmarks/results/crash.json``, which ``benchmarks.reliability`` tabulates; exit status 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lft_edu.support.files import write_json
from lft_edu.support.progress import progress_bar
from lft_edu.training.checkpoints import Checkpoints, digest, read_checkpoint
from lft_edu.training.logs import read_metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "crash.json"
STEPS = 240
TRAIN = ["train", "--span", "6:12", "--num-steps", "1", "--max-steps", str(STEPS), "--sequence-length", "32"]
TRAIN += ["--eval-tokens", "1k", "--log-every", "5", "--save-every", "8", "--quiet", "--resume"]
RUNS = {
    "AdamW": ["--batch-size", "4", "--evaluate-every", "60"],
    "Muon, gradients accumulated": ["--batch-size", "2", "--gradient-accumulation-steps", "2", "--optimizer", "muon"],
    "streamed text": ["--batch-size", "4", "--corpus", "wikitext-2", "--streaming"],
}
MOMENTS = {  # when a sitting is killed, and how often
    "loading": 0.15,  # before its first step
    "training": 0.2,
    "writing a checkpoint": 0.45,
    "evaluating and saving": 0.2,  # after the last step
}
CLOCKS = {"seconds", "tokens_per_second", "latency_ms_per_token", "out", "save_total_limit"}


def without_clocks(value):
    """JSON without what may differ between two runs of the same settings."""
    if isinstance(value, dict):
        return {name: without_clocks(part) for name, part in value.items() if name not in CLOCKS}
    return [without_clocks(part) for part in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, object]:
    """Everything a run has written that must come out the same: name → something to compare."""
    found: dict[str, object] = {}
    for path in Checkpoints(out / "checkpoints").files():
        try:
            notes, tensors = read_checkpoint(path)
        except ValueError as error:
            found[f"{path.stem}, damaged"] = str(error)
            continue
        found[f"{path.stem}, weights"] = digest({k: v for k, v in tensors.items() if k.startswith("module.")})
        found[f"{path.stem}, optimizer"] = digest({k: v for k, v in tensors.items() if k.startswith("optimizer.")})
        found[f"{path.stem}, place in the text"] = notes.pop("stream")
        found[f"{path.stem}, notes"] = without_clocks(notes)
    if (out / "metrics.jsonl").exists():
        for row in read_metrics(out / "metrics.jsonl"):
            found[f"log, step {row['step']}, {'kl' if 'kl' in row else 'loss'}"] = without_clocks(row)
    for path in (out / "settings.json", out / "card.json"):
        if path.exists():
            found[path.name] = without_clocks(json.loads(path.read_text(encoding="utf-8")))
    for path in sorted((out / "student").glob("*")):
        found[f"student/{path.name}"] = path.read_bytes()
    return found


def differing(whole: dict[str, object], other: dict[str, object], ended: bool) -> list[str]:
    """Names of what differs from the uninterrupted run.

    Args:
        ended: the other run has ended: nothing may be missing, but checkpoints that it no longer keeps. Of one that
            was killed, what was being written may also be missing or incomplete.
    """
    if not ended:  # the student and its card are written again; rows beyond the checkpoint too
        other = {name: part for name, part in other.items() if not name.startswith(("student/", "card"))}
    changed = [name for name, part in other.items() if name not in whole or whole[name] != part]
    missing = [name for name in whole.keys() - other.keys() if ended and not name.startswith("step-")]
    return sorted([*changed, *(f"{name} (missing)" for name in missing)])


@dataclass
class Kind:
    """A kind of run: its command, and what its uninterrupted run took and wrote."""

    name: str
    environment: dict | None = None
    fault: Callable[[], object] | None = None  # what goes wrong, beside the kill, before each sitting
    loading: float = 0.0  # seconds until the first row of the log
    ending: float = 0.0  # seconds from the last checkpoint to the end
    whole: dict = field(default_factory=dict)

    def run_uninterrupted(self, out: Path) -> None:
        """Keeps every checkpoint, so that those of an interrupted run find theirs."""
        sitting = Sitting(self, out, "--save-total-limit", "1000")
        sitting.wait_for(lambda: sitting.rows() > 0, 0.01)
        self.loading = time.perf_counter() - sitting.started
        sitting.wait_for(lambda: Checkpoints(out / "checkpoints").newest_step() == STEPS, 0.01)
        began = time.perf_counter()
        if errors := sitting.end():
            raise SystemExit(f"The uninterrupted run ({self.name}) failed:\n{errors}")
        self.ending = time.perf_counter() - began
        self.whole = contents(out)


class Sitting:
    """One process of a run, and what can be seen of it from outside."""

    def __init__(self, kind: Kind, out: Path, *more: str):
        command = [sys.executable, "-m", "lft_edu", *TRAIN, *RUNS[kind.name], *more, "--out", str(out)]
        self.out, self.kind, self.started = out, kind, time.perf_counter()
        self.rows_before, self.steps_before = self.rows(), Checkpoints(out / "checkpoints").newest_step()
        if kind.fault and kind.whole:
            kind.fault()
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=kind.environment, **streams)

    def rows(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.out / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def wait_for(self, seen: Callable[[], bool], poll: float) -> bool:
        """Wait until something is seen; False if the process ended before."""
        while self.process.poll() is None:
            if seen():
                return True
            time.sleep(poll)
        return False

    def reach(self, moment: str, chance: random.Random) -> bool:
        """Wait for a moment; False if the process ended before it came."""
        folder = self.out / "checkpoints"
        if moment == "loading":
            pause, seen, poll = 0.0, self._after(chance.uniform(0, self.kind.loading)), 0.01
        elif moment == "training":
            rows = self.rows_before + chance.randint(1, 12)
            pause, seen, poll = chance.uniform(0, 0.1), lambda: self.rows() >= rows, 0.005
        elif moment == "writing a checkpoint":
            return self.reach_write(chance.randint(1, 4))
        else:
            pause, poll = chance.uniform(0, self.kind.ending), 0.005
            all_done = lambda: Checkpoints(folder).newest_step() == STEPS  # noqa: E731
            seen = self._after(self.kind.loading) if self.steps_before == STEPS else all_done
        if not self.wait_for(seen, poll):
            return False
        time.sleep(pause)
        return self.process.poll() is None

    def _after(self, seconds: float) -> Callable[[], bool]:
        return lambda: time.perf_counter() - self.started > seconds

    def reach_write(self, count: int) -> bool:
        """Wait until so many checkpoints were seen while they were written; the last is half done, as a rule. It takes
        about a millisecond to write one, so once the run trains, nothing is done here but look."""
        folder = str(self.out / "checkpoints")
        left = {*os.listdir(folder)} if os.path.isdir(folder) else set()  # by earlier kills, perhaps half a file
        names: set[str] = set()
        self.wait_for(lambda: self.rows() > self.rows_before, 0.005)
        while self.process.poll() is None:
            for _ in range(200):
                names |= {name for name in os.listdir(folder) if name.endswith(".partial")} - left
                if len(names) >= count:
                    return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> str:
        """Wait for the end; the last line of stderr if it failed, else nothing."""
        lines = self.process.communicate(timeout=600)[1].strip().splitlines() or [f"exit {self.process.returncode}"]
        return lines[-1] if self.process.returncode else ""


def campaign(kinds: list[Kind], kills: int, seed: int, work: Path) -> dict:
    """Kill so many times, over as many runs as that takes; return what happened, for JSON."""
    chance, found = random.Random(seed), {"kills": [], "runs": []}
    bar = progress_bar(total=kills, unit="kill", desc="uninterrupted")
    for kind in kinds:
        kind.run_uninterrupted(work / f"whole-{kind.name}")
    while len(found["kills"]) < kills:
        number = len(found["runs"])
        kind = kinds[number % len(kinds)]
        bar.set_description(kind.name)
        moments = chance.choices(list(MOMENTS), list(MOMENTS.values()), k=chance.randint(3, 6))
        moments.sort(key=lambda moment: moment == "evaluating and saving")  # after it, no step is left
        events = one_run(kind, work / f"run-{number}", moments[: kills - len(found["kills"])], chance, bar)
        found["kills"] += [{"run": number, **kill} for kill in events["kills"]]
        found["runs"].append({"run": kind.name, **events, "kills": len(events["kills"])})
    bar.close()
    found["two_in_one_folder"] = locked_out(kinds[0], work / "two")
    return found


def one_run(kind: Kind, out: Path, moments: list[str], chance: random.Random, bar) -> dict:
    """Kill one run at these moments, as far as they come, then let it end."""
    kills, differs = [], []
    for moment in moments:
        sitting = Sitting(kind, out)
        if not sitting.reach(moment, chance):  # it ended first; the next sitting finds no step left to do
            differs += [f"after kill {len(kills)}: {error}" for error in [sitting.end()] if error]
            continue
        sitting.kill()
        kill = {"moment": moment, "seconds": round(time.perf_counter() - sitting.started, 2)}
        kill |= {"step": Checkpoints(out / "checkpoints").newest_step(), "unfinished_files": unfinished(out)}
        kills.append(kill | {"differs": differing(kind.whole, contents(out), ended=False)})
        bar.update()
    differs += [f"at the end: {error}" for error in [Sitting(kind, out).end()] if error]
    differs += differing(kind.whole, contents(out), ended=True)
    return {"kills": kills, "differs": differs, "unfinished_files_left": unfinished(out)}


def unfinished(out: Path) -> list[str]:
    """Files that were being written."""
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.partial"))


def locked_out(kind: Kind, out: Path) -> dict:
    """Send a second process into the folder of a run; it must be refused, and the run end as if alone."""
    first = Sitting(kind, out)
    first.wait_for(lambda: first.rows() > 0, 0.01)
    first.process.send_signal(signal.SIGSTOP)  # or it might end before the second has loaded
    second = Sitting(kind, out)
    said = second.end().replace(str(out), "OUT")
    first.process.send_signal(signal.SIGCONT)
    errors = [error for error in [first.end()] if error]
    found = {"second_says": said, "second_exits": second.process.returncode}
    return found | {"differs": errors + differing(kind.whole, contents(out), ended=True)}


@contextlib.contextmanager
def hub_of_texts(work: Path) -> Iterator[dict]:
    """A hub on this computer with two files of text; yields what a :class:`Kind` must know to stream them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hub import Hub, hub_environment, parquet_bytes

    lines = [f" = Title {i} = \n def f_{i}(x):\n    return x + {i * i}\n" for i in range(3000)]
    parts = {"train-00000-of-00002": lines[:1500], "train-00001-of-00002": lines[1500:]}
    parts |= {"test-00000-of-00001": lines[:100], "validation-00000-of-00001": lines[:50]}
    files = {f"wikitext-2-raw-v1/{name}.parquet": parquet_bytes(texts) for name, texts in parts.items()}
    splits = "".join(f"  - {{split: {s}, path: wikitext-2-raw-v1/{s}-*}}\n" for s in ("train", "test", "validation"))
    card = f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n{splits}---\n"
    with Hub(work / "hub") as hub:
        hub.add("Salesforce/wikitext", files | {"README.md": card.encode()}, kind="dataset")
        cut = lambda: hub.cut(".parquet", after_bytes=20_000)  # noqa: E731
        yield {"environment": hub_environment(hub, work / "home"), "fault": cut}


def passed(found: dict) -> bool:
    """Whether nothing differed, nothing was left over, and the second process was refused by name."""
    two = found["two_in_one_folder"]
    clean = not any(one["differs"] for one in (*found["kills"], *found["runs"], two))
    clean &= not any(run["unfinished_files_left"] for run in found["runs"])
    return clean and two["second_exits"] == 2 and "Another process is at work in OUT" in two["second_says"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, hub_of_texts(Path(folder)) as streaming:
        kinds = [Kind(name, **(streaming if name == "streamed text" else {})) for name in RUNS]
        found = campaign(kinds, a.kills, a.seed, Path(folder))
    found = {"passed": passed(found), "moments": Counter(kill["moment"] for kill in found["kills"])} | found
    write_json(a.out, found | {"seed": a.seed, "steps": STEPS, "seconds": round(time.monotonic() - started)})
    for one in (*found["kills"], *found["runs"], found["two_in_one_folder"]):
        if one["differs"]:
            print(f"DIFFERS: {json.dumps(one)}")
    print(f"{len(found['kills'])} kills, {len(found['runs'])} runs: {'all equal' if found['passed'] else 'FAILED'}")
    return int(not found["passed"])


if __name__ == "__main__":
    sys.exit(main())
