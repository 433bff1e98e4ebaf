//! Progress bars.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;

/// How a pipeline shows that it goes on: what diffusers' `set_progress_bar_config` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressBarConfig {
    /// Shows nothing. Without a terminal nothing is shown in any case.
    pub disable: bool,
    /// What stands before the bar.
    pub desc: Option<String>,
}

impl ProgressBarConfig {
    /// A bar of `total` steps on standard error.
    #[must_use]
    pub fn start(&self, total: u64, desc: impl Into<Cow<'static, str>>) -> ProgressBar {
        self.bar(total, desc.into(), "{prefix} {percent:>3}% |{bar:30}| {pos}/{len} [{elapsed}<{eta}, {per_sec}]")
    }

    /// A bar of `total` bytes on standard error.
    #[must_use]
    pub fn start_bytes(&self, total: u64, desc: impl Into<Cow<'static, str>>) -> ProgressBar {
        let template = "{prefix} {percent:>3}% |{bar:30}| {bytes}/{total_bytes} [{elapsed}<{eta}, {bytes_per_sec}]";
        self.bar(total, desc.into(), template)
    }

    fn bar(&self, total: u64, desc: Cow<'static, str>, template: &str) -> ProgressBar {
        if self.disable {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(self.desc.clone().map_or(desc, Cow::Owned));
        bar
    }
}
