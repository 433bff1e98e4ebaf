"""The snippets of diffusers' guides to memory and speed that concern Stable Diffusion 1.5, and compiling SDXL, as they stand there.

Changed are the import, the model's path and, on a machine without a GPU, `"cuda"`, `torch.cuda.synchronize()` and `float16`. Calls
are cut to one step and to a tenth of a very large picture's sides, and the traced UNet is timed twice, not fifty times.
"""

import functools
import textwrap
from pathlib import Path

import pytest
import torch

from tch_diffusers import StableDiffusionPipeline

SDXL = Path(__file__).parents[2] / "tests/fixtures/generated/sdxl_pipeline/_models/sdxl"
LOAD = """
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    torch_dtype=torch.float16,
    use_safetensors=True,
)
"""

SNIPPETS = {
    "half precision": LOAD
    + """
pipe = pipe.to("cuda")

prompt = "a photo of an astronaut riding a horse on mars"
image = pipe(prompt).images[0]
""",
    "sliced VAE": LOAD
    + """
pipe = pipe.to("cuda")

prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_vae_slicing()
#pipe.enable_xformers_memory_efficient_attention()
images = pipe([prompt] * 32).images
assert len(images) == 32
""",
    "tiled VAE": """
import torch
from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler

pipe = StableDiffusionPipeline.from_pretrained(
    "runwayml/stable-diffusion-v1-5",
    torch_dtype=torch.float16,
    use_safetensors=True,
)
pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
prompt = "a beautiful landscape photograph"
pipe.enable_vae_tiling()
#pipe.enable_xformers_memory_efficient_attention()

image = pipe([prompt], width=3840, height=2224, num_inference_steps=20).images[0]
""",
    "sequential offloading": LOAD
    + """
prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_sequential_cpu_offload()
image = pipe(prompt).images[0]
""",
    "sequential offloading and attention slicing": LOAD
    + """
prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_sequential_cpu_offload()
pipe.enable_attention_slicing(1)

image = pipe(prompt).images[0]
""",
    "model offloading": LOAD
    + """
prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_model_cpu_offload()
image = pipe(prompt).images[0]
""",
    "model offloading and attention slicing": LOAD
    + """
prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_model_cpu_offload()
pipe.enable_attention_slicing(1)

image = pipe(prompt).images[0]
""",
    "attention slicing": LOAD
    + """
pipe = pipe.to("cuda")

prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_attention_slicing()
image = pipe(prompt).images[0]
""",
    "channels last": LOAD
    + """
print(pipe.unet.conv_out.state_dict()["weight"].stride())  # (2880, 9, 3, 1)
pipe.unet.to(memory_format=torch.channels_last)  # in-place operation
print(
    pipe.unet.conv_out.state_dict()["weight"].stride()
)  # (2880, 1, 960, 320) having a stride of 1 for the 2nd dimension proves that it works
assert pipe.unet.conv_out.state_dict()["weight"].stride()[1] == 1
""",
    "cuDNN's benchmark": "import torch\n\ntorch.backends.cudnn.benchmark = True\n"
    + LOAD
    + 'image = pipe("a photo of an astronaut riding a horse on mars").images[0]\n',
    "TF32": "import torch\n\ntorch.backends.cuda.matmul.allow_tf32 = True\n"
    + LOAD
    + 'image = pipe("a photo of an astronaut riding a horse on mars").images[0]\n',
    "memory-efficient attention": """
from diffusers import DiffusionPipeline
import torch

pipe = DiffusionPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    torch_dtype=torch.float16,
    use_safetensors=True,
).to("cuda")

pipe.enable_xformers_memory_efficient_attention()

with torch.inference_mode():
    sample = pipe("a small cat")

# optional: You can disable it via
# pipe.disable_xformers_memory_efficient_attention()
""",
    "SDPA's kernel": """
from torch.nn.attention import SDPBackend, sdpa_kernel
"""
    + LOAD
    + """
with sdpa_kernel(SDPBackend.MATH):
    image = pipe("Astronaut in a jungle", num_inference_steps=30).images[0]
""",
    "compiled UNet and VAE": """
import torch
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.float16
).to("cuda")

pipeline.unet.to(memory_format=torch.channels_last)
pipeline.vae.to(memory_format=torch.channels_last)

pipeline.unet = torch.compile(
    pipeline.unet, mode="max-autotune", fullgraph=True
)
pipeline.vae.decode = torch.compile(
    pipeline.vae.decode,
    mode="max-autotune",
    fullgraph=True
)

prompt = "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k"
pipeline(prompt, num_inference_steps=30).images[0]
""",
    "repeated blocks compiled": """
import torch
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0",
    torch_dtype=torch.float16,
).to("cuda")

# compile only the repeated transformer layers inside the UNet
pipeline.unet.compile_repeated_blocks(fullgraph=True)
pipeline("Astronaut in a jungle", num_inference_steps=2).images[0]
""",
}

TRACING = """
import time
import torch
from diffusers import StableDiffusionPipeline
import functools

# torch disable grad
torch.set_grad_enabled(False)

# set variables
n_experiments = 2
unet_runs_per_experiment = 50

# load inputs
def generate_inputs():
    sample = torch.randn((2, 4, 64, 64), device="cuda", dtype=torch.float16)
    timestep = torch.rand(1, device="cuda", dtype=torch.float16) * 999
    encoder_hidden_states = torch.randn((2, 77, 768), device="cuda", dtype=torch.float16)
    return sample, timestep, encoder_hidden_states

pipe = StableDiffusionPipeline.from_pretrained(
    "runwayml/stable-diffusion-v1-5",
    torch_dtype=torch.float16,
    use_safetensors=True,
).to("cuda")
unet = pipe.unet
unet.eval()
unet.to(memory_format=torch.channels_last)  # use channels_last memory format
unet.forward = functools.partial(unet.forward, return_dict=False)  # set return_dict=False as default

# warmup
for _ in range(3):
    with torch.inference_mode():
        inputs = generate_inputs()
        orig_output = unet(*inputs)

# trace
print("tracing..")
unet_traced = torch.jit.trace(unet, inputs)
unet_traced.eval()
print("done tracing")

# warmup and optimize graph
for _ in range(5):
    with torch.inference_mode():
        inputs = generate_inputs()
        orig_output = unet_traced(*inputs)

# benchmarking
with torch.inference_mode():
    for _ in range(n_experiments):
        torch.cuda.synchronize()
        start_time = time.time()
        for _ in range(unet_runs_per_experiment):
            orig_output = unet_traced(*inputs)
        torch.cuda.synchronize()
        print(f"unet traced inference took {time.time() - start_time:.2f} seconds")
    for _ in range(n_experiments):
        torch.cuda.synchronize()
        start_time = time.time()
        for _ in range(unet_runs_per_experiment):
            orig_output = unet(*inputs)
        torch.cuda.synchronize()
        print(f"unet inference took {time.time() - start_time:.2f} seconds")

# save the model
unet_traced.save("unet_traced.pt")
"""

TRACED = """
from diffusers import StableDiffusionPipeline
import torch
from dataclasses import dataclass

@dataclass
class UNet2DConditionOutput:
    sample: torch.FloatTensor

pipe = StableDiffusionPipeline.from_pretrained(
    "runwayml/stable-diffusion-v1-5",
    torch_dtype=torch.float16,
    use_safetensors=True,
).to("cuda")

# use jitted unet
unet_traced = torch.jit.load("unet_traced.pt")

# del pipe.unet
class TracedUNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.in_channels = pipe.unet.config.in_channels
        self.device = pipe.unet.device

    def forward(self, latent_model_input, t, encoder_hidden_states):
        sample = unet_traced(latent_model_input, t, encoder_hidden_states)[0]
        return UNet2DConditionOutput(sample=sample)

pipe.unet = TracedUNet()

with torch.inference_mode():
    image = pipe([prompt] * 1, num_inference_steps=50).images[0]
"""


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    """Calls of one step, and of small pictures; what a snippet switched on for the process is switched off again."""
    draw = StableDiffusionPipeline.__call__

    @functools.wraps(draw)
    def short(self, *args, **kwargs):
        self.set_progress_bar_config(disable=True)
        sides = {side: kwargs[side] // 80 * 8 for side in ("height", "width") if side in kwargs}
        return draw(self, *args, **{**kwargs, **sides, "num_inference_steps": 1})

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", short)
    switches = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, grad = switches
    torch.set_grad_enabled(grad)


def run(snippet, model, **names):
    """Runs a snippet, and returns what it defined."""
    source = snippet.replace("from diffusers import", "from tch_diffusers import")
    for name in ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        source = source.replace(f'"{name}"', repr(str(model)))
    source = source.replace('"stabilityai/stable-diffusion-xl-base-1.0"', repr(str(SDXL)))
    if not torch.cuda.is_available():
        source = source.replace('"cuda"', '"cpu"').replace("torch.cuda.synchronize()", "pass")
        source = source.replace("torch.float16", "torch.float32")
    exec(compile(textwrap.dedent(source), "snippet", "exec"), names)
    return names


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_runs(model, name):
    names = run(SNIPPETS[name], model)
    picture = names["image"] if "image" in names else names["images"][0] if "images" in names else None
    if picture is not None:
        assert picture.size == ((384, 216) if name == "tiled VAE" else (128, 128))


def test_the_snippets_of_tracing_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The bundled model's text is narrower and shorter.
    source = TRACING.replace("(2, 77, 768)", "(2, 24, 64)").replace("unet_runs_per_experiment = 50", "unet_runs_per_experiment = 2")
    width = StableDiffusionPipeline.from_pretrained(model).unet.config.cross_attention_dim
    names = run(source.replace("(2, 24, 64)", f"(2, 24, {width})"), model)
    assert torch.equal(names["unet_traced"](*names["inputs"])[0], names["orig_output"][0])
    assert (tmp_path / "unet_traced.pt").is_file()
    image = run(TRACED, model, prompt="a yellow star on a black background")["image"]
    assert image.size == (128, 128)
