//! Generation after generation, and what memory is taken in between.

use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use serde::Serialize;
use tch_diffusers::torch::resident;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{
    Error, Result, SchedulerKind, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
};

/// How much more memory may be taken at the end than after the warm-up, as a share.
pub(crate) const MOST_GROWTH: f64 = 0.01;

/// Pixels along each side.
const SIDE: u32 = 64;

/// A tenth of the run warms up, the next tenth is what its last is compared with.
const PARTS: usize = 10;

/// What a run took, in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Soak {
    generations: usize,
    /// How many of them were broken off on purpose, by an error in a callback.
    failed: usize,
    seconds: f64,
    /// The medians of the part after the warm-up, and of the last part.
    before: u64,
    after: u64,
    /// `after / before - 1`.
    pub(crate) growth: f64,
    /// The generation, and what is resident after it.
    resident: Vec<(usize, u64)>,
}

impl Soak {
    pub(crate) fn run(generations: usize) -> Result<Self> {
        let start = std::time::Instant::now();
        let part = generations / PARTS;
        if part == 0 {
            return Err(Error::Argument(format!("{generations} generations: at least {PARTS} say something")));
        }
        let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
        pipe.progress_bar.disable = true;
        let (mut samples, mut failed) = (vec![], 0);
        for number in 0..generations {
            let drawn;
            (pipe, drawn) = draw(pipe, number)?;
            failed += usize::from(!drawn);
            let now = resident().ok_or_else(|| Error::Unsupported("resident memory is known on Linux alone".into()))?;
            samples.push((number, now));
        }
        let median = |from: usize| {
            let mut taken: Vec<u64> = samples.iter().skip(from).take(part).map(|(_, bytes)| *bytes).collect();
            taken.sort_unstable();
            taken.get(part / 2).copied().unwrap_or(1)
        };
        let (before, after) = (median(part), median(generations - part));
        let growth = after as f64 / before as f64 - 1.0;
        let every = (generations / 100).max(1);
        let resident = samples.into_iter().filter(|(number, _)| number % every == 0).collect();
        let seconds = start.elapsed().as_secs_f64();
        Ok(Self { generations, failed, seconds, before, after, growth, resident })
    }
}

/// One generation, by one of the three pipelines and another scheduler each time; every tenth fails on its way. Says whether
/// there was a picture.
fn draw(mut pipe: StableDiffusionPipeline, number: usize) -> Result<(StableDiffusionPipeline, bool)> {
    const KINDS: [SchedulerKind; 4] = [
        SchedulerKind::DDIM,
        SchedulerKind::EulerAncestralDiscrete,
        SchedulerKind::DPMSolverMultistep,
        SchedulerKind::UniPCMultistep,
    ];
    let seed = number as u64;
    let prompt = ["a red circle", "a blue ring on a white background", "a yellow star"][number % 3];
    let fails = number % 10 == 9;
    pipe.scheduler = KINDS[number / 3 % KINDS.len()].from_config(pipe.scheduler.config())?;
    let slope = DynamicImage::from(RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([x as u8, y as u8, number as u8])));
    let fault = |_: &mut _| if fails { Err(Error::Argument("on purpose".into())) } else { Ok(()) };
    let (pipe, outcome) = match number % 3 {
        0 => {
            let call = pipe.call(prompt).height(SIDE.into()).width(SIDE.into()).num_inference_steps(2).seed(seed);
            let outcome = call.callback_on_step_end(fault).run();
            (pipe, outcome)
        }
        1 => {
            let mut pipe = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
            let call = pipe.call(prompt, slope).strength(0.5).num_inference_steps(4).seed(seed);
            let outcome = call.callback_on_step_end(fault).run();
            (pipe.into(), outcome)
        }
        _ => {
            let mask = GrayImage::from_fn(SIDE, SIDE, |x, _| Luma([if x < SIDE / 2 { 0 } else { 255 }]));
            let mut pipe = StableDiffusionInpaintPipeline::from_pipe(pipe);
            let call = pipe.call(prompt, slope, mask).height(SIDE.into()).width(SIDE.into()).num_inference_steps(2);
            let outcome = call.seed(seed).callback_on_step_end(fault).run();
            (pipe.into(), outcome)
        }
    };
    match outcome {
        Ok(output) => output.images.to_rgb().map(|_| (pipe, true)),
        Err(Error::Argument(text)) if text == "on purpose" => Ok((pipe, false)),
        Err(error) => Err(error),
    }
}
