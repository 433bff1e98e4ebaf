"""The bundled model draws what it is told, as far as pixels can tell: a short form of `make judge`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JUDGE = [sys.executable, ROOT / "tests/judge/judge_shapes.py"]


def run(*arguments: object) -> str:
    command = [str(part) for part in (*JUDGE, *arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_judge_knows_right_from_wrong():
    assert "self-test passed" in run("--self-test", 200)


def test_combinations_never_seen_in_training_are_drawn_right():
    printed = run("--side", "rust", "--binary", ROOT / "target/release/tch-diffusers", "--prompts", 40)
    score = next(line for line in printed.splitlines() if "/40" in line)
    assert int(score.split("/")[0]) >= 36, printed
