//! What a picture was drawn with: kept in the PNG, so that `--from` can draw it again.

use crate::flux::Flux;
use crate::lora::Loras;
use crate::memory::Memory;
use crate::sdxl::Sdxl;
use crate::second::Second;
use crate::source::Source;
use crate::speed::Speed;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch_diffusers::Error;
use tch_diffusers::pipelines::Prompt;
use tch_diffusers::utils::image::read_png_text;

/// The PNG text chunk that holds the parameters, as JSON.
const KEY: &str = "tch-diffusers";

/// Everything that decides what the pixels are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parameters {
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) revision: Option<String>,
    pub(crate) prompts: Vec<String>,
    pub(crate) negative_prompt: Option<String>,
    /// The pipeline's own number unless given.
    pub(crate) steps: Option<usize>,
    /// The pipeline's own number unless given.
    pub(crate) guidance_scale: Option<f64>,
    pub(crate) guidance_rescale: f64,
    pub(crate) eta: f64,
    pub(crate) seed: u64,
    pub(crate) width: Option<i64>,
    pub(crate) height: Option<i64>,
    pub(crate) num_images: i64,
    pub(crate) scheduler: Option<String>,
    pub(crate) clip_skip: Option<usize>,
    pub(crate) dtype: String,
    pub(crate) device: String,
    pub(crate) variant: Option<String>,
    #[serde(default)]
    pub(crate) no_safety_checker: bool,
    #[serde(default)]
    pub(crate) source: Source,
    #[serde(default)]
    pub(crate) loras: Loras,
    #[serde(default)]
    pub(crate) memory: Memory,
    #[serde(default)]
    pub(crate) speed: Speed,
    #[serde(default)]
    pub(crate) second: Second,
    #[serde(default)]
    pub(crate) sdxl: Sdxl,
    #[serde(default)]
    pub(crate) flux: Flux,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            model: "bundled".into(),
            revision: None,
            prompts: vec![],
            negative_prompt: None,
            steps: None,
            guidance_scale: None,
            guidance_rescale: 0.0,
            eta: 0.0,
            seed: 0,
            width: None,
            height: None,
            num_images: 1,
            scheduler: None,
            clip_skip: None,
            dtype: "float32".into(),
            device: "cpu".into(),
            variant: None,
            no_safety_checker: false,
            source: Source::default(),
            loras: Loras::default(),
            memory: Memory::default(),
            speed: Speed::default(),
            second: Second::default(),
            sdxl: Sdxl::default(),
            flux: Flux::default(),
        }
    }
}

/// Steps of Stable Diffusion, unless given.
const STEPS: usize = 25;

impl Parameters {
    /// Steps of Stable Diffusion.
    pub(crate) fn steps(&self) -> usize {
        self.steps.unwrap_or(STEPS)
    }

    /// Refuses the options of one model alone, but those of `own`, for a pipeline of class `class_name`.
    pub(crate) fn only_for(&self, class_name: &str, own: &[&str]) -> Result<(), Error> {
        let groups = [
            (Second::OPTIONS, "SDXL and FLUX.1", self.second != Second::default()),
            (Sdxl::OPTIONS, "SDXL", self.sdxl != Sdxl::default()),
            (Flux::OPTIONS, "FLUX.1", self.flux != Flux::default()),
        ];
        match groups.iter().find(|(options, _, is_given)| *is_given && !own.contains(options)) {
            Some((options, models, _)) => {
                Err(Error::Argument(format!("{options} go with {models}; the model is a {class_name}")))
            }
            None => Ok(()),
        }
    }

    /// The prompt, or the prompts as one batch.
    pub(crate) fn prompt(&self) -> Prompt {
        match self.prompts.as_slice() {
            [one] => Prompt::from(one),
            several => Prompt::from(several),
        }
    }

    /// `text` for each prompt.
    pub(crate) fn for_each_prompt(&self, text: &str) -> Prompt {
        match self.prompts.len() {
            1 => Prompt::from(text),
            prompts => Prompt::from(vec![text; prompts]),
        }
    }

    /// Reads them, and the number of the picture in its batch, from a picture of this program.
    pub(crate) fn read(path: &Path) -> anyhow::Result<(Self, usize)> {
        let chunks = read_png_text(path)?;
        let find = |key: &str| chunks.iter().find(|(known, _)| known == key).map(|(_, text)| text.as_str());
        let Some(text) = find(KEY) else {
            bail!("{}: the picture carries no parameters of this program", path.display())
        };
        let parameters =
            serde_json::from_str(text).with_context(|| format!("{}: broken parameters", path.display()))?;
        let number = find("image").and_then(|number| number.parse().ok()).unwrap_or(0);
        Ok((parameters, number))
    }

    /// The text chunks of picture `number`: the parameters, and the prompt once more for people.
    pub(crate) fn chunks(&self, number: usize) -> anyhow::Result<Vec<(String, String)>> {
        let prompt = self.prompts.get(number / self.num_images.max(1) as usize).cloned().unwrap_or_default();
        Ok(vec![
            ("prompt".into(), prompt),
            ("image".into(), number.to_string()),
            ("Software".into(), concat!("tch-diffusers ", env!("CARGO_PKG_VERSION")).into()),
            (KEY.into(), serde_json::to_string(self)?),
        ])
    }
}
