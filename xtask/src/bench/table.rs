//! The page that a benchmark becomes.

use super::measure::Line;
use super::row::Limit;
use std::fmt::Write;
use std::{fs, thread};

/// What must be known of a machine to read its numbers.
pub(super) struct Machine {
    kernel: String,
    processor: String,
    cpus: usize,
}

impl Machine {
    pub(super) fn this() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        Self {
            kernel: kernel.trim().to_owned(),
            processor: model.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':'])).to_owned(),
            cpus: thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

pub(super) fn page(lines: &[Line], machine: &Machine) -> String {
    let mut page = format!(
        "# Benchmark\n\nMade by `cargo xtask bench`: medians in milliseconds, each beside a yardstick that took \
         turns with it.\nLinux {}, {}, {} CPUs.\n\n\
         | what | | ms | yardstick | ms | ratio | limit | |\n|---|---|---:|---|---:|---:|---:|---|\n",
        machine.kernel, machine.processor, machine.cpus
    );
    for line in lines {
        let ratio = line.took / line.yardstick_took;
        let (limit, kept) = match line.limit {
            Limit::None => (String::new(), None),
            Limit::AtMost(most) => (format!("{most} ms"), Some(line.took <= f64::from(most) * 1e3)),
            Limit::Ratio(most) => {
                let most = f64::from(most) / 100.0;
                (format!("{most:.2} x"), Some(ratio <= most))
            }
        };
        let verdict = kept.map_or("", |kept| if kept { "kept" } else { "MISSED" });
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| {} | {} | {:.2} | {} | {:.2} | {ratio:.2} | {limit} | {verdict} |",
            line.row,
            line.label,
            line.took / 1e3,
            line.yardstick,
            line.yardstick_took / 1e3,
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_limit_is_said() {
        let machine = Machine { kernel: "6".into(), processor: "p".into(), cpus: 2 };
        let verdict = |took, limit| {
            let line = Line { row: "r", label: "l", took, yardstick: "y", yardstick_took: 1000.0, limit };
            let page = page(&[line], &machine);
            (page.contains("| kept |"), page.contains("| MISSED |"))
        };
        assert_eq!(verdict(1299.0, Limit::Ratio(130)), (true, false));
        assert_eq!(verdict(1301.0, Limit::Ratio(130)), (false, true));
        assert_eq!(verdict(2000.0, Limit::AtMost(2)), (true, false));
        assert_eq!(verdict(2001.0, Limit::AtMost(2)), (false, true));
        assert_eq!(verdict(2001.0, Limit::None), (false, false));
    }
}
