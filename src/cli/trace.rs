//! `tch-diffusers trace`: a model as a TorchScript file.

use crate::generate::dtype_name;
use crate::model::model_folder;
use crate::outcome::{ModelError, say};
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};
use tch_diffusers::models::{Traceable, VaeDecoder, trace};
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, DeviceExt, Error, FluxTransformer2DModel, KindExt, ModelMixin, UNet2DConditionModel,
};

/// Side of the latents that FLUX.1, whose transformer does not say, was trained on.
const FLUX_SAMPLE_SIZE: i64 = 128;

const EXAMPLES: &str = "\
Examples:
  tch-diffusers trace --component unet --output unet_traced.pt
  tch-diffusers trace --model ./stable-diffusion-v1-5 --component unet --dtype float16 --device cuda --output unet_traced.pt
  tch-diffusers generate --traced-unet unet_traced.pt --prompt \"a red circle on a white background\"

The file runs in Rust and in Python: examples/traced_unet.py puts it into a pipeline of diffusers. Batch, height and width
are not fixed by those that it is traced with, except for a size that does not halve evenly at each of the UNet's blocks.";

/// Writes a model as a TorchScript file, which runs without its code.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Trace {
    /// The model's folder, as diffusers writes it, `owner/name` on the Hub, or `bundled`
    #[arg(long, default_value = "bundled")]
    model: String,
    /// The branch, tag or commit on the Hub [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// Which of the pipeline's models
    #[arg(long, value_enum, default_value_t = Component::Unet)]
    component: Component,
    /// float32, float16 or bfloat16
    #[arg(long, value_parser = dtype_name, default_value = "float32")]
    dtype: String,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The spelling of the weights' files, such as fp16
    #[arg(long)]
    variant: Option<String>,
    /// Height of the picture to trace with, in pixels [default: the model's]
    #[arg(long)]
    height: Option<i64>,
    /// Width of the picture to trace with, in pixels [default: the model's]
    #[arg(long)]
    width: Option<i64>,
    /// Items to trace with [default: 2 for the UNet, as with guidance, and else 1]
    #[arg(long)]
    batch: Option<i64>,
    /// Makes constants of the weights, so that what depends on them alone is computed once; the file cannot be moved or cast
    #[arg(long)]
    freeze: bool,
    /// Where the file goes
    #[arg(short, long, value_name = "PT", default_value = "unet_traced.pt")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Component {
    Unet,
    Transformer,
    TextEncoder,
    VaeDecoder,
}

impl Trace {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let folder =
            model_folder(&self.model, self.revision.as_deref(), self.variant.as_deref(), &["safety_checker"], false)?;
        match self.component {
            Component::Unet => self.write(&self.load::<UNet2DConditionModel>(&folder, "unet")?, &folder, 2),
            Component::Transformer => {
                self.write(&self.load::<FluxTransformer2DModel>(&folder, "transformer")?, &folder, 1)
            }
            Component::TextEncoder => self.write(&self.load::<CLIPTextModel>(&folder, "text_encoder")?, &folder, 1),
            Component::VaeDecoder => {
                let vae = self.load::<AutoencoderKL>(&folder, "vae")?;
                self.write(&VaeDecoder(&vae), &folder, 1)
            }
        }
    }

    fn load<M: ModelMixin>(&self, folder: &Path, name: &str) -> anyhow::Result<M> {
        let kind = Kind::from_torch_name(&self.dtype)?;
        let device = Device::from_torch_name(&self.device)?;
        let mut loader = M::from_pretrained(folder).subfolder(name).torch_dtype(kind).device(device);
        if let Some(variant) = &self.variant {
            loader = loader.variant(variant);
        }
        loader.load().context(ModelError)
    }

    fn write<M: Traceable>(&self, model: &M, folder: &Path, batch: i64) -> anyhow::Result<()> {
        let inputs = model.example_inputs(self.batch.unwrap_or(batch), self.latents(folder)?)?;
        let mut traced = trace(model, &inputs)?;
        if self.freeze {
            traced = traced.freeze()?;
        }
        traced.save(&self.output)?;
        say(self.output.display())?;
        Ok(())
    }

    /// Height and width of the latents.
    fn latents(&self, folder: &Path) -> anyhow::Result<[i64; 2]> {
        let vae: serde_json::Value = read(&folder.join("vae/config.json"))?;
        let unet = folder.join("unet/config.json");
        let unet = if unet.is_file() { read(&unet)? } else { serde_json::json!({"sample_size": FLUX_SAMPLE_SIZE}) };
        let blocks = vae["block_out_channels"].as_array().map_or(4, Vec::len);
        let factor = 1 << blocks.saturating_sub(1);
        let sides = match &unet["sample_size"] {
            serde_json::Value::Array(sides) => {
                [sides.first(), sides.get(1)].map(|side| side.and_then(|side| side.as_i64()))
            }
            side => [side.as_i64(); 2],
        };
        let side = |pixels: Option<i64>, own: Option<i64>, name: &str| match (pixels, own) {
            (Some(pixels), _) if pixels > 0 && pixels % factor == 0 => Ok(pixels / factor),
            (Some(pixels), _) => {
                Err(Error::Argument(format!("--{name} {pixels}: it has to be a positive multiple of {factor}")))
            }
            (None, Some(own)) => Ok(own),
            (None, None) => Err(Error::Argument(format!("the UNet has no `sample_size`: give --{name}"))),
        };
        Ok([side(self.height, sides[0], "height")?, side(self.width, sides[1], "width")?])
    }
}

fn read(path: &Path) -> anyhow::Result<serde_json::Value> {
    tch_diffusers::configuration_utils::read_json(path).context(ModelError)
}
