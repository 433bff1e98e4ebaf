//! What the offloading hooks log.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Does `work`, and lists the groups that came and went meanwhile: `onload conv_in`, `offload conv_in` ...
pub(crate) fn transfers<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let seen = Arc::new(Mutex::new(vec![]));
    let subscriber = tracing_subscriber::registry().with(Transfers(seen.clone()));
    let done = tracing::subscriber::with_default(subscriber, work);
    let seen = seen.lock().unwrap().clone();
    (done, seen)
}

struct Transfers(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Transfers {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "tch_diffusers::hooks" {
            let mut transfer = Transfer::default();
            event.record(&mut transfer);
            self.0.lock().unwrap().push(format!("{} {}", transfer.action, transfer.group));
        }
    }
}

#[derive(Default)]
struct Transfer {
    action: String,
    group: String,
}

impl Visit for Transfer {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "group" {
            self.group = value.into();
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.action = format!("{value:?}");
        }
    }
}
