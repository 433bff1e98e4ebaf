//! A pipeline for each of several threads, over one set of weights.

use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

const PROMPTS: [&str; 4] = ["a red circle", "a blue ring", "a yellow star", "a green square on a white background"];

fn main() -> anyhow::Result<()> {
    let pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    // Sharing copies no weight; what is switched on here is switched on in each.
    pipe.enable_attention_slicing(Default::default())?;
    let pipes = PROMPTS.iter().map(|_| pipe.share()).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let draw = |(number, mut pipe): (usize, StableDiffusionPipeline)| -> anyhow::Result<()> {
            let output = pipe.call(PROMPTS[number]).num_inference_steps(8).seed(number as u64).run()?;
            output.images.to_rgb()?[0].save(format!("thread-{number}.png"))?;
            Ok(())
        };
        let threads: Vec<_> = pipes.into_iter().enumerate().map(|own| scope.spawn(move || draw(own))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}
