//! A line that moves, for work that takes more than a second; on a terminal only.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use yendor_image::Watcher;

use crate::print;

/// Nobody needs to see what is over by then.
const SOON: Duration = Duration::from_secs(1);

/// Shows `what` while somebody tells the watcher; gone with its last clone. It draws when it is told only: a thread of its
/// own would keep this process out of other user namespaces (setns(2)).
pub fn watcher(what: &str, counts: bool) -> Watcher {
    if print::is_quiet() || !std::io::stderr().is_terminal() {
        return Watcher::default();
    }
    let line = Line { what: what.to_owned(), counts, begin: Instant::now(), bar: OnceLock::new() };
    let done = std::sync::atomic::AtomicU64::new(0);
    Watcher::new(move |bytes| {
        let done = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
        if line.begin.elapsed() >= SOON {
            line.show(done);
        }
    })
}

struct Line {
    what: String,
    counts: bool,
    begin: Instant,
    bar: OnceLock<ProgressBar>,
}

impl Line {
    fn show(&self, done: u64) {
        let bar = self.bar.get_or_init(|| {
            let template =
                if self.counts { "{spinner} {msg}: {bytes}, {bytes_per_sec}" } else { "{spinner} {msg}: {elapsed}" };
            let bar =
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_elapsed(self.begin.elapsed());
            // A template of our own cannot be wrong; if it is, the usual one shows the same.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
            bar.set_style(style);
            bar.set_message(self.what.clone());
            bar
        });
        bar.set_position(done);
        bar.tick();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
