//! Traces the UNet into a TorchScript file, and draws with it in the UNet's place. `examples/traced_unet.py` puts the same
//! file into a pipeline of diffusers.
//!
//! `cargo run --release --example traced_unet`

use tch_diffusers::models::unets::TracedUNet;
use tch_diffusers::models::{Traceable, trace};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{ModelMixin, StableDiffusionPipeline, UNet2DConditionModel};

const PROMPT: &str = "a yellow star on a black background";

fn main() -> anyhow::Result<()> {
    let unet = UNet2DConditionModel::from_pretrained(bundled_model()?).subfolder("unet").load()?;
    let inputs = unet.example_inputs(2, [16, 16])?;
    trace(&unet, &inputs)?.save("unet_traced.pt")?;
    println!("unet_traced.pt");

    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let eager = pipe.call(PROMPT).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    pipe.set_unet(TracedUNet::load("unet_traced.pt")?);
    let traced = pipe.call(PROMPT).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    anyhow::ensure!(traced == eager, "the traced UNet draws another picture");
    traced.save("traced_unet.png")?;
    println!("traced_unet.png");
    Ok(())
}
