"""diffusers' own scheduler tests, where a checkout of diffusers is named."""

import os
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
    recorder = pipelines.run(Path(CHECKOUT))
    assert recorder.failures == []
    assert sum(counts["passed"] for counts in recorder.counts.values()) == len(pipelines.NAMES)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="is no checkout of diffusers"):
        run(tmp_path)
