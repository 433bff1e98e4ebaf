//! What the second of two text encoders reads.

use clap::Args;
use serde::{Deserialize, Serialize};

/// What models with two text encoders take. It decides the pixels, so it is kept with the picture.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "SDXL and FLUX.1")]
#[serde(default)]
pub(crate) struct Second {
    /// What the second text encoder reads [default: --prompt]
    #[arg(long, value_name = "PROMPT")]
    pub(crate) prompt_2: Option<String>,
    /// What the second text encoder reads of what the picture should not show [default: --negative-prompt]
    #[arg(long, value_name = "PROMPT")]
    pub(crate) negative_prompt_2: Option<String>,
}

impl Second {
    /// The options, for messages.
    pub(crate) const OPTIONS: &str = "--prompt-2 and --negative-prompt-2";

    /// These options, and those of `base` that are not named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        Self {
            prompt_2: self.prompt_2.clone().or(base.prompt_2),
            negative_prompt_2: self.negative_prompt_2.clone().or(base.negative_prompt_2),
        }
    }
}
