//! Text to picture in ten lines: `cargo run --release --example text_to_image`.

use tch_diffusers::StableDiffusionPipeline;
use tch_diffusers::utils::assets::bundled_model;

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let output = pipe.call("a red ring on a white background").seed(1).run()?;
    output.images.to_rgb()?[0].save("ring.png")?;
    println!("ring.png");
    Ok(())
}
