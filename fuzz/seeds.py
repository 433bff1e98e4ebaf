"""Writes the inputs that fuzzing starts from to `fuzz/corpus/TARGET`: small whole files, and parts of the bundled model's.

    python fuzz/seeds.py
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parent / "assets" / "shapes"


def write(target: str, name: str, content: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def safetensors(header: object, data: bytes, padding: int = 0) -> bytes:
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + data


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*texts: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2\3\4\5\6"))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(texts) + pixels + chunk(b"IEND", b"")


def weights() -> None:
    one = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    write("safetensors", "one", safetensors({"weight": one}, bytes(24)))
    two = {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}, "a": one, "__metadata__": {"format": "pt"}}
    write("safetensors", "two", safetensors(two, bytes(32), padding=5))
    write("safetensors", "none", safetensors({}, b""))
    scalar = {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}
    write("safetensors", "scalar", safetensors({"step": scalar}, bytes(8)))
    empty = {"dtype": "F8_E4M3", "shape": [0, 7], "data_offsets": [0, 0]}
    write("safetensors", "empty", safetensors({"none": empty}, b""))


def index() -> None:
    names = {"conv_in.weight": "m-00001-of-00002.safetensors", "conv_out.weight": "m-00002-of-00002.safetensors"}
    write("shard_index", "two", json.dumps({"metadata": {"total_size": 64}, "weight_map": names}).encode())
    for number, name in enumerate(("../a.safetensors", "/a", "a/b", ".", "a\\..\\b", "a.safetensors")):
        write("shard_index", f"name-{number}", json.dumps({"weight_map": {"a": name}}).encode())


def configs() -> None:
    files = ["unet/config.json", "vae/config.json", "text_encoder/config.json", None, "scheduler/scheduler_config.json"]
    t5 = {"d_ff": 8, "d_kv": 4, "d_model": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 9}
    for number, name in enumerate(files):
        map = t5 if name is None else json.loads((MODEL / name).read_text())
        write("config", f"whole-{number}", bytes([number]) + json.dumps(map).encode())
    names = "DDIM DDPM PNDM LMSDiscrete EulerDiscrete HeunDiscrete EulerAncestralDiscrete DPMSolverMultistep"
    names += " DPMSolverSinglestep KDPM2Discrete KDPM2AncestralDiscrete DEISMultistep UniPCMultistep LCM DDIMInverse"
    for name in names.split():
        options = {"_class_name": f"{name}Scheduler", "num_train_timesteps": 20, "beta_schedule": "scaled_linear",
                   "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
        write("config", f"scheduler-{name}", b"\x04" + json.dumps(options).encode())


def tokenizers() -> None:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b": 3, "a</w>": 4, "b</w>": 5, "ab</w>": 6}
    config = {"model_max_length": 9, "added_tokens_decoder": {"0": {"content": "<|startoftext|>", "special": True}}}
    merges = "#version: 0.2\na b</w>\n"
    old = [b"ab a b, AB", json.dumps(config).encode(), json.dumps(vocab).encode(), merges.encode()]
    write("tokenizer", "old", b"\xff".join(old))
    plain = [b"a", b"", *old[2:], b'{"pad_token": "a"}', b'{"<x>": 7}']
    write("tokenizer", "older", b"\xff".join(plain))
    whole = {"model": {"vocab": vocab, "merges": [["a", "b</w>"]]}, "added_tokens": [{"id": 7, "content": "<x>"}]}
    write("tokenizer", "whole", b"\xff".join([b"ab <x>", old[1], json.dumps(whole).encode()]))


def lora(layers: dict, names: tuple[str, str, str], prefix: str = "", alpha: bool = False) -> dict[str, tuple]:
    """The shapes of a LoRA's tensors by key; `names` are what comes after a layer's name."""
    tensors = {}
    for name, (outputs, inputs, *kernel) in layers.items():
        tensors[prefix + name + names[0]] = (2, inputs, *kernel)
        tensors[prefix + name + names[1]] = (outputs, 2, *[1 for _ in kernel])
        if alpha:
            tensors[prefix + name + names[2]] = ()
    return tensors


def loras() -> None:
    unet = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (4, 4), "mid_block.resnets.0.conv1": (8, 8, 3, 3)}
    text = {"text_model.encoder.layers.0.self_attn.q_proj": (4, 4), "text_model.encoder.layers.0.mlp.fc1": (8, 4)}
    flat = lambda layers: {name.replace(".", "_"): shape for name, shape in layers.items()}
    peft, kohya = (".lora_A.weight", ".lora_B.weight", ".alpha"), (".lora_down.weight", ".lora_up.weight", ".alpha")
    processor = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora": (4, 4)}
    config = {"r": 2, "lora_alpha": 3, "rank_pattern": {"conv1": 2}, "alpha_pattern": {"^mid_block": 1}, "use_rslora": True}
    files = {
        "peft": (lora(unet, peft, "unet.") | lora(text, peft, "text_encoder."), None),
        "bias": (lora({"conv_in": (4, 4, 3, 3)}, peft, "unet.") | {"unet.conv_in.lora_B.bias": (4,)}, None),
        "bare": (lora(unet, peft), None),
        "metadata": (lora(unet, peft, "unet."), {f"unet.{key}": value for key, value in config.items()}),
        "diffusers": (lora(unet, (".lora.down.weight", ".lora.up.weight", ""), "unet."), None),
        "processors": (lora(processor, (".down.weight", ".up.weight", ""), "unet."), None),
        "text": (lora(text, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", ""), "text_encoder."), None),
        "kohya": (lora(flat(unet), kohya, "lora_unet_", True) | lora(flat(text), kohya, "lora_te_", True), None),
        "kohya_te1": (lora(flat(text), kohya, "lora_te1_"), None),
    }
    for name, (shapes, metadata) in files.items():
        text = "" if metadata is None else json.dumps(metadata)
        parts = [bytes([0, len(shape), *shape]) + key.encode() for key, shape in shapes.items()]
        write("lora", name, b"\x01" + b"\xff".join([text.encode(), *parts]))
        header, end = {} if metadata is None else {"__metadata__": {"lora_adapter_metadata": text}}, 0
        for key, shape in shapes.items():
            start, end = end, end + 4 * math.prod(shape)
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        write("lora", f"{name}-file", b"\x00" + safetensors(header, bytes(end)))


def pictures() -> None:
    plain = chunk(b"tEXt", b"prompt\0a cat")
    packed = chunk(b"zTXt", b"tch-diffusers\0\0" + zlib.compress(b'{"model": "bundled"}'))
    wide = chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress("été".encode()))
    write("png_text", "plain", png(plain))
    write("png_text", "all", png(plain, packed, wide))
    write("png_text", "none", png())


if __name__ == "__main__":
    weights()
    index()
    configs()
    tokenizers()
    loras()
    pictures()
