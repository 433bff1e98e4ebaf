//! How much an adapter counts in each layer.
//!
//! Mirrors `get_peft_kwargs` of `diffusers/utils/peft_utils.py` at 0.42.1, and `get_pattern_key` of `peft/utils/other.py` at
//! 0.21.2.

use crate::error::{Error, Result};
use regex::Regex;
use serde_json::{Map, Value};

/// The alphas of a component's layers.
#[derive(Clone, Debug)]
pub(super) enum Alphas {
    /// Each layer's rank, for a weight of 1.
    Ranks,
    /// Those of the file: the most common, and under diffusers' names those that are others.
    Given { common: f64, others: Vec<(String, f64)> },
    /// Those of a configuration of PEFT's.
    Config(Config),
}

/// What counts of a `LoraConfig`.
#[derive(Clone, Debug)]
pub(super) struct Config {
    rank: i64,
    alpha: f64,
    rank_pattern: Vec<Pattern>,
    alpha_pattern: Vec<Pattern>,
    pub(super) use_rslora: bool,
}

/// The number of the modules whose paths, or their ends after a point, are this regular expression.
#[derive(Clone, Debug)]
struct Pattern {
    name: String,
    /// None where the name is no regular expression, and means itself alone.
    regex: Option<Regex>,
    number: f64,
}

impl Pattern {
    fn new(name: &str, number: f64) -> Self {
        Self { regex: Regex::new(&format!(r"^(.*\.)?({name})$")).ok(), name: name.into(), number }
    }

    fn fits(&self, module: &str) -> bool {
        self.regex.as_ref().map_or(self.name == module, |regex| regex.is_match(module))
    }
}

impl Alphas {
    /// From a file's alphas under diffusers' names of them, in the order of the file.
    pub(super) fn given(alphas: &[(String, f64)]) -> Self {
        match most_common(alphas.iter().map(|(_, alpha)| *alpha)) {
            None => Self::Ranks,
            Some(common) => {
                let others = alphas.iter().filter(|(_, alpha)| *alpha != common).cloned().collect();
                Self::Given { common, others }
            }
        }
    }

    /// The alpha of the layer at `module`, whose adapter has `rank`.
    pub(super) fn of(&self, module: &str, rank: i64) -> f64 {
        match self {
            Self::Ranks => rank as f64,
            // diffusers looks for names that it did not convert, so that an alpha of its own does not reach an attention
            // or a text encoder: the picture is to be the same.
            Self::Given { common, others } => {
                others.iter().find(|(name, _)| name == module).map_or(*common, |(_, alpha)| *alpha)
            }
            Self::Config(config) => matching(&config.alpha_pattern, module).unwrap_or(config.alpha),
        }
    }

    /// The rank that the configuration says, if there is one.
    pub(super) fn rank(&self, module: &str) -> Option<i64> {
        match self {
            Self::Config(config) => {
                Some(matching(&config.rank_pattern, module).map_or(config.rank, |rank| rank as i64))
            }
            _ => None,
        }
    }

    pub(super) fn use_rslora(&self) -> bool {
        matches!(self, Self::Config(Config { use_rslora: true, .. }))
    }
}

impl Config {
    /// Reads the part of `metadata` that is of `component`; none if there is none.
    ///
    /// # Errors
    /// [`Error::Config`] for a value of another type; [`Error::Unsupported`] for what is no plain LoRA.
    pub(super) fn read(metadata: &Map<String, Value>, component: &str) -> Result<Option<Self>> {
        let named = |key: &str| if component.is_empty() { key.into() } else { format!("{component}.{key}") };
        let get = |key: &str| metadata.get(&named(key)).filter(|value| !value.is_null());
        if get("r").is_none() && get("lora_alpha").is_none() {
            return Ok(None);
        }
        let refuse = |key: &str, expected: &str, found: &Value| {
            Error::Config(format!("`lora_adapter_metadata`: `{}` should be {expected} and is {found}", named(key)))
        };
        let number = |key: &str, default: f64| {
            get(key).map_or(Ok(default), |value| value.as_f64().ok_or_else(|| refuse(key, "a number", value)))
        };
        let is_on = |key: &str| {
            get(key).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| refuse(key, "true or false", value)))
        };
        let pattern = |key: &str| {
            let Some(value) = get(key) else { return Ok(vec![]) };
            let entries = value.as_object().ok_or_else(|| refuse(key, "an object of numbers", value))?.iter();
            let entry = |(name, value): (&String, &Value)| {
                let number = value.as_f64().ok_or_else(|| refuse(key, "an object of numbers", value))?;
                Ok(Pattern::new(name, number))
            };
            entries.map(entry).collect::<Result<Vec<_>>>()
        };
        for variant in ["use_dora", "use_qalora", "use_bdlora"] {
            if get(variant).is_some_and(|value| *value != Value::Bool(false)) {
                return Err(Error::Unsupported(format!(
                    "`lora_adapter_metadata`: `{}` is on, and only plain LoRAs are supported",
                    named(variant)
                )));
            }
        }
        Ok(Some(Self {
            rank: number("r", 8.0)? as i64,
            alpha: number("lora_alpha", 8.0)?,
            rank_pattern: pattern("rank_pattern")?,
            alpha_pattern: pattern("alpha_pattern")?,
            use_rslora: is_on("use_rslora")?,
        }))
    }
}

/// The number that there is most often; of several the first, as Python's `Counter` has it.
pub(super) fn most_common(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut counts: Vec<(f64, usize)> = vec![];
    for number in numbers {
        match counts.iter_mut().find(|(known, _)| *known == number) {
            Some((_, count)) => *count += 1,
            None => counts.push((number, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(number, _)| number)
}

/// The number of the first pattern that fits.
fn matching(patterns: &[Pattern], module: &str) -> Option<f64> {
    patterns.iter().find(|pattern| pattern.fits(module)).map(|pattern| pattern.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(alphas: &[(&str, f64)]) -> Vec<(String, f64)> {
        alphas.iter().map(|(name, alpha)| ((*name).to_string(), *alpha)).collect()
    }

    #[test]
    fn the_most_common_alpha_is_that_of_layers_without_one() {
        let alphas = Alphas::given(&named(&[("a", 2.0), ("b.conv1", 1.0), ("c", 2.0)]));
        assert_eq!((alphas.of("b.conv1", 4), alphas.of("d", 4)), (1.0, 2.0));
        assert_eq!(Alphas::given(&[]).of("a", 4), 4.0);
        assert_eq!(Alphas::given(&named(&[("a", 3.0), ("b", 5.0)])).of("c", 4), 3.0);
    }

    #[test]
    fn names_of_a_configuration_may_be_the_ends_of_paths() {
        let metadata = serde_json::json!({
            "unet.r": 4, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn2.to_k": 10}, "unet.rank_pattern": {"^mid.to_q": 2},
        });
        let config = Config::read(metadata.as_object().unwrap(), "unet").unwrap().unwrap();
        let alphas = Alphas::Config(config);
        assert_eq!((alphas.of("x.attn2.to_k", 4), alphas.of("x.attn1.to_k", 4)), (10.0, 6.0));
        assert_eq!((alphas.rank("mid.to_q"), alphas.rank("x.mid.to_q")), (Some(2), Some(4)));
        assert!(Config::read(metadata.as_object().unwrap(), "text_encoder").unwrap().is_none());
        let wrong = serde_json::json!({"unet.r": "four"});
        let error = Config::read(wrong.as_object().unwrap(), "unet").unwrap_err().to_string();
        assert_eq!(error, "`lora_adapter_metadata`: `unet.r` should be a number and is \"four\"");
    }
}
