"""The package itself: what it says where torch does not fit, what it costs to import, and its types."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tch_diffusers


def python(source, *paths):
    """A fresh interpreter that sees `paths` before all others."""
    start = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    return subprocess.run([sys.executable, "-c", start + source], capture_output=True, text=True)


def place():
    """Where the package lies."""
    return Path(tch_diffusers.__file__).parent.parent


def test_a_missing_torch_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    result = python("import tch_diffusers", tmp_path, place())
    assert "ImportError: tch_diffusers runs on torch 2.11, which is not installed" in result.stderr


def test_a_torch_of_another_version_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '2.12.0+cpu'")
    result = python("import tch_diffusers", tmp_path, place())
    assert "built for torch 2.11, and torch 2.12.0+cpu is installed" in result.stderr


def test_the_extension_was_built_for_this_torch():
    assert torch.__version__.startswith(tch_diffusers.__libtorch_version__)


def test_the_extension_carries_no_library_and_no_path():
    extension = Path(tch_diffusers._tch_diffusers.__file__)
    assert extension.stat().st_size < 15_000_000
    readelf = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True)
    if readelf.returncode == 0:
        assert "RUNPATH" not in readelf.stdout and "RPATH" not in readelf.stdout
        assert "libtorch_cuda" not in readelf.stdout and "libpython" not in readelf.stdout
    assert not list(extension.parent.glob("**/libtorch*"))


def test_importing_it_brings_little_along():
    source = "import torch, sys; before = set(sys.modules); import tch_diffusers; print(*(set(sys.modules) - before))"
    result = python(source, place())
    foreign = {name.partition(".")[0] for name in result.stdout.split()} - {"tch_diffusers"}
    assert not foreign & {"diffusers", "transformers", "accelerate", "huggingface_hub", "PIL", "tqdm", "safetensors"}


def test_every_name_is_there():
    assert all(hasattr(tch_diffusers, name) for name in tch_diffusers.__all__)
    public = [getattr(tch_diffusers, name) for name in tch_diffusers.__all__]
    assert all(one.__doc__ for one in public)


def test_the_extensions_stub_is_right(tmp_path):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy.stubtest", "tch_diffusers._tch_diffusers"]
    environment = {"MYPYPATH": "", "PYTHONPATH": "", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stdout


def test_the_packages_types_are_right(tmp_path):
    pytest.importorskip("mypy")
    settings = Path(__file__).parent.parent / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
