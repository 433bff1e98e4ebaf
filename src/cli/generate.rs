//! `tch-diffusers generate`: pictures of prompts, as PNG files.

use crate::allocator;
use crate::flux::{self, Flux};
use crate::interrupt;
use crate::lora::{self, Loras};
use crate::memory::Memory;
use crate::model::model_folder;
use crate::offload::Offload;
use crate::outcome::{Interrupted, ModelError, complain, say};
use crate::parameters::Parameters;
use crate::sdxl::{self, Sdxl};
use crate::second::Second;
use crate::source::{Pictures, Source};
use crate::speed::Speed;
use crate::stable_diffusion;
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::models::unets::TracedUNet;
use tch_diffusers::pipelines::PipelineLoader;
use tch_diffusers::schedulers::SchedulerKind;
use tch_diffusers::utils::{image::write_png, progress::ProgressBarConfig};
use tch_diffusers::{AutoPipelineForText2Image, DeviceExt, DiffusionPipeline, Error, KindExt, StableDiffusionPipeline};

const EXAMPLES: &str = "\
Examples:
  tch-diffusers generate --prompt \"a yellow star on a black background\" --seed 7 --output star.png
  tch-diffusers generate --prompt \"a red circle on a white background\" --num-images 4 --output circle.png
  tch-diffusers generate --from star.png --output again.png
  tch-diffusers generate --model ./stable-diffusion-v1-5 --variant fp16 --dtype bfloat16 \\
      --prompt \"an astronaut riding a horse\" --scheduler unipc --steps 20 --output astronaut.png
  tch-diffusers generate --prompt \"a green star on a black background\" --image star.png --strength 0.6 --output green.png
  tch-diffusers generate --prompt \"a red circle on a black background\" --image star.png --mask mask.png --output red.png
  tch-diffusers generate --prompt \"a blue star\" --lora style.safetensors:0.8 --lora subject.safetensors --output blue.png

Several prompts form one batch, as a list of prompts does in diffusers. Several pictures are numbered:
circle-0.png, circle-1.png ...";

/// Draws pictures of prompts.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Generate {
    /// What the picture shows; may be given several times for a batch.
    #[arg(long, required_unless_present = "from")]
    prompt: Vec<String>,
    /// What the picture should not show; FLUX.1 looks at it with --true-cfg-scale.
    #[arg(long)]
    negative_prompt: Option<String>,
    /// The model's folder, as diffusers writes it, `owner/name` on the Hub, or `bundled` [default: bundled]
    #[arg(long)]
    model: Option<String>,
    /// The branch, tag or commit on the Hub [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// Draws a picture of this program again, to the pixel; other options change what they name.
    #[arg(long, value_name = "PNG")]
    from: Option<PathBuf>,
    /// Where the picture goes.
    #[arg(short, long, default_value = "output.png", value_name = "PNG")]
    output: PathBuf,
    /// Denoising steps [default: 25; of FLUX.1 28]
    #[arg(long)]
    steps: Option<usize>,
    /// How much the prompt counts; there is no guidance at 1 or below [default: 7.5; of SDXL 5; of
    /// FLUX.1 3.5]
    #[arg(long)]
    guidance_scale: Option<f64>,
    /// How far guidance's overexposure is corrected, 0 to 1 [default: 0]
    #[arg(long)]
    guidance_rescale: Option<f64>,
    /// DDIM's eta, 0 to 1 [default: 0]
    #[arg(long)]
    eta: Option<f64>,
    /// The seed of the noise: the same seed gives the same picture [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Width in pixels, a multiple of 8 or, of FLUX.1, 16 [default: the model's; with --image alone, the picture's]
    #[arg(long)]
    width: Option<i64>,
    /// Height in pixels, a multiple of 8 or, of FLUX.1, 16 [default: the model's; with --image alone, the picture's]
    #[arg(long)]
    height: Option<i64>,
    /// Pictures of each prompt [default: 1]
    #[arg(long)]
    num_images: Option<i64>,
    /// ddim, ddpm, pndm, lms, euler, heun, euler_a, dpmsolver, dpm_single, dpm2, dpm2_a, deis, unipc, lcm or, for FLUX.1,
    /// flow_match_euler [default: the model's]
    #[arg(long, value_parser = scheduler_name)]
    scheduler: Option<String>,
    /// Layers of the text encoder left out at its end.
    #[arg(long)]
    clip_skip: Option<usize>,
    /// float32, float16 or bfloat16 [default: float32]
    #[arg(long, value_parser = dtype_name)]
    dtype: Option<String>,
    /// cpu, cuda or cuda:N [default: cpu]
    #[arg(long)]
    device: Option<String>,
    /// The spelling of the weights' files, such as fp16.
    #[arg(long)]
    variant: Option<String>,
    /// Leaves the model's safety checker out, which blackens pictures that are not safe for work.
    #[arg(long)]
    no_safety_checker: bool,
    /// Shows no progress bars.
    #[arg(short, long)]
    quiet: bool,
    /// Prints what weights and work took, what was expected, and what was saved, to standard error.
    #[arg(long, help_heading = "Memory")]
    memory_report: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    loras: Loras,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    speed: Speed,
    #[command(flatten)]
    second: Second,
    #[command(flatten)]
    sdxl: Sdxl,
    #[command(flatten)]
    flux: Flux,
    #[command(flatten)]
    offload: Offload,
}

fn scheduler_name(name: &str) -> Result<String, Error> {
    name.parse::<SchedulerKind>().map(|_| name.to_string())
}

pub(crate) fn dtype_name(name: &str) -> Result<String, Error> {
    match Kind::from_torch_name(name)? {
        kind @ (Kind::Float | Kind::Half | Kind::BFloat16) => Ok(kind.torch_name()),
        _ => Err(Error::Argument("models run in float32, float16 or bfloat16".into())),
    }
}

impl Generate {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        check_output(&self.output)?;
        let (parameters, only) = self.parameters()?;
        let kind = Kind::from_torch_name(&parameters.dtype)?;
        let device = Device::from_torch_name(&parameters.device)?;
        self.offload.check(device)?;
        let pictures = parameters.source.read(&parameters)?;
        parameters.speed.switch()?;
        let loras = parameters.loras.read(self.quiet)?;
        let (revision, variant) = (parameters.revision.as_deref(), parameters.variant.as_deref());
        let without: &[&str] = if parameters.no_safety_checker { &["safety_checker"] } else { &[] };
        let folder = model_folder(&parameters.model, revision, variant, without, self.quiet)?;
        // Not before: Ctrl-C ends a download at once.
        interrupt::listen()?;
        let progress = ProgressBarConfig { disable: self.quiet, desc: None };
        let home = if self.offload.is_on() { Device::Cpu } else { device };
        let early = self.offload.while_loading(device).filter(|_| !parameters.memory.changes_weights());
        let offloaded = early.is_some();
        let mut pipe = load(&folder, &parameters, kind, home, early, progress)?;
        allocator::suit(&pipe);
        lora::add(&mut pipe, &loras)?;
        if let Some(name) = &parameters.scheduler {
            let scheduler = pipe.scheduler_mut();
            *scheduler = name.parse::<SchedulerKind>()?.from_config(scheduler.config())?;
        }
        parameters.memory.enable(&mut pipe)?;
        parameters.speed.enable(&pipe)?;
        if !offloaded {
            self.offload.enable(&mut pipe, device)?;
        }
        let (pipe, images, black) = draw(pipe, &parameters, pictures)?;
        let numbered = images.len() > 1 && only.is_none();
        for (number, image) in images.iter().enumerate().filter(|(number, _)| only.is_none_or(|only| only == *number)) {
            let path = if numbered { with_number(&self.output, number) } else { self.output.clone() };
            write_png(&path, image, &parameters.chunks(number)?)?;
            if black.get(number) == Some(&true) {
                tracing::warn!("{}: black, for the safety checker found what it looks for", path.display());
            }
            say(path.display())?;
        }
        if self.memory_report {
            complain(pipe.memory_report()?.to_string().trim_end());
        }
        Ok(())
    }

    /// The parameters of the run; with `--from`, the number of the one picture to draw again.
    fn parameters(&self) -> anyhow::Result<(Parameters, Option<usize>)> {
        let (base, only) = match &self.from {
            Some(path) => {
                let (parameters, number) = Parameters::read(path)
                    .map_err(|error| anyhow::Error::new(Error::Argument(format!("--from: {error:#}"))))?;
                (parameters, Some(number))
            }
            None => (Parameters::default(), None),
        };
        let only = only.filter(|_| self.prompt.is_empty() && self.num_images.is_none());
        let parameters = Parameters {
            // The revision is of the model that is named beside it.
            revision: self.revision.clone().or(base.revision.filter(|_| self.model.is_none())),
            model: self.model.clone().unwrap_or(base.model),
            prompts: if self.prompt.is_empty() { base.prompts } else { self.prompt.clone() },
            negative_prompt: self.negative_prompt.clone().or(base.negative_prompt),
            steps: self.steps.or(base.steps),
            guidance_scale: self.guidance_scale.or(base.guidance_scale),
            guidance_rescale: self.guidance_rescale.unwrap_or(base.guidance_rescale),
            eta: self.eta.unwrap_or(base.eta),
            seed: self.seed.unwrap_or(base.seed),
            width: self.width.or(base.width),
            height: self.height.or(base.height),
            num_images: self.num_images.unwrap_or(base.num_images),
            scheduler: self.scheduler.clone().or(base.scheduler),
            clip_skip: self.clip_skip.or(base.clip_skip),
            dtype: self.dtype.clone().unwrap_or(base.dtype),
            device: self.device.clone().unwrap_or(base.device),
            variant: self.variant.clone().or(base.variant),
            no_safety_checker: self.no_safety_checker || base.no_safety_checker,
            source: self.source.or(base.source),
            loras: self.loras.or(base.loras),
            memory: self.memory.or(base.memory),
            speed: self.speed.or(base.speed),
            second: self.second.or(base.second),
            sdxl: self.sdxl.or(base.sdxl),
            flux: self.flux.or(base.flux),
        };
        Ok((parameters, only))
    }
}

fn load(
    folder: &Path,
    parameters: &Parameters,
    kind: Kind,
    device: Device,
    offloading: Option<GroupOffloading>,
    progress: ProgressBarConfig,
) -> anyhow::Result<DiffusionPipeline> {
    let offloaded = offloading.is_some();
    let mut pipe = match &parameters.speed.traced_unet {
        Some(path) => {
            let mut loader = StableDiffusionPipeline::from_pretrained(folder);
            if parameters.no_safety_checker {
                loader = loader.safety_checker(None);
            }
            let loader = with_options(loader, parameters, kind, offloading, progress);
            loader.unet(TracedUNet::load_to(path, device).context(ModelError)?).load().context(ModelError)?.into()
        }
        None if parameters.no_safety_checker => {
            let loader = StableDiffusionPipeline::from_pretrained(folder).safety_checker(None);
            with_options(loader, parameters, kind, offloading, progress).load().context(ModelError)?.into()
        }
        None => {
            let loader = AutoPipelineForText2Image::from_pretrained(folder);
            with_options(loader, parameters, kind, offloading, progress).load().context(ModelError)?
        }
    };
    if !offloaded {
        pipe.to(device)?;
    }
    Ok(pipe)
}

fn with_options<P, C>(
    mut loader: PipelineLoader<P, C>,
    parameters: &Parameters,
    kind: Kind,
    offloading: Option<GroupOffloading>,
    progress: ProgressBarConfig,
) -> PipelineLoader<P, C> {
    loader = loader.torch_dtype(kind).progress_bar(progress);
    if let Some(variant) = &parameters.variant {
        loader = loader.variant(variant);
    }
    match offloading {
        Some(options) => loader.group_offload(options),
        None => loader,
    }
}

/// The pipeline, whose components went through the one that drew, the pictures, and which of them a safety checker
/// blackened.
type Drawn = (DiffusionPipeline, Vec<image::DynamicImage>, Vec<bool>);

fn draw(pipe: DiffusionPipeline, parameters: &Parameters, pictures: Option<Pictures>) -> anyhow::Result<Drawn> {
    let (pipe, images, black) = match pipe {
        DiffusionPipeline::StableDiffusion(pipe) => {
            let (pipe, images, black) = stable_diffusion::draw(*pipe, parameters, pictures)?;
            (pipe.into(), images, black)
        }
        DiffusionPipeline::StableDiffusionXL(pipe) => {
            let (pipe, images) = sdxl::draw(*pipe, parameters, pictures)?;
            (pipe.into(), images, vec![])
        }
        DiffusionPipeline::Flux(mut pipe) => {
            let images = flux::draw(&mut pipe, parameters)?;
            (DiffusionPipeline::Flux(pipe), images, vec![])
        }
        other => {
            let text = format!("{}s are not drawn with by this program", other.class_name());
            bail!(anyhow::Error::new(Error::Unsupported(text)).context(ModelError));
        }
    };
    if interrupt::asked() {
        bail!(Interrupted);
    }
    Ok((pipe, images, black))
}

/// Before anything is computed: can the picture be written there?
fn check_output(path: &Path) -> anyhow::Result<()> {
    let refuse = |text: String| Err(anyhow::Error::new(Error::Argument(text)));
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
        return refuse(format!("--output {}: pictures are written as PNG; name it so", path.display()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return refuse(format!("--output {}: there is no folder {}", path.display(), folder.display()));
    }
    Ok(())
}

/// `a/b.png` becomes `a/b-3.png`.
fn with_number(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{number}.png"))
}
