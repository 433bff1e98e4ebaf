//! From a configuration as it stands in its file to the options of one scheduler, losing nothing on the way.
//!
//! Mirrors `ConfigMixin.from_config` of diffusers 0.42.1.

use super::scheduling_utils::SCHEDULER_CONFIG_NAME;
use crate::configuration_utils::{ConfigMap, DIFFUSERS_VERSION, from_map, read_json};
use crate::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::path::Path;

/// The key under which diffusers lists the options that nobody had set; a class swapped in takes its own defaults there.
const USE_DEFAULT_VALUES: &str = "_use_default_values";

/// A value of another scheduler's option that diffusers takes for one of this scheduler's: key, value, what it becomes.
pub(super) type Alias = (&'static str, &'static str, &'static str);

/// The options `T` out of `given`, and the full configuration: `T`'s keys with defaults, then all others as they were.
pub(super) fn settle<T>(class_name: &str, given: &ConfigMap, aliases: &[Alias]) -> Result<(T, ConfigMap)>
where
    T: Default + Serialize + DeserializeOwned,
{
    let unset = given.get(USE_DEFAULT_VALUES).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut known = given.clone();
    known.retain(|key, _| key != USE_DEFAULT_VALUES && !unset.iter().any(|name| name == key));
    for (key, from, to) in aliases {
        if known.get(*key).is_some_and(|value| value.as_str() == Some(*from)) {
            known.insert((*key).into(), (*to).into());
        }
    }
    let defaults = defaults::<T>()?;
    let options = options(class_name, &known, &defaults)?;

    let mut config = ConfigMap::new();
    config.insert("_class_name".into(), class_name.into());
    config.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
    let mut defaulted = Vec::new();
    for (key, default) in defaults {
        let value = known.remove(&key).unwrap_or_else(|| {
            defaulted.push(Value::String(key.clone()));
            default
        });
        config.insert(key, value);
    }
    config.extend(known.into_iter().filter(|(key, _)| key != "_class_name" && key != "_diffusers_version"));
    config.insert(USE_DEFAULT_VALUES.into(), defaulted.into());
    Ok((options, config))
}

/// Changes an option in `config` as if it had been given from the beginning.
pub(super) fn mark_as_set(config: &mut ConfigMap, key: &str, value: Value) {
    config.insert(key.into(), value);
    if let Some(Value::Array(unset)) = config.get_mut(USE_DEFAULT_VALUES) {
        unset.retain(|name| name != key);
    }
}

/// `T` from the keys it knows; a null stands for the default.
///
/// The defaults are put in here: a group of options inside of `T` may have others of its own.
fn options<T: Default + DeserializeOwned>(class_name: &str, known: &ConfigMap, defaults: &ConfigMap) -> Result<T> {
    let mut set = defaults.clone();
    set.extend(known.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())));
    set.retain(|_, value| !value.is_null());
    from_map(&set).map_err(|error| {
        let culprit = set.into_iter().find(|(key, value)| {
            let alone = ConfigMap::from_iter([(key.clone(), value.clone())]);
            from_map::<T>(&alone).is_err()
        });
        let option = culprit.map_or_else(String::new, |(key, value)| format!(" `{key}` = {value}:"));
        Error::Config(format!("{class_name}:{option} {error}"))
    })
}

fn defaults<T: Default + Serialize>() -> Result<ConfigMap> {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::Config(format!("{other} is no table of options"))),
        Err(error) => Err(Error::Config(error.to_string())),
    }
}

/// Reads the `scheduler_config.json` of `folder`.
///
/// # Errors
/// [`Error::Io`] if it is not there, [`Error::Config`] if it is no JSON object.
pub fn load_scheduler_config(folder: impl AsRef<Path>) -> Result<ConfigMap> {
    read_json(&folder.as_ref().join(SCHEDULER_CONFIG_NAME))
}

/// Infinities, which JSON lacks: Python writes them bare, a [`ConfigMap`] holds them as text.
pub(super) mod maybe_infinite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Finite(f64),
        Named(String),
    }

    pub(in super::super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match *value {
            f64::INFINITY => "Infinity".serialize(serializer),
            f64::NEG_INFINITY => "-Infinity".serialize(serializer),
            finite => finite.serialize(serializer),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Number::deserialize(deserializer)? {
            Number::Finite(value) => Ok(value),
            Number::Named(name) if name == "Infinity" => Ok(f64::INFINITY),
            Number::Named(name) if name == "-Infinity" => Ok(f64::NEG_INFINITY),
            Number::Named(name) => Err(D::Error::custom(format!("`{name}` is no number"))),
        }
    }
}
