//! The low-rank adapters that a picture is drawn with.

use crate::outcome::ModelError;
use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch_diffusers::loaders::{LoraOptions, LoraStateDict};
use tch_diffusers::{DiffusionPipeline, Error};

/// The adapters and their weights. They decide the pixels, so they are kept with the picture: the files by their paths.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "LoRA")]
#[serde(default)]
pub(crate) struct Loras {
    /// A LoRA, a safetensors file, a folder or `owner/name` on the Hub, and how much it counts, as in style.safetensors:0.8;
    /// may be given several times [default weight: 1]
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]", value_parser = checked)]
    loras: Vec<String>,
}

/// The file and the weight.
fn parts(text: &str) -> (&str, f64) {
    let weighed = text.rsplit_once(':').and_then(|(file, weight)| Some((file, weight.parse().ok()?)));
    weighed.unwrap_or((text, 1.0))
}

fn checked(text: &str) -> Result<String, Error> {
    let (file, weight) = parts(text);
    if file.is_empty() || !weight.is_finite() {
        return Err(Error::Argument("a LoRA is a file, or a file and a number, as in style.safetensors:0.8".into()));
    }
    Ok(text.to_string())
}

impl Loras {
    /// These options, or those of `base` if none are named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        if self.loras.is_empty() { base } else { self.clone() }
    }

    /// Reads the files, before the model is.
    pub(crate) fn read(&self, quiet: bool) -> anyhow::Result<Vec<(LoraStateDict, f64)>> {
        let mut options = LoraOptions::default();
        options.hub.progress_bar.disable = quiet;
        let read = |text: &String| {
            let (file, weight) = parts(text);
            Ok((options.read(Path::new(file)).context(ModelError)?, weight))
        };
        self.loras.iter().map(read).collect()
    }
}

/// Adds what was read to the pipeline.
pub(crate) fn add(pipe: &mut DiffusionPipeline, loras: &[(LoraStateDict, f64)]) -> anyhow::Result<()> {
    if loras.is_empty() {
        return Ok(());
    }
    let pipe = match pipe {
        DiffusionPipeline::StableDiffusion(pipe) => pipe.as_mut(),
        DiffusionPipeline::StableDiffusionImg2Img(pipe) => &mut ***pipe,
        DiffusionPipeline::StableDiffusionInpaint(pipe) => &mut ***pipe,
        other => {
            let class_name = other.class_name();
            return Err(
                Error::Argument(format!("--lora goes with Stable Diffusion; the model is a {class_name}")).into()
            );
        }
    };
    let (mut names, mut weights) = (vec![], vec![]);
    for (lora, weight) in loras {
        names.push(pipe.load_lora_state_dict(lora, None).context(ModelError)?);
        weights.push(*weight);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    pipe.set_adapters(&names, &weights)?;
    Ok(())
}
