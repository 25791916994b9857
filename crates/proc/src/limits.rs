//! Resource limits of a process.
//!
//! Source: proc_pid_limits(5); `fs/proc/base.c`, `proc_pid_limits`.

use crate::field::{Line, Result, lines, number};

const FILE: &str = "limits";

/// A resource; the discriminant is its `RLIMIT_*` number on x86, arm and the generic layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Resource {
    /// Seconds of CPU time.
    Cpu = 0,
    /// Bytes of a file.
    Fsize = 1,
    /// Bytes of data.
    Data = 2,
    /// Bytes of stack.
    Stack = 3,
    /// Bytes of a core file.
    Core = 4,
    /// Bytes resident (without effect).
    Rss = 5,
    /// Processes of the user.
    Nproc = 6,
    /// Descriptors.
    Nofile = 7,
    /// Bytes locked.
    Memlock = 8,
    /// Bytes of address space.
    As = 9,
    /// File locks (without effect).
    Locks = 10,
    /// Queued signals.
    Sigpending = 11,
    /// Bytes in POSIX message queues.
    Msgqueue = 12,
    /// Nice ceiling, 20 - nice.
    Nice = 13,
    /// Real-time priority ceiling.
    Rtprio = 14,
    /// Microseconds of real-time CPU.
    Rttime = 15,
}

/// Printed name and unit (empty where the kernel prints none), in the order of the file.
const TABLE: [(Resource, &str, &[u8]); 16] = [
    (Resource::Cpu, "Max cpu time", b"seconds"),
    (Resource::Fsize, "Max file size", b"bytes"),
    (Resource::Data, "Max data size", b"bytes"),
    (Resource::Stack, "Max stack size", b"bytes"),
    (Resource::Core, "Max core file size", b"bytes"),
    (Resource::Rss, "Max resident set", b"bytes"),
    (Resource::Nproc, "Max processes", b"processes"),
    (Resource::Nofile, "Max open files", b"files"),
    (Resource::Memlock, "Max locked memory", b"bytes"),
    (Resource::As, "Max address space", b"bytes"),
    (Resource::Locks, "Max file locks", b"locks"),
    (Resource::Sigpending, "Max pending signals", b"signals"),
    (Resource::Msgqueue, "Max msgqueue size", b"bytes"),
    (Resource::Nice, "Max nice priority", b""),
    (Resource::Rtprio, "Max realtime priority", b""),
    (Resource::Rttime, "Max realtime timeout", b"us"),
];

/// One resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Which one.
    pub resource: Resource,
    /// Soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// Hard limit; `None` is unlimited.
    pub hard: Option<u64>,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All 16 resources, ordered by number.
    pub limits: [Limit; 16],
    /// Lines of resources that are not known, as printed.
    pub leftover: Vec<Vec<u8>>,
}

impl Limits {
    /// The limit of one resource.
    #[must_use]
    pub fn get(&self, resource: Resource) -> Limit {
        let unlimited = Limit { resource, soft: None, hard: None };
        self.limits.iter().find(|l| l.resource == resource).copied().unwrap_or(unlimited)
    }
}

/// Parses `/proc/PID/limits`.
///
/// # Errors
/// A resource that is missing or malformed, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Limits> {
    let mut lines = lines(FILE, text)?.into_iter();
    let cut = |what| crate::ParseError { file: FILE, line: 1, what };
    let mut head = lines.next().ok_or_else(|| cut("heading"))?;
    head.tag("Limit")?;
    let mut limits = TABLE.map(|(resource, name, _)| (name, Limit { resource, soft: None, hard: None }, false));
    let mut leftover = Vec::new();
    for line in lines {
        match known(line)? {
            Some(limit) => match limits.iter_mut().find(|(_, l, seen)| l.resource == limit.resource && !seen) {
                Some((_, slot, seen)) => (*slot, *seen) = (limit, true),
                None => leftover.push(line.rest().to_vec()),
            },
            None => leftover.push(line.rest().to_vec()),
        }
    }
    if let Some((name, ..)) = limits.iter().find(|(_, _, seen)| !seen) {
        return Err(cut(name));
    }
    Ok(Limits { limits: limits.map(|(_, limit, _)| limit), leftover })
}

fn known(mut line: Line<'_>) -> Result<Option<Limit>> {
    let Some((resource, name, unit)) = TABLE.iter().find(|(_, name, _)| {
        // The name is padded, so that one name cannot be the start of another.
        line.rest().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b" "))
    }) else {
        return Ok(None);
    };
    line.advance(name.len());
    let soft = value(&mut line, "soft limit")?;
    let hard = value(&mut line, "hard limit")?;
    if line.word().unwrap_or_default() != *unit || line.word().is_some() {
        return Err(line.bad("unit"));
    }
    Ok(Some(Limit { resource: *resource, soft, hard }))
}

fn value(line: &mut Line<'_>, what: &'static str) -> Result<Option<u64>> {
    match line.token(what)? {
        b"unlimited" => Ok(None),
        digits => number(digits, 10).map(Some).ok_or_else(|| line.bad(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, Resource, parse};
    use crate::hostile;

    const CAPTURED: &[u8] = b"\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              18446744073709551614 unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96365                processes 
Max open files            20000                20000                files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     0                    0                    
Max realtime timeout      unlimited            unlimited            us        
";

    #[test]
    fn captured() {
        let limits = parse(CAPTURED).unwrap();
        assert_eq!(limits.get(Resource::Cpu), Limit { resource: Resource::Cpu, soft: Some(u64::MAX - 1), hard: None });
        assert_eq!(limits.get(Resource::Nofile).hard, Some(20000));
        assert_eq!(limits.get(Resource::Nice).soft, Some(0));
        assert_eq!(limits.get(Resource::Rttime).soft, None);
        for (limit, number) in limits.limits.iter().zip(0_u8..) {
            assert_eq!(limit.resource as u8, number);
        }
    }

    #[test]
    fn missing_and_unknown() {
        let text = String::from_utf8(CAPTURED.to_vec()).unwrap();
        assert_eq!(
            parse(text.replace("Max file locks", "Max file lokcs").as_bytes()).unwrap_err().what,
            "Max file locks"
        );
        let more = format!("{text}Max dreams  1 2 dreams\n");
        assert_eq!(parse(more.as_bytes()).unwrap().leftover, [b"Max dreams  1 2 dreams"]);
        assert!(parse(text.replace("96365 ", "-1    ").as_bytes()).is_err());
        assert!(parse(text.replace("files ", "miles ").as_bytes()).is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_process() {
        assert!(parse(&std::fs::read("/proc/self/limits").unwrap()).unwrap().leftover.is_empty());
    }
}
