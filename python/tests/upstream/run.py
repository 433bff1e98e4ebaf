"""Runs diffusers' own scheduler tests on this package's classes, and prints passed and failed for each file.

`python run.py PATH` takes the path of an unmodified checkout of diffusers, of version 0.42 or near; nothing of it is kept here.
The names that its tests import from `diffusers` are resolved to the classes of `tch_diffusers` before they are collected. A
test in `EXCEPTIONS` may fail; it is named with its reason. Any other failure fails the run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import unittest.mock
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddim_inverse": "DDIMInverseScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm_single": "DPMSolverSinglestepScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "kdpm2_discrete": "KDPM2DiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm_multi": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}

# Test, and why it may fail.
EXCEPTIONS: dict[str, str] = {}


class Recorder:
    """Counts outcomes by file, and keeps the failures' last lines."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.failures: list[tuple[str, str]] = []
        self.excused: set[str] = set()

    def pytest_runtest_logreport(self, report) -> None:
        """A test's call, or a set-up that did not get as far."""
        if report.when != "call" and report.passed:
            return
        file, _, name = report.nodeid.partition("::")
        outcome = report.outcome
        test = name.rpartition("::")[2]
        if outcome == "failed" and (name in EXCEPTIONS or test in EXCEPTIONS):
            outcome = "excepted"
            self.excused.add(name if name in EXCEPTIONS else test)
        elif outcome == "failed":
            self.failures.append((f"{Path(file).name}::{name}", str(report.longrepr).strip().splitlines()[-1]))
        self.counts.setdefault(Path(file).name, Counter())[outcome] += 1


def run(checkout: Path, verbose: bool = False) -> Recorder:
    """Runs the files of the schedulers that there are."""
    folder = checkout / "tests" / "schedulers"
    files = [folder / f"test_scheduler_{name}.py" for name in SCHEDULERS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise SystemExit(f"{checkout} is no checkout of diffusers: {missing[0]} is missing")

    import tch_diffusers

    return collect(checkout, map(str, files), {name: getattr(tch_diffusers, name) for name in SCHEDULERS.values()}, verbose)


def collect(
    checkout: Path, tests: Iterable[str], resolved: dict[str, Any], verbose: bool, *plugins: Any
) -> Recorder:
    """Runs files or single tests of the checkout, with the names in `resolved` in the place of those in `diffusers`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import diffusers
    import pytest

    recorder = Recorder()
    # `--noconftest`: the checkout's conftest wants packages that these tests do not need.
    arguments = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:doctest", f"--rootdir={checkout}", "-c", os.devnull]
    before = Path.cwd()
    sys.path.insert(0, str(checkout))
    sys.dont_write_bytecode = True
    os.chdir(checkout)
    quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    try:
        replaced = unittest.mock.patch.multiple(diffusers, **resolved) if resolved else contextlib.nullcontext()
        with replaced, quiet:
            pytest.main([*arguments, *tests], plugins=[recorder, *plugins])
    finally:
        os.chdir(before)
        sys.path.remove(str(checkout))
    return recorder


def report(recorder: Recorder) -> int:
    """Prints the table, and says as a status whether all is well."""
    columns = ("passed", "failed", "skipped", "excepted")
    print(f"{'file':38}" + "".join(f"{column:>10}" for column in columns))
    for file, counts in sorted(recorder.counts.items()):
        print(f"{file:38}" + "".join(f"{counts[column]:>10}" for column in columns))
    for name, reason in recorder.failures:
        print(f"failed: {name}: {reason}")
    for name in sorted(recorder.excused):
        print(f"excepted: {name}: {EXCEPTIONS[name]}")
    return 1 if recorder.failures or not recorder.counts else 0


def main() -> int:
    """Prints the table; says by its status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="an unmodified checkout of diffusers")
    parser.add_argument("--json", type=Path, help="writes the table to this file as well")
    parser.add_argument("--verbose", action="store_true", help="shows what pytest prints")
    options = parser.parse_args()
    recorder = run(options.checkout.resolve(), options.verbose)
    if options.json:
        table = {file: dict(counts) for file, counts in sorted(recorder.counts.items())}
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return report(recorder)


if __name__ == "__main__":
    sys.exit(main())
