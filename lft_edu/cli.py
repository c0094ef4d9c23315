"""``lft-edu doctor · lab · train · scan · evaluate · generate · export · classroom``: the library from a terminal."""

import argparse
import json
import os
import sys
from pathlib import Path

from .support.arguments import count, positive, span


def doctor(args) -> int:
    from .doctor import FAIL, examine, report

    findings = examine()
    print(report(findings))
    return int(any(f.status == FAIL for f in findings))


def lab(args) -> int:
    """Replace this process by JupyterLab on the first notebook."""
    flags = _server_flags(args.flags)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--allow-root")
    root = Path(__file__).resolve().parents[1]
    first = "/lab/tree/notebooks/00_start_here.ipynb"  # part of the URL that is printed, too
    places = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url={first}"]
    command = [sys.executable, "-m", "jupyterlab", *places, *flags]
    os.chdir(root)
    return os.execv(sys.executable, command)


def explore(args) -> int:
    """Replace this process by a server of the trajectory explorer."""
    from .explorer.app import STUDENTS, write_app

    if args.teacher != "bundled" and not args.student:
        raise ValueError("--teacher needs --student: a folder with a student that was spliced from it.")
    page = write_app(args.teacher, tuple(args.student or STUDENTS), args.text)
    command = [sys.executable, "-m", "voila", str(page), *_server_flags(args.flags)]
    return os.execv(sys.executable, command)


def _server_flags(flags: list[str]) -> list[str]:
    """What a server is to be told: the user's own flags, and no browser where there is no display."""
    flags = [flag for flag in flags if flag != "--"]
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        flags.append("--no-browser")
        print("No display: open the URL below in a browser.", file=sys.stderr)
    sys.stderr.flush()
    return flags


def train(args) -> int:
    from .runs.plans import plan
    from .runs.run import is_main_process
    from .runs.run import train as run_to_its_end
    from .training.checkpoints import Checkpoints

    settings = _settings(args)
    if args.dry_run:
        print(plan(settings))
        return 0
    planned = None if args.quiet or not is_main_process() else plan(settings)
    if planned:
        print(f"{planned}\n", file=sys.stderr)
    if args.resume and not Checkpoints(Path(args.out) / "checkpoints").files() and is_main_process():
        print(f"No checkpoint in {args.out} yet: starting from the beginning.", file=sys.stderr)
    run = run_to_its_end(settings, resume=args.resume, progress=not args.quiet)
    if is_main_process():
        spent, student = run.history.seconds, Path(args.out) / "student"
        print(f"{run.history.tokens:,} tokens in {spent:.0f} s; student in {student}\n{run.evaluation}")
        if planned:
            print(planned.compared(run.taken))
    return 0


def _settings(args):
    """What the words of the command line mean for a run."""
    import dataclasses

    from .runs.settings import RunSettings

    names = {f.name for f in dataclasses.fields(RunSettings)}
    return RunSettings(**{name: value for name, value in vars(args).items() if name in names})


def scan(args) -> int:
    import torch

    import lft_edu as lft

    from .latents import depth_states

    teacher, tokenizer = lft.load_teacher(args.teacher)
    corpus = lft.load_corpus(args.corpus, tokenizer, "validation", args.block, max_tokens=2 * args.n * args.block)
    states = depth_states(teacher, corpus, args.n, torch.Generator().manual_seed(args.seed))
    found = lft.scan_spans(states, args.criterion, lengths=args.lengths, path=args.out)
    print(f"{args.n} tokens, each of another text. Small promises little harm; `recoupling` grows with --n.")
    for name in args.criterion:
        print(f"{name}: the first best span of each length (95 % interval)")
        for length in args.lengths or range(1, len(states)):
            m, n = found.best(length, name)
            low, high = (table[m, n] for table in found.intervals(name))
            interval = f"  ({low:.3f} to {high:.3f})" if low == low else ""
            print(f"  length {length:>2}: layers {m:>2}–{n:<2}  {found[name][m, n]:.3f}{interval}")
    return 0


def evaluate(args) -> int:
    import lft_edu as lft

    from . import skipping
    from .runs import cards
    from .runs.settings import DTYPES

    student_is_bundled = str(args.student).startswith("bundled")
    teacher, tokenizer = lft.load_teacher(args.teacher, dtype=DTYPES[args.dtype], revision=args.revision)
    student = lft.load_student(_run_or_name(args.student), teacher if student_is_bundled else None, dtype=teacher.dtype)
    corpus = lft.load_corpus(args.corpus, tokenizer, args.split, args.block, max_tokens=args.tokens)
    found = lft.evaluate(student, teacher, corpus, progress=True)
    skips = skipping.best_skips(teacher, corpus, args.skips) if args.skips else None
    card = cards.make_card(student, teacher, found, args.corpus, args.split, _training_of(args.student), skips)
    print(json.dumps({"student": args.student} | card, indent=1) if args.json else cards.markdown(card), flush=True)
    if args.out:
        cards.save_card(card, args.out)
    if args.push_to:
        print(student.push_to_hub(args.push_to, tokenizer, card), file=sys.stderr)
    return 0


def _training_of(student: str) -> dict | None:
    """How a run says that it was trained."""
    card = Path(student).expanduser() / "card.json"
    try:
        return json.loads(card.read_text()).get("training") if card.exists() else None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{card} is damaged ({error}). Delete it to evaluate without what it says.") from error


def _run_or_name(name: str) -> str:
    """The folder of the student in a run's folder; any other name as it is."""
    folder = Path(name).expanduser()
    return str(folder / "student") if (folder / "student" / "config.json").exists() else name


def generate(args) -> int:
    import torch

    import lft_edu as lft

    from .explorer import complete

    if args.student == "teacher" or str(args.student).startswith("bundled"):
        teacher, tokenizer = lft.load_teacher("bundled")
        model = teacher if args.student == "teacher" else lft.load_student(args.student, teacher)
    else:
        from transformers import AutoTokenizer

        name = _run_or_name(args.student)
        model, tokenizer = lft.load_student(name), AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        print(args.prompt + complete(model, tokenizer, args.prompt, args.tokens, args.temperature))
    return 0


def export(args) -> int:
    from .export import export_html

    print(f"written: {export_html(args.notebook, args.out)}")
    return 0


def classroom(args) -> int:
    from .exercises import books

    written = books.course(Path(args.folder).expanduser())
    names = ", ".join(path.stem for path in written)
    print(
        f"A new nbgrader course in {args.folder}: {names}.\n"
        f"What students get:   cd {args.folder} && nbgrader generate_assignment {written[0].stem}\n"
        f"What they hand in:   {args.folder}/submitted/STUDENT/{written[0].stem}/{written[0].name}\n"
        f"Marks:               nbgrader autograde {written[0].stem}   (runs their code: use an account of its own)"
    )
    return 0


def train_options(sub) -> None:
    """Options of ``train``, named as the fields of :class:`lft_edu.runs.settings.RunSettings`."""
    sub.add_argument("--span", type=span, required=True, help="layers m:n, half open, such as 6:18")
    sub.add_argument(
        "--operator", default="flow", help="flow, regression, ridge, procrustes, mean-shift (default: flow)"
    )
    sub.add_argument("--objective", help="flow_matching, flow_walking, hybrid, regression or logit_kl")
    sub.add_argument("--solver", default="midpoint", help="of the walk: euler or midpoint (default: midpoint)")
    sub.add_argument("--k", type=positive, default=3, help="steps of the walk (default: 3)")
    sub.add_argument("--train-k", type=positive, help="steps in training, if others than --k")
    sub.add_argument("--alpha", type=float, default=0.1, help="weight of flow matching in hybrid (default: 0.1)")
    sub.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    sub.add_argument("--lr", type=float, help="peak learning rate (default: fits the optimizer and the width)")
    sub.add_argument("--batch", type=positive, default=16, help="blocks a process takes at once (default: 16)")
    sub.add_argument("--accumulate", type=positive, default=1, help="batches a step (default: 1)")
    sub.add_argument("--precision", default="no", choices=("no", "bf16"), help="bf16: autocast, for GPUs")
    sub.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the teacher")
    sub.add_argument("--compile", action="store_true", help="torch.compile the loss: slow to start, then faster")
    sub.add_argument("--streaming", action="store_true", default=None, help="read a corpus of the hub while training")
    sub.add_argument("--held", type=count, default=count("20k"), help="test tokens at the end (default: 20k)")
    sub.add_argument("--evaluate-every", type=int, default=0, help="steps between evaluations (default: at the end)")
    sub.add_argument("--save-every", type=positive, default=200, help="steps between checkpoints (default: 200)")
    sub.add_argument("--keep", type=positive, default=2, help="checkpoints to keep (default: 2)")
    sub.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files beside metrics.jsonl")
    sub.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    sub.add_argument("--dry-run", action="store_true", help="only print what it would take: time, memory, disk")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")
    sub.add_argument("--out", default="runs/student", help="the run's folder (default: runs/student)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="lft-edu", description="Latent Flow Transformers: the course's command line.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(work, help):
        sub = commands.add_parser(work.__name__, help=help, description=help)
        sub.set_defaults(work=work)
        return sub

    def text_options(sub, tokens: str):
        sub.add_argument("--teacher", default="bundled", help="bundled, owner/name on the hub, or a folder")
        sub.add_argument("--revision", help="commit, tag or branch of a teacher on the hub")
        sub.add_argument("--corpus", default="python-stdlib", help="a corpus name, or a file or folder of text")
        sub.add_argument("--block", type=positive, default=128, help="tokens a block (default: 128)")
        sub.add_argument("--tokens", type=count, default=count(tokens), help=f"tokens to use (default: {tokens})")
        sub.add_argument("--seed", type=int, default=0)

    command(doctor, "check the installation and say what to do about each problem")
    sub = command(lab, "open the course in JupyterLab; further words go to it")
    sub.add_argument("flags", nargs=argparse.REMAINDER)

    sub = command(
        explore, "fly through teacher and students in a browser, without a notebook; further words go to voila"
    )
    sub.add_argument("--teacher", default="bundled", help="bundled, owner/name on the hub, or a folder")
    sub.add_argument("--student", action="append", help="bundled/… or a folder; may be repeated")
    sub.add_argument("--text", help="what is flown first")
    sub.add_argument("flags", nargs="*", help="for voila, after --, such as -- --port 9999")

    sub = command(train, "replace a span of layers by one trained operator; also under `accelerate launch -m lft_edu`")
    text_options(sub, "500k")
    train_options(sub)

    sub = command(scan, "what might tell where to cut: criteria of every span of layers")
    text_options(sub, "100k")
    sub.add_argument("--n", type=positive, default=256, help="tokens to pair (R grows with it)")
    sub.add_argument("--criterion", nargs="+", default=["recoupling"], help="recoupling, ridge, cka, angular …")
    sub.add_argument("--out", help="a JSON file for the tables; an interrupted scan goes on from it")
    sub.add_argument("--lengths", type=int, nargs="+", help="only spans of these lengths")

    sub = command(evaluate, "KL, NMSE and perplexity of a student on held-out text")
    text_options(sub, "20k")
    sub.add_argument("--student", required=True, help="bundled/…, a folder (of a run, too), or owner/name on the hub")
    sub.add_argument("--split", default="test", help="train, validation or test")
    sub.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    sub.add_argument("--skips", type=int, default=0, help="also measure skipping the best 1 … SKIPS layers")
    sub.add_argument("--out", help="a folder for the results card, card.json and card.md")
    sub.add_argument("--json", action="store_true", help="print the card as JSON, not as a table")
    sub.add_argument("--push-to", metavar="OWNER/NAME", help="upload student, tokenizer and model card to the hub")

    sub = command(generate, "complete a text with a student")
    sub.add_argument("prompt")
    sub.add_argument("--student", default="bundled/flow-walking-6-18", help="bundled/…, a folder, or teacher")
    sub.add_argument("--tokens", type=count, default=60, help="new tokens (default: 60)")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    sub.add_argument("--seed", type=int, default=0)

    sub = command(export, "a notebook as one HTML page that works without a network, figures alive")
    sub.add_argument("notebook", help="such as notebooks/03_flow_walking.ipynb")
    sub.add_argument("--out", help="the file to write (default: beside the notebook)")

    sub = command(classroom, "the exercises as an nbgrader course that marks itself")
    sub.add_argument("folder", help="a new folder for the course")
    return top


def _quieten() -> None:
    """Leave progress bars to our own long work: loading a small file or a corpus needs none of theirs."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors a user can mend are one line on stderr and exit status 2."""
    args = parser().parse_args(arguments)
    if args.work not in (doctor, lab, explore, export, classroom):
        _quieten()
    try:
        status = args.work(args)
        _leave_group()
        return status
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"lft-edu {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"lft-edu {args.command}: interrupted; run it again (train: with --resume). {stop}", file=sys.stderr)
        return 130


def _leave_group() -> None:
    """Under a launcher: leave the process group in good order. After an error no goodbye: the others can't answer it,
    they wait for this process, and the launcher ends them when it is gone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
