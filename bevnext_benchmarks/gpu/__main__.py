# SPDX-License-Identifier: Apache-2.0
"""Prove and measure everything that a GPU is needed for, the most important first, in nine minutes.

    python3 -m bevnext_benchmarks.gpu --goldens FOLDER --wheels FOLDER       # or: make gpu GOLDENS=... WHEELS=...
    python3 -m bevnext_benchmarks.gpu --device cpu --size tiny               # dry: every part, small, without a GPU

Runs from a checkout, with any Python that has the packages of ``NEEDED``; no environment, no network. What is missing
is listed before anything runs; ``--wheels`` names a folder of wheels to install from. Each part is a process with a
time limit; what it has found is in ``gpu_report.json`` and ``gpu_report.md`` as soon as it ends, whatever its end.

What this file imports is the standard library alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bevnext_core.files import Parser
from bevnext_tools.threads import prepare_threads

ROOT = Path(__file__).resolve().parents[2]
# setuptools comes with torch, whose torch.utils.benchmark imports it.
NEEDED = (
    *("torch", "torchvision", "setuptools", "numpy", "cv2", "PIL"),
    *("safetensors", "yaml", "pydantic", "pyquaternion"),
)


class Part(NamedTuple):
    """What a part shows, its module and function, and its time limit in seconds."""

    title: str
    function: str
    limit: int


PARTS = {
    "a": Part("operators compiled, and equal to plain PyTorch", "kernels:right", 110),
    "b": Part("the reference's outputs: drift by precision", "network:goldens", 55),
    "c": Part("pooling and CRF: time, bytes, the memory's floor", "kernels:speed", 45),
    "d": Part("the streaming step: time, memory, drift", "network:step", 135),
    "e": Part("training: samples per second, memory", "training:training", 80),
    "f": Part("compute-sanitizer on small cases", "kernels:sanitizer", 45),
    "g": Part("export to a compiled package: drift, time", "network:export", 70),
}
TOTAL = 540
"""Seconds for all parts: what is not done by then is left out, and said to be."""


def missing(names: Sequence[str]) -> list[str]:
    """Those of the packages that cannot be found."""
    importlib.invalidate_caches()
    return [name for name in names if importlib.util.find_spec(name) is None]


def install(wheels: Path, target: Path) -> None:
    """Install what ``wheels`` holds for this Python into ``target``, and nothing that is not there."""
    names = sorted({file.name.partition("-")[0] for file in wheels.glob("*.whl")})
    if not names:
        raise SystemExit(f"gpu: no wheels in {wheels}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-index", "--no-deps", "--find-links", str(wheels), "--target", str(target)]
    done = subprocess.run([*command, *options, *names])
    if done.returncode:
        raise SystemExit(f"gpu: pip could not install {', '.join(names)} from {wheels}")
    sys.path.append(str(target))


def left_out(device: str) -> dict[str, str]:
    """What is not here but can be done without, and what is then left out."""
    without = {} if importlib.util.find_spec("pytest") else {"pytest": "the tests marked gpu (part a)"}
    if device.startswith("cuda"):
        programs = {"nvcc": "CUDA operators (part a fails)", "compute-sanitizer": "part f", "nvidia-smi": "the driver"}
        without |= {name: what for name, what in programs.items() if not program(name)}
    return without


def program(name: str) -> str | None:
    """Path of a program in PATH or of the CUDA toolkit."""
    return shutil.which(name) or shutil.which(name, path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")


def run_part(letter: str, part: Part, limit: float, arguments: list[str], out: Path) -> dict[str, Any]:
    """Run a part in a process of its own -> what it has found, with its state, seconds and what it said at the end."""
    found, log = out / "gpu_parts" / f"{letter}.json", out / "gpu_parts" / f"{letter}.log"
    found.parent.mkdir(exist_ok=True)
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bevnext_benchmarks.gpu.part", part.function, "--out", str(found), *arguments]
    start, state = time.monotonic(), ""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            state = f"stopped after {limit:.0f} s"
        finally:
            # its own group: compilers and tests that it started end with it
            if process.poll() is None or state:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result: dict[str, Any] = json.loads(found.read_text()) if found.is_file() else {}
    if not state:
        state = "failed" if code or result.get("failures") else result.get("state", "") or "passed"
    result |= {"title": part.title, "state": state, "seconds": round(time.monotonic() - start, 1)}
    if code_said := log.read_text(errors="replace").strip().splitlines()[-1:] if state == "failed" else []:
        result["said"] = code_said[0]
    return result


def written(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    about = {name: value for name, value in report["environment"].items() if value}
    lines = ["# GPU report", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    if about.get("device") == "cpu":
        lines += ["Without a GPU, with small inputs: every part has run, no time in it means anything.", ""]
    lines += ["| part | | state | seconds |", "|---|---|---|---|"]
    lines += [f"| {k} | {p['title']} | {p['state']} | {p.get('seconds', '')} |" for k, p in report["parts"].items()]
    for letter, part in report["parts"].items():
        lines += ["", f"## {letter}: {part['title']}", "", part["state"]]
        lines += [f"- **{text}**" for text in [*part.get("failures", []), *filter(None, [part.get("said")])]]
        for table in part.get("tables", []):
            head, *rows = table
            lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", *(f"- {note}" for note in part["notes"])] if part.get("notes") else []
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--goldens", default="", help="folder of the complete reference outputs")
    parser.add_argument("--wheels", default="", help="folder of wheels to install what is missing from")
    parser.add_argument("--parts", default="".join(PARTS), help="which (default: %(default)s)")
    parser.add_argument("--out", default=".", help="folder of the report")
    args = parser.parse_args(arguments)
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    target = out / "gpu_packages"
    if args.wheels and missing(NEEDED):
        install(Path(args.wheels), target)
    without, lacking = left_out(args.device), missing(NEEDED)
    for name, what in without.items():
        print(f"gpu: not here: {name}; left out: {what}", flush=True)
    if lacking:
        print(f"gpu: missing: {', '.join(lacking)}; WHEELS=FOLDER installs what it holds", file=sys.stderr)
        return 2
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), *([str(target)] if target.is_dir() else [])]
    prepare_threads()
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "KINETO_LOG_LEVEL": "5"}  # the profiler's own lines
    report: dict[str, Any] = {"environment": {}, "left out": without, "parts": {}}
    given = ["--device", args.device, "--size", args.size, "--goldens", args.goldens]
    patience = 1 if args.device.startswith("cuda") else 4  # what a limit is for, on a GPU, is its rent
    end = time.monotonic() + patience * TOTAL
    for letter in args.parts:
        limit = min(patience * PARTS[letter].limit, end - time.monotonic())
        if limit > 5:
            report["parts"][letter] = part = run_part(letter, PARTS[letter], limit, given, out)
            report["environment"] = report["environment"] or part.pop("environment", {})
            part.pop("environment", None)
        else:
            report["parts"][letter] = part = {"title": PARTS[letter].title, "state": "left out: no time left"}
        (out / "gpu_report.json").write_text(json.dumps(report, indent=1))
        (out / "gpu_report.md").write_text(written(report))
        print(f"gpu: {letter}: {part['state']} ({part.get('seconds', 0)} s): {part['title']}", flush=True)
        for text in [*part.get("failures", []), *filter(None, [part.get("said")])]:
            print(f"gpu:    {text}", flush=True)
    print(f"gpu: {out / 'gpu_report.md'}")
    return 0 if all(part["state"] in ("passed", "left out") for part in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
