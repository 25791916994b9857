//! The fields of `config.json` that are understood. Any other that asks for something refuses the bundle.

use serde_json::Value;
use yendor_kinds::Cause;

use super::{Caused, unsupported};

/// By JSON path; `[]` any element, `*` any name.
const SUPPORTED: &[&str] = &[
    "ociVersion",
    // Annotations mean nothing to a runtime that does not know them (config.md).
    "annotations.*",
    "hostname",
    "domainname",
    "root.path",
    "root.readonly",
    "process.terminal",
    "process.args[]",
    "process.env[]",
    "process.cwd",
    "process.user.uid",
    "process.user.gid",
    "process.user.umask",
    "process.user.additionalGids[]",
    "process.capabilities.bounding[]",
    "process.capabilities.effective[]",
    "process.capabilities.inheritable[]",
    "process.capabilities.permitted[]",
    "process.capabilities.ambient[]",
    "process.rlimits[].type",
    "process.rlimits[].hard",
    "process.rlimits[].soft",
    "process.noNewPrivileges",
    "process.oomScoreAdj",
    "process.apparmorProfile",
    "process.selinuxLabel",
    "mounts[].destination",
    "mounts[].type",
    "mounts[].source",
    "mounts[].options[]",
    "linux.namespaces[].type",
    "linux.namespaces[].path",
    "linux.uidMappings[].containerID",
    "linux.uidMappings[].hostID",
    "linux.uidMappings[].size",
    "linux.gidMappings[].containerID",
    "linux.gidMappings[].hostID",
    "linux.gidMappings[].size",
    "linux.sysctl.*",
    // Whole: its reader refuses what it does not know.
    "linux.seccomp",
    "linux.resources.memory.limit",
    "linux.resources.pids.limit",
    "linux.resources.devices[].allow",
    "linux.resources.devices[].access",
    "linux.rootfsPropagation",
    "linux.maskedPaths[]",
    "linux.readonlyPaths[]",
];

/// Finds the first field that asks for something else.
pub(super) fn check(config: &Value) -> Caused<()> {
    match stranger(config, "", "") {
        Some(path) => Err(unsupported(&path, "nothing here does what that asks for")),
        None => Ok(()),
    }
}

/// `pattern` is the path as the table has it, `path` as the reader wants it.
fn stranger(value: &Value, pattern: &str, path: &str) -> Option<String> {
    if asks_nothing(value) || SUPPORTED.contains(&pattern) {
        return None;
    }
    let below = |separator: &str| {
        let start = format!("{pattern}{separator}");
        SUPPORTED.iter().any(|known| known.starts_with(&start))
    };
    match value {
        Value::Object(fields) if pattern.is_empty() || below(".") => fields.iter().find_map(|(name, value)| {
            let dot = if pattern.is_empty() { "" } else { "." };
            let any = format!("{pattern}.*");
            let known = if SUPPORTED.contains(&any.as_str()) { any } else { format!("{pattern}{dot}{name}") };
            stranger(value, &known, &format!("{path}{dot}{name}"))
        }),
        Value::Array(items) if below("[]") => items
            .iter()
            .enumerate()
            .find_map(|(n, item)| stranger(item, &format!("{pattern}[]"), &format!("{path}[{n}]"))),
        _ => Some(path.to_owned()),
    }
}

fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A field that is understood, with a value that is not.
pub(super) fn value(path: &str, value: &str) -> Cause {
    unsupported(path, &format!("{value:?} is not known here"))
}
