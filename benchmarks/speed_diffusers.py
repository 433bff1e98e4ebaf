"""One row of `benchmarks/speed.py` with diffusers, in a process that lives through the run; `benchmarks/speed_worker.rs`
is this library's half, line for line.

`speed_diffusers.py MODEL FOLDER DTYPE DEVICE LATENT BATCH MODES` prepares a `unet` or a `vae` and answers each line on
standard input with a line of JSON on standard output: `run`, `save PATH`, `profile`.
"""

import json
import os
import sys
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def memory(name: str) -> int:
    """A size of /proc/self/status, in bytes; mapped pages that were touched are counted."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(name)).split()[1]) * 1024


class Peak:
    """The most memory since it was last reset, beyond what there was before the model."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.before = torch.cuda.memory_allocated() if self.cuda else memory("VmHWM")

    def get(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.cuda else memory("VmHWM")) - self.before

    def reset(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as refs:
                refs.write("5")


def compiled(model, modes: list[str]):
    """The model's forward under torch.compile, where a mode asks for it."""
    names = [mode.removeprefix("compile-") for mode in modes if mode.startswith("compile-")]
    return torch.compile(model, mode=names[0]) if names else model


def prepare(model: str, folder: str, dtype: str, device: str, latent: int, batch: int, modes: list[str]):
    """What one run does."""
    kind = getattr(torch, dtype)
    names = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    net = names[model].from_pretrained(folder, torch_dtype=kind).to(device)
    for mode in modes:
        if mode == "channels_last":
            net = net.to(memory_format=torch.channels_last)
        elif mode == "fused":
            net.fuse_qkv_projections()
        elif mode == "cudnn_benchmark":
            torch.backends.cudnn.benchmark = True
        elif mode == "tf32":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        elif not mode.startswith("compile-"):
            net.set_attention_backend(mode)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 4, latent, latent, generator=generator).to(device, kind)
    if model == "vae":
        net.decode = compiled(net.decode, modes)
        return lambda: net.decode(sample, return_dict=False)[0]
    text = torch.randn(batch, 77, net.config.cross_attention_dim, generator=generator).to(device, kind)
    timestep = torch.tensor([500.0]).to(device, kind)
    net = compiled(net, modes)
    return lambda: net(sample, timestep, text, return_dict=False)[0]


def operators(run) -> dict:
    """Seconds of one run, and of each of its operators by itself."""
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    seconds = time.perf_counter() - start
    rows = [
        {"name": average.key, "calls": average.count, "seconds": average.self_cpu_time_total / 1e6}
        for average in profile.key_averages()
    ]
    return {"seconds": seconds, "operators": sorted(rows, key=lambda row: -row["seconds"])}


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


@torch.no_grad()
def main() -> None:
    model, folder, dtype, device, latent, batch, modes = sys.argv[1:]
    peak = Peak(device)
    start = time.perf_counter()
    run = prepare(model, folder, dtype, device, int(latent), int(batch), [mode for mode in modes.split(",") if mode])
    run()
    answer({"prepare_seconds": time.perf_counter() - start, "prepare_peak_bytes": peak.get()})
    wait = torch.cuda.synchronize if peak.cuda else lambda: None
    output = None
    for line in sys.stdin:
        request, _, argument = line.strip().partition(" ")
        if request == "run":
            output = None
            peak.reset()
            wait()
            start = time.perf_counter()
            output = run()
            wait()
            answer({"seconds": time.perf_counter() - start, "peak_bytes": peak.get()})
        elif request == "save":
            save_file({"output": output.float().cpu().contiguous()}, argument)
            answer({})
        elif request == "profile":
            answer(operators(run))
        else:
            raise SystemExit(f"unknown request {request}")


if __name__ == "__main__":
    main()
