"""What a step cannot be faster than: its floating-point operations and bytes over what this machine was measured to do.

Operations are those of the direct algorithms, two for each multiplication with its addition, and only of products,
convolutions and attention: everything else could in principle ride along. Bytes are the least: every weight once, the
input and the output.
"""

import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

# Rows, inner and columns as Stable Diffusion 1.5's UNet multiplies at 512 x 512 on two branches, and a square.
PRODUCTS = ((8192, 320, 2560), (8192, 1280, 320), (2048, 640, 5120), (2048, 5760, 640), (2048, 2048, 2048))


def on_meta(model: str, folder: Path, latent: int, batch: int):
    """The model without its weights, and what it is called with."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        sample = torch.empty(batch, 4, latent, latent)
        if model == "vae":
            vae = AutoencoderKL.from_config(config)
            weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
            return weights, lambda: vae.decode(sample, return_dict=False)[0], [sample]
        unet = UNet2DConditionModel.from_config(config)
        inputs = [sample, torch.empty(1), torch.empty(batch, 77, unet.config.cross_attention_dim)]
        return list(unet.parameters()), lambda: unet(*inputs, return_dict=False)[0], inputs


@torch.no_grad()
def work(model: str, folder: Path, latent: int, batch: int) -> dict:
    """Operations, by operator and in all, and numbers that have to be read or written."""
    weights, run, inputs = on_meta(model, folder, latent, batch)
    with FlopCounterMode(display=False) as counter:
        output = run()
    by_operator = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    numbers = sum(tensor.numel() for tensor in (*weights, *inputs, output))
    return {"operations": counter.get_total_flops(), "by_operator": by_operator, "numbers": numbers}


def best(run, device: str, seconds: float = 1.0) -> float:
    """The shortest of the runs that fit into some time, at least three."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_rate(dtype: str, device: str) -> float:
    """Operations a second of the best of some products."""
    rates = []
    for rows, inner, columns in PRODUCTS:
        a = torch.randn(rows, inner).to(device, getattr(torch, dtype))
        b = torch.randn(columns, inner).to(device, getattr(torch, dtype)).t()
        rates.append(2 * rows * inner * columns / best(lambda a=a, b=b: a @ b, device))
    return max(rates)


def bandwidth(device: str) -> float:
    """Bytes a second of a copy that no cache holds, read and written."""
    source = torch.zeros(256 << 20, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / best(lambda: target.copy_(source), device)


def rates(dtypes: set[str], device: str) -> dict:
    """What the machine does now."""
    return {"matmul": {dtype: matmul_rate(dtype, device) for dtype in sorted(dtypes)}, "bandwidth": bandwidth(device)}


def faster(a: dict, b: dict) -> dict:
    """The better of two measurements: a busy machine has no slower floor."""
    matmul = {dtype: max(rate, b["matmul"].get(dtype, 0.0)) for dtype, rate in a["matmul"].items()}
    return {"matmul": matmul, "bandwidth": max(a["bandwidth"], b["bandwidth"])}


def floor(work: dict, rates: dict, dtype: str) -> float | None:
    """Seconds; nothing where the rate of that dtype was not measured."""
    if dtype not in rates["matmul"]:
        return None
    size = getattr(torch, dtype).itemsize
    return max(work["operations"] / rates["matmul"][dtype], work["numbers"] * size / rates["bandwidth"])
