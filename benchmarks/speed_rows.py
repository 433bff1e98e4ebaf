"""What `benchmarks/speed.py` measures: tables of rows, each row a process of its own."""

from dataclasses import dataclass, field
from pathlib import Path

OURS, DIFFUSERS = "tch-diffusers", "diffusers"


@dataclass(frozen=True)
class Row:
    """One way to do a table's work."""

    side: str
    name: str
    modes: str = ""
    dtype: str = "float32"
    # What the process takes beside the mapped file, about; on a GPU, there.
    gib: float = 1.5

    @property
    def key(self) -> str:
        return f"{self.side}: {self.name}"


@dataclass(frozen=True)
class Table:
    """Rows that do the same work. The first of each side is what the others are compared with."""

    name: str
    title: str
    model: str
    folder: Path
    latent: int
    batch: int
    rows: list[Row] = field(default_factory=list)

    def references(self) -> list[Row]:
        return [next(row for row in self.rows if row.side == side) for side in (OURS, DIFFUSERS)]


def unet_cpu(bfloat16: bool) -> list[Row]:
    rows = [
        Row(OURS, "original"),
        Row(DIFFUSERS, "original", gib=2.0),
        Row(OURS, "channels_last", "channels_last", gib=3.5),
        Row(OURS, "traced", "traced"),
        Row(OURS, "fused projections", "fused", gib=2.0),
        Row(OURS, "memory-efficient attention (flash)", "_native_flash"),
        Row(OURS, "packed weights", "prepacked", gib=4.0),
        Row(OURS, "packed weights, channels_last", "channels_last,prepacked", gib=6.0),
        Row(OURS, "Winograd", "winograd", gib=4.0),
        Row(OURS, "best: Winograd, packed weights, channels_last, fused", "channels_last,fused,winograd,prepacked", gib=6.0),
        Row(DIFFUSERS, "channels_last", "channels_last", gib=4.0),
        Row(OURS, "traced, frozen", "traced,frozen", gib=5.0),
        Row(OURS, "traced, frozen, channels_last", "channels_last,traced,frozen", gib=5.0),
        Row(OURS, "traced, frozen, optimize_for_inference", "traced,optimized", gib=8.5),
        Row(OURS, "compiled, default, channels_last", "channels_last,compile-default", gib=5.0),
        Row(OURS, "compiled, default, repeated blocks, channels_last", "channels_last,blocks-default", gib=3.5),
        Row(OURS, "compiled, AOTInductor", "channels_last,compile-max-autotune", gib=4.5),
        Row(DIFFUSERS, "torch.compile, default", "compile-default", gib=4.0),
        Row(DIFFUSERS, "torch.compile, max-autotune", "compile-max-autotune", gib=5.0),
    ]
    if bfloat16:
        rows += [
            Row(OURS, "bfloat16", dtype="bfloat16", gib=2.5),
            Row(OURS, "bfloat16, channels_last", "channels_last", "bfloat16", 2.5),
            Row(OURS, "bfloat16, best: channels_last, fused", "channels_last,fused", "bfloat16", 3.0),
            Row(OURS, "bfloat16, traced, frozen, channels_last", "channels_last,traced,frozen", "bfloat16", 4.0),
            Row(DIFFUSERS, "bfloat16", dtype="bfloat16", gib=3.0),
            Row(DIFFUSERS, "bfloat16, channels_last", "channels_last", "bfloat16", 3.0),
            Row(DIFFUSERS, "bfloat16, torch.compile", "compile-default", "bfloat16", 4.0),
        ]
    return rows


def vae_cpu() -> list[Row]:
    return [
        Row(OURS, "original", gib=3.5),
        Row(DIFFUSERS, "original", gib=3.5),
        Row(OURS, "channels_last", "channels_last", gib=3.5),
        Row(OURS, "Winograd", "winograd", gib=3.5),
        Row(OURS, "packed weights", "prepacked", gib=3.5),
        Row(OURS, "Winograd, channels_last", "channels_last,winograd", gib=3.5),
        Row(OURS, "traced", "traced", gib=3.5),
        Row(OURS, "traced, frozen, channels_last", "channels_last,traced,frozen", gib=3.5),
        Row(OURS, "compiled, default, repeated blocks, channels_last", "channels_last,blocks-default", gib=3.5),
        Row(DIFFUSERS, "channels_last", "channels_last", gib=3.5),
    ]


def tiny_cpu() -> list[Row]:
    return [
        Row(OURS, "original", gib=0.3),
        Row(DIFFUSERS, "original", gib=0.8),
        Row(OURS, "bfloat16", dtype="bfloat16", gib=0.3),
        Row(DIFFUSERS, "bfloat16", dtype="bfloat16", gib=0.8),
    ]


def unet_cuda() -> list[Row]:
    half = "float16"
    best = "channels_last,fused,cudnn_benchmark"
    return [
        Row(OURS, "original", gib=5.0),
        Row(DIFFUSERS, "original", gib=5.0),
        Row(OURS, "cuDNN auto-tuner", "cudnn_benchmark", gib=5.0),
        Row(OURS, "TF32", "tf32", gib=5.0),
        Row(OURS, "fp16", dtype=half, gib=3.0),
        Row(OURS, "fp16, cuDNN auto-tuner", "cudnn_benchmark", half, 3.0),
        Row(OURS, "fp16, channels_last", "channels_last", half, 3.0),
        Row(OURS, "fp16, traced", "traced", half, 3.0),
        Row(OURS, "fp16, traced, frozen", "traced,frozen", half, 5.0),
        Row(OURS, "fp16, fused projections", "fused", half, 3.0),
        Row(OURS, "fp16, memory-efficient attention", "_native_efficient", half, 3.0),
        Row(OURS, "fp16, best: channels_last, fused, auto-tuner", best, half, 4.0),
        Row(OURS, "fp16, best, traced, frozen", f"{best},traced,frozen", half, 5.0),
        Row(OURS, "fp16, best, compiled, default", f"{best},compile-default", half, 5.0),
        Row(OURS, "fp16, best, compiled, reduce-overhead", f"{best},compile-reduce-overhead", half, 6.0),
        Row(DIFFUSERS, "TF32", "tf32", gib=5.0),
        Row(DIFFUSERS, "fp16", dtype=half, gib=3.0),
        Row(DIFFUSERS, "fp16, channels_last", "channels_last", half, 3.0),
        Row(DIFFUSERS, "fp16, torch.compile", "channels_last,compile-default", half, 4.0),
        Row(DIFFUSERS, "fp16, torch.compile, max-autotune", "channels_last,compile-max-autotune", half, 5.0),
    ]


def eager_cuda() -> list[Row]:
    """For sizes and models that need no more than the comparison with diffusers."""
    return [
        Row(OURS, "original", gib=12.0),
        Row(DIFFUSERS, "original", gib=12.0),
        Row(OURS, "fp16", dtype="float16", gib=8.0),
        Row(OURS, "fp16, channels_last, auto-tuner", "channels_last,cudnn_benchmark", "float16", 8.0),
        Row(DIFFUSERS, "fp16", dtype="float16", gib=8.0),
        Row(DIFFUSERS, "fp16, channels_last", "channels_last", "float16", 8.0),
    ]


def tables(device: str, side: int, bfloat16: bool, unet: Path, vae: Path, tiny: Path) -> list[Table]:
    latent = side // 8
    step, decode = f"one UNet step, batch 2, {side} x {side}", f"VAE decode, {side} x {side}"
    if device != "cpu":
        larger = [
            Table(f"unet-{side}", f"one UNet step, batch 2, {side} x {side}", "unet", unet, side // 8, 2, eager_cuda())
            for side in (768, 1024)
        ]
        return [
            Table("unet", step, "unet", unet, latent, 2, unet_cuda()),
            *larger,
            Table("vae", decode, "vae", vae, latent, 1, eager_cuda()),
        ]
    found = [
        Table("unet", step, "unet", unet, latent, 2, unet_cpu(bfloat16)),
        Table("vae", decode, "vae", vae, latent, 1, vae_cpu()),
    ]
    if not bfloat16:
        title = "bfloat16 without instructions for it: the bundled model's UNet, batch 2, latents 32 x 32"
        found.append(Table("bf16", title, "unet", tiny, 32, 2, tiny_cpu()))
    return found
