//! Runs the UNet and the VAE's decoder as AOTInductor packages, which Python makes once for all checkpoints of an architecture:
//!
//! `python -m tch_diffusers.export_aoti assets/shapes --dynamic`
//! `python -m tch_diffusers.export_aoti assets/shapes --dynamic --component vae_decoder`
//! `cargo run --release --example aoti`

use tch_diffusers::models::compile::{CompileOptions, Mode};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{Error, MemoryFormat, PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.to(MemoryFormat::ChannelsLast)?;
    let options = CompileOptions { mode: Mode::MaxAutotune, dynamic: Some(true), ..CompileOptions::default() };
    for (name, compiled) in [("UNet", pipe.compile_unet(&options)), ("VAE", pipe.compile_vae(&options))] {
        match compiled {
            Ok(()) => println!("the {name} runs compiled"),
            // Without a package there is nothing to run: the message says how to make one.
            Err(error) if matches!(error.kind(), Error::Argument(_)) => println!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }
    let prompt = "a yellow star on a black background";
    let picture = pipe.call(prompt).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    picture.save("aoti.png")?;
    println!("aoti.png");
    Ok(())
}
