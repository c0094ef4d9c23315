"""Break each formula once and see a test fail.

    python benchmarks/mutations.py

Every line below is a mistake somebody could make. The package and its tests are copied aside, the mistake is made
there, and the tests named beside it must fail. Prints a line each; exit status 1 if a mistake went unseen.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MISTAKES = [  # file, what it says, what a mistake would say, tests
    ("flow.py", "velocity(halfway, t + half)", "velocity(halfway, t)", "flow"),
    ("flow.py", "velocity(halfway, t + half)", "velocity(x, t + half)", "flow"),
    ("flow.py", "half = (s - t) / 2", "half = s - t", "flow"),
    ("flow.py", ".sort(dim=-1).values", "", "flow"),
    ("objectives.py", "velocity(x_t, t), x1 - x0, weight", "velocity(x_t, t), x0 - x1, weight", "flow"),
    ("objectives.py", "torch.lerp(x0, x1,", "torch.lerp(x1, x0,", "flow"),
    ("objectives.py", "torch.rand(len(x0), generator", "torch.rand(1, generator", "flow"),
    ("objectives.py", "walking + alpha *", "alpha * walking +", "flow"),
    ("objectives.py", "walk(velocity, x0, times, step), x1", "walk(velocity, x0, times, step).detach(), x1", "flow"),
    ("objectives.py", "teacher.exp() * (teacher - student)", "student.exp() * (student - teacher)", "flow metrics"),
    ("objectives.py", "return (weight * error).sum() / weight.sum()", "return (weight * error).mean()", "flow"),
    ("couplings.py", "linear_sum_assignment(cost.numpy())[1]", "cost.argmin(1).numpy()", "recoupling"),
    ("couplings.py", "cost.diagonal().sub_(tie_break)", "cost.diagonal().add_(tie_break)", "recoupling"),
    ("couplings.py", "ratio=1 - kept", "ratio=kept", "recoupling"),
    ("velocity.py", "1 + gamma1,", "gamma1,", "splicing"),
    ("velocity.py", "seen = x if self.parallel else x + update", "seen = x", "splicing"),
    ("velocity.py", "% 3 == 2", "% 3 == 3", "splicing"),
    ("velocity.py", "1000 * t[..., None]", "0 * t[..., None]", "splicing"),
    ("operators.py", "self.applied(x, context) - x", "self.applied(x, context)", "fitting"),
    ("transport.py", "update(keys, values, self._index,", "update(keys, values, 0,", "splicing"),
    ("closed_forms.py", "identity + torch.linalg.solve", "torch.linalg.solve", "fitting"),
    ("closed_forms.py", "s.sum() / covariance.trace() * (u @ vt)", "u @ vt", "fitting"),
    ("splicing.py", "i if i < m else i - 1 + operator.slots", "i", "splicing"),
    ("splicing.py", "[*kept[:m], owned, *kept[n:]]", "[*kept[:m], owned, *kept[n - 1 :]]", "splicing"),
    ("latents.py", "else layers[n - 1])", "else layers[n])", "fitting"),
    ("latents.py", "raise StopForward", "return", "fitting"),
    ("training/sampling.py", "torch.arange(batch_size)) * world + rank", "torch.arange(batch_size)) + rank", "streams"),
    ("training/optimizers.py", "rise * min(1.0", "rise * max(1.0", "fitting"),
    ("training/loop.py", "0 * norm", "0", "fitting"),
    ("metrics.py", "transported.value[:, 1:], truth.value[:, 1:]", "transported.value, truth.value", "metrics"),
    ("metrics.py", "ids[:, 1:], reduction", "ids[:, :-1], reduction", "metrics"),
    ("skipping.py", "(kl - before) / max(cost - before, 1e-12)", "0.5", "metrics"),
    ("plots/tables.py", "label(token)", "token", "plots_trajectories"),
    ("couplings.py", "parted & parted.T", "parted | parted.T", "plane"),
    ("couplings.py", "t.clamp(0, 1)", "t", "plane"),
    ("couplings.py", "cost -= cost.amin(0, keepdim=True)", "cost -= cost.amin(0, keepdim=True) * 1.01", "recoupling"),
    ("plane.py", "pairs.group[nearest] == pairs.group", "pairs.group[nearest] >= 0", "plane"),
    ("shapes.py", "sin * x[:, 0] + cos * x[:, 1]", "cos * x[:, 1] - sin * x[:, 0]", "plane"),
    ("plots/plane.py", 'agrees", ~changed', 'agrees", changed', "plots_explorer"),
    ("plots/plane.py", "a + along[:, None] * (b - a)", "b + along[:, None] * (b - a)", "plots_explorer"),
    ("plots/base.py", "escape(line) for line in", "line for line in", "plots_explorer assets"),
    ("explorer/frame.py", "{html.escape(str(error))}", "{error}", "plots_explorer"),
    ("exercises/checking.py", "html.escape(repr(self))", "repr(self)", "exercises"),
    ("exercises/checking.py", "except NotImplementedError:", "except ZeroDivisionError:", "exercises"),
    ("exercises/renumbered.py", "number in exercises and name != asked", "number in exercises", "exercises"),
    ("exercises/renumbered.py", "name if name.isidentifier() else asked", "name", "exercises"),
    ("exercises/books.py", "raise NotImplementedError\\n", "pass\\n", "exercises"),
    ("export.py", "htmlsafe_json_dumps(figure)", "json.dumps(figure)", "export"),
    ("trajectories.py", "states[m + 2 :]", "states[m + 1 :]", "trajectories"),
    ("trajectories.py", "m + t * (n - m)", "m + t", "trajectories"),
    ("operators.py", "i / k, (i * parts + j)", "0, (i * parts + j)", "trajectories"),
    ("trajectories.py", "(depths - before) / (after_time - before)", "depths - before", "trajectories"),
    ("heads.py", "self.norm(inputs_embeds)", "inputs_embeds", "heads"),
    ("text.py", 'errors="backslashreplace"', 'errors="replace"', "trajectories"),
    ("trajectories.py", "x[:, token] += moves", "x += moves[:, None]", "plots_trajectories"),
    ("trajectories.py", "(there, back)", "(back, there)", "trajectories"),
    ("projections.py", "int(not position0)", "0", "projections"),
    ("projections.py", "x - x.mean(-1, keepdims=True)", "x - x.mean(0, keepdims=True)", "projections"),
    ("projections.py", "np.clip(1 - shown.sum()", "np.clip(shown.sum()", "projections"),
    ("projections.py", "true > 1e-12 * true.max()", "true >= 0", "projections"),
    ("projections.py", "(reach - distance) / (reach * distance)", "1 / distance", "projections"),
    ("metrics.py", "len(row) - 1", "len(row)", "trajectory_explorer"),
    ("explorer/trajectories.py", "model.set_solver(**own)", "pass", "trajectory_explorer"),
    ("explorer/trajectories.py", 'for character in "<>&', 'for character in "', "browser_explorer"),
    ("explorer/scene.py", "pair[0] - pair[1]", "pair[0] + pair[1]", "trajectory_explorer"),
    ("plots/trajectories.py", "indices[m : n + 1]]", "indices[m:n]]", "plots_trajectories"),
    ("plots/states.py", "projection.lift(mesh - place)", "projection.lift(mesh)", "plots_trajectories"),
    ("loading/corpora.py", "found[key] = path", "found[key.lower()[:1]] = path", "teachers_corpora"),
]  # fmt: skip


def unseen(file: str, right: str, wrong: str, tests: str) -> bool:
    """Make one mistake in a copy; did its tests pass all the same?"""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("lft_edu", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("assets", "docs", "notebooks", "README.md", "Makefile", "environment.yml"):
            (copy / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        source = copy / "lft_edu" / file
        text = source.read_text()
        assert right in text, f"{file} no longer contains {right!r}: update this list"
        source.write_text(text.replace(right, wrong, 1))
        files = [f"tests/test_{name}.py" for name in tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        if "browser" not in tests:
            command += ["-m", "not slow"]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900)
        return done.returncode == 0


def main() -> int:
    """Try every mistake."""
    control = MISTAKES[0]
    assert unseen(control[0], control[1], control[1], control[3]), "the tests must pass where there is no mistake"
    missed = 0
    for file, right, wrong, tests in MISTAKES:
        passed = unseen(file, right, wrong, tests)
        missed += passed
        print(f"{'NOT SEEN' if passed else 'seen':>8}  {file}: {right!r} → {wrong!r}", flush=True)
    print(f"{len(MISTAKES) - missed} of {len(MISTAKES)} mistakes seen")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
