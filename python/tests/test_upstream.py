"""diffusers' own scheduler tests, where a checkout of diffusers is named."""

import os
import subprocess
import sys
from pathlib import Path

import pipelines
import pytest
from run import EXCEPTIONS, SCHEDULERS, run

CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT")


@pytest.mark.skipif(CHECKOUT is None, reason="DIFFUSERS_CHECKOUT names no checkout of diffusers")
def test_diffusers_own_scheduler_tests_pass():
    recorder = run(Path(CHECKOUT))
    assert recorder.failures == []
    assert len(recorder.counts) == len(SCHEDULERS)
    assert recorder.excused <= set(EXCEPTIONS)


@pytest.mark.skipif(CHECKOUT is None, reason="DIFFUSERS_CHECKOUT names no checkout of diffusers")
def test_the_slices_of_diffusers_own_pipeline_tests_are_met():
    # In a process of its own: a module of tests that was imported once keeps the names it found then.
    command = [sys.executable, pipelines.__file__, CHECKOUT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    counts = result.stdout.split("test_stable_diffusion.py", 1)[1].split()
    assert int(counts[0]) == len(pipelines.NAMES)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="is no checkout of diffusers"):
        run(tmp_path)
