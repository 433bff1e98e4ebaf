//! Compiles the UNet without Python: a trace with the weights as constants, one graph for all sizes.
//!
//! `cargo run --release --example compile`

use tch_diffusers::StableDiffusionPipeline;
use tch_diffusers::models::compile::CompileOptions;
use tch_diffusers::models::unets::CompiledUNet;
use tch_diffusers::utils::assets::bundled_model;

const PROMPT: &str = "a yellow star on a black background";

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let eager = pipe.call(PROMPT).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    pipe.compile_unet(&CompileOptions { dynamic: Some(true), fullgraph: true, ..CompileOptions::default() })?;
    let compiled = pipe.call(PROMPT).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    anyhow::ensure!(compiled == eager, "the compiled UNet draws another picture");
    pipe.call(PROMPT).num_inference_steps(2).seed(7).width(160).height(96).run()?;
    if let Some(unet) = pipe.unet.as_any().downcast_ref::<CompiledUNet>() {
        println!("{:?}", unet.stats());
    }
    compiled.save("compile.png")?;
    println!("compile.png");
    Ok(())
}
