"""A picture from a sketch, and a part of it drawn anew, with the components of one pipeline."""

import torch
from PIL import Image, ImageDraw

from tch_diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from tch_diffusers.utils import bundled_model

sketch = Image.new("RGB", (128, 128), "white")
ImageDraw.Draw(sketch).ellipse((24, 24, 104, 104), fill="blue")
mask = Image.new("L", (128, 128))
ImageDraw.Draw(mask).rectangle((64, 0, 128, 128), fill=255)

redraw = StableDiffusionImg2ImgPipeline.from_pretrained(bundled_model())
prompt = "a blue circle on a white background"
options = {"num_inference_steps": 20, "generator": torch.Generator().manual_seed(3)}
drawn = redraw(prompt, image=sketch, strength=0.8, **options).images[0]
drawn.save("from-sketch.png")

# The very same models: nothing is loaded twice.
inpaint = StableDiffusionInpaintPipeline.from_pipe(redraw)
prompt = "a red circle on a white background"
inpaint(prompt, image=drawn, mask_image=mask, strength=0.9, **options).images[0].save("half.png")
print("from-sketch.png half.png", drawn.size)
