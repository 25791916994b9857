//! Contexts of asynchronous I/O, made by their task when its memory is mapped.

use yendor_kinds::memory::aio::{self, Asked, Record};
use yendor_kinds::process::word_at;
use yendor_kinds::{Cause, Result};
use yendor_task::Script;

use super::{Site, Task};

/// Makes the contexts of a process again.
///
/// # Errors
/// The kernel's, or `Corrupt` for one that cannot be.
pub fn rebuild(site: &Site<'_>, task: &Task, contexts: &[Record]) -> Result<()> {
    if contexts.is_empty() {
        return Ok(());
    }
    contexts.iter().try_for_each(Record::check)?;
    let asked = Asked::new(&site.run(task, &aio::prepare())?);
    let asked = asked.ok_or_else(|| Cause::unsupported("a kernel that tells no CPU affinity"))?;
    let mut script = Script::new();
    asked.stay(&mut script);
    // No context may be made where another belongs.
    contexts.iter().for_each(|context| context.reserve(&mut script));
    site.run(task, &script)?;
    for context in contexts {
        let made = site.run(task, &context.make())?;
        let made = made.first().and_then(|done| done.out.first()).map_or(0, |out| word_at(out, 0));
        site.run(task, &context.place(task.tid, made)?)?;
        for script in context.advance(asked.file) {
            site.run(task, &script)?;
        }
        context.fill(task.tid)?;
    }
    let mut script = Script::new();
    contexts.iter().for_each(|context| context.protect(&mut script));
    asked.end(&mut script);
    site.run(task, &script)?;
    Ok(())
}
