//! What is measured, as data.

use super::row::{Cpus, Limit, Reading, Row, Run, Sample, Source, Step, at_most, host, plain, yardstick, yendor};

const STOPPED: Source = Source::Json("/phases/stopped_us");
const TOTAL: Source = Source::Json("/total_us");

const REMOVE: Step = Step::Do(yendor(&["rm", "-f", "{name}"]));
const DROP_IMAGE: Step = Step::Remove("{dir}/image");
const TAKE_IMAGE: Step = Step::Do(yendor(&["checkpoint", "{name}", "-o", "{dir}/image", "--leave-running"]));

const CHECKPOINT: Run = yendor(&["checkpoint", "{name}", "-o", "{dir}/image", "--leave-running", "--json"]);
const RESTORE: Run = yendor(&["restore", "{dir}/image", "--name", "{name}", "-d", "--json"]);

/// It is let go on before its restore ends: all that it waits for from then on is memory that it touches.
const LAZY: Run = yendor(&["restore", "{dir}/image", "--name", "{name}", "-d", "--lazy", "--json"]);

const TREE: &str = "i=1; while [ $i -lt 1000 ]; do sleep 1000000 & i=$((i+1)); done; echo ready; wait";
const SMALL: Step =
    Step::Do(yendor(&["run", "-d", "--name", "{name}", "--", "sh", "-c", "echo ready; sleep 1000000; :"]));
const THOUSAND: Step = Step::Do(yendor(&["run", "-d", "--name", "{name}", "--", "sh", "-c", TREE]));
const GIBIBYTE: Step =
    Step::Do(yendor(&["run", "-d", "--name", "{name}", "--", "{xtask}", "yardstick", "hold", "1073741824"]));
const FOUR_GIBIBYTES: Step =
    Step::Do(yendor(&["run", "-d", "--name", "{name}", "--", "{xtask}", "yardstick", "hold", "4294967296"]));
const FOUR_GIBIBYTES_WRITTEN: Step = Step::Do(yendor(&[
    "run",
    "-d",
    "--name",
    "{name}",
    "--",
    "{xtask}",
    "yardstick",
    "hold",
    "4294967296",
    "--dirty",
    "10000",
]));
/// Holds as much, and changes one page in a hundred of it, always the same ones, when it is told.
const HOLDER: &str = "
import os, signal, time
held = bytearray(os.urandom(1 << 30))
def change(*_):
    for page in range(0, len(held) >> 12, 100):
        held[page << 12] = (held[page << 12] + 1) & 255
    print('changed', flush=True)
signal.signal(signal.SIGUSR2, change)
print('ready', flush=True)
while True:
    time.sleep(1000)
";
const CHANGING: Step = Step::Do(yendor(&["run", "-d", "--name", "{name}", "--", "python3", "-c", HOLDER]));
const TAKE_PARENT: Step = Step::Do(yendor(&["checkpoint", "{name}", "-o", "{dir}/parent", "--leave-running"]));
const CHANGE: Step = Step::Do(yendor(&["kill", "-s", "USR2", "{name}"]));
const READY: Step = Step::Await("ready");

/// A namespace of each sort and a process in them: the least that a new container can cost.
const UNSHARE: Sample = Sample {
    run: host("unshare", &["--map-root-user", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "true"]),
    readings: &[plain("unshare true", Source::Wall)],
};
/// As many processes as the tree has, made by a shell.
const FORKS: Sample = Sample {
    run: host("sh", &["-c", "i=1; while [ $i -lt 1000 ]; do : & i=$((i+1)); done; wait"]),
    readings: &[plain("1000 forks of a shell", Source::Wall)],
};
const REMOVE_CLONES: Step =
    Step::Do(host("sh", &["-c", "for i in $(seq 20); do {yendor} rm -f {name}-$i; done; true"]));
const TRACK_PARENT: Step =
    Step::Do(yendor(&["checkpoint", "{name}", "-o", "{dir}/parent", "--leave-running", "--track", "--no-parent"]));
/// Its pages were copied for it, too, so that its first writes cost what they cost after any checkpoint.
const TAKE_OTHER: Step = Step::Do(yendor(&["checkpoint", "{name}-other", "-o", "{dir}/other", "--leave-running"]));
const REDIS: Step = Step::Do(yendor(&["run", "-d", "--name", "{name}", "--", "redis-server", "--save", ""]));
const OTHER_REDIS: Step =
    Step::Do(yendor(&["run", "-d", "--name", "{name}-other", "--", "redis-server", "--save", ""]));
const FILL_BOTH: Step = Step::Do(host(
    "sh",
    &[
        "-c",
        "for name in {name} {name}-other; do \
         {yendor} exec $name -- redis-benchmark -q -n 400000 -r 100000 -d 1000 -t set || exit 1; done",
    ],
));
/// A checkpoint that knows no parent.
const WHOLE: Sample = Sample {
    run: yendor(&["checkpoint", "{name}", "-o", "{dir}/whole", "--leave-running", "--no-parent", "--json"]),
    readings: &[plain("without a parent", TOTAL)],
};
const WRITE: Sample = Sample {
    run: yardstick(&["write", "1073741824", "{dir}/yardstick"]),
    readings: &[
        plain("the task's own write", Source::Json("/write_us")),
        plain("the same with fsync", Source::Json("/total_us")),
    ],
};
const SHM_IMAGE: &str = "/dev/shm/yendor-bench-image";
const SHM_YARDSTICK: &str = "/dev/shm/yendor-bench-yardstick";
const SHM_WRITE: Sample = Sample {
    run: yardstick(&["write", "1073741824", SHM_YARDSTICK]),
    readings: &[plain("the task's own write", Source::Json("/write_us"))],
};
const POPULATE_READ: Sample = Sample {
    run: yardstick(&["populate-read", "1073741824", "{dir}/yardstick"]),
    readings: &[plain("populate and read", Source::Json("/total_us"))],
};

/// Under a filter that lets everything pass: with any, the kernel takes its slow way into a call.
const FILTERED: &str = "
import ctypes, os, struct, sys
allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
program = struct.pack('HxxxxxxQ', 1, ctypes.addressof(allow))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

/// What a container's own filter (docs/adr/0005) costs a call that it lets pass: beside no filter at all, and beside one that does nothing, which
/// leaves what the listener costs.
const fn calls(name: &'static str, inside: &'static [&'static str], yardstick: Sample) -> Row {
    const INSIDE: &[Reading] = &[Reading { label: "in a container", source: TOTAL, limit: Limit::Ratio(102) }];
    Row {
        name,
        setup: &[],
        before: &[],
        subject: Sample { run: yendor(inside), readings: INSIDE },
        after: &[],
        yardstick,
        teardown: &[],
        rounds: 20,
        cpus: Cpus::One,
    }
}

const fn outside(arguments: &'static [&'static str]) -> Sample {
    const READINGS: &[Reading] = &[plain("outside", TOTAL)];
    Sample { run: yardstick(arguments), readings: READINGS }
}

const fn filtered(arguments: &'static [&'static str]) -> Sample {
    const READINGS: &[Reading] = &[plain("outside, under that filter", TOTAL)];
    Sample { run: host("python3", arguments), readings: READINGS }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    calls(
        "a million calls of getpid",
        &["run", "--rm", "--", "{xtask}", "yardstick", "calls", "getpid", "1000000"],
        outside(&["calls", "getpid", "1000000"]),
    ),
    calls(
        "a million calls of getpid, beside a filter that does nothing",
        &["run", "--rm", "--", "{xtask}", "yardstick", "calls", "getpid", "1000000"],
        filtered(&["-c", FILTERED, "{xtask}", "yardstick", "calls", "getpid", "1000000"]),
    ),
    calls(
        "a million calls of read",
        &["run", "--rm", "--", "{xtask}", "yardstick", "calls", "read", "1000000"],
        outside(&["calls", "read", "1000000"]),
    ),
    calls(
        "a million calls of read, beside a filter that does nothing",
        &["run", "--rm", "--", "{xtask}", "yardstick", "calls", "read", "1000000"],
        filtered(&["-c", FILTERED, "{xtask}", "yardstick", "calls", "read", "1000000"]),
    ),
    calls(
        "100000 calls of open and close",
        &["run", "--rm", "--", "{xtask}", "yardstick", "calls", "open", "100000"],
        outside(&["calls", "open", "100000"]),
    ),
    calls(
        "100000 calls of open and close, beside a filter that does nothing",
        &["run", "--rm", "--", "{xtask}", "yardstick", "calls", "open", "100000"],
        filtered(&["-c", FILTERED, "{xtask}", "yardstick", "calls", "open", "100000"]),
    ),
    Row {
        name: "start of a container",
        setup: &[],
        before: &[],
        subject: Sample {
            run: yendor(&["run", "--rm", "--", "true"]),
            readings: &[at_most("run -- true", Source::Wall, 25)],
        },
        after: &[],
        yardstick: UNSHARE,
        teardown: &[],
        rounds: 40,
        cpus: Cpus::One,
    },
    Row {
        name: "small process, checkpoint",
        setup: &[SMALL, READY],
        before: &[],
        subject: Sample {
            run: CHECKPOINT,
            readings: &[at_most("stopped", STOPPED, 12), at_most("in all", Source::Wall, 25)],
        },
        after: &[DROP_IMAGE],
        yardstick: UNSHARE,
        teardown: &[REMOVE, DROP_IMAGE],
        rounds: 40,
        cpus: Cpus::One,
    },
    Row {
        name: "small process, restore",
        setup: &[SMALL, READY, TAKE_IMAGE, REMOVE],
        before: &[],
        subject: Sample { run: RESTORE, readings: &[at_most("in all", Source::Wall, 25)] },
        after: &[REMOVE],
        yardstick: UNSHARE,
        teardown: &[DROP_IMAGE],
        rounds: 40,
        cpus: Cpus::One,
    },
    Row {
        name: "1000 processes, checkpoint",
        setup: &[THOUSAND, READY],
        before: &[],
        subject: Sample {
            run: CHECKPOINT,
            readings: &[plain("stopped", STOPPED), at_most("in all", Source::Wall, 400)],
        },
        after: &[DROP_IMAGE],
        yardstick: FORKS,
        teardown: &[REMOVE, DROP_IMAGE],
        rounds: 10,
        cpus: Cpus::All,
    },
    Row {
        name: "1000 processes, restore",
        setup: &[THOUSAND, READY, TAKE_IMAGE, REMOVE],
        before: &[],
        subject: Sample { run: RESTORE, readings: &[at_most("in all", Source::Wall, 600)] },
        after: &[REMOVE],
        yardstick: FORKS,
        teardown: &[DROP_IMAGE],
        rounds: 10,
        cpus: Cpus::All,
    },
    Row {
        name: "1 GiB of memory, checkpoint",
        setup: &[GIBIBYTE, READY],
        before: &[],
        subject: Sample {
            run: CHECKPOINT,
            readings: &[
                plain("stopped", STOPPED),
                Reading { label: "in all", source: Source::Wall, limit: Limit::Ratio(100) },
            ],
        },
        after: &[DROP_IMAGE],
        yardstick: WRITE,
        teardown: &[REMOVE, DROP_IMAGE, Step::Remove("{dir}/yardstick")],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "1 GiB of memory, checkpoint to a tmpfs",
        setup: &[GIBIBYTE, READY],
        before: &[],
        subject: Sample {
            run: yendor(&["checkpoint", "{name}", "-o", SHM_IMAGE, "--leave-running", "--json"]),
            readings: &[
                plain("stopped", STOPPED),
                // Throughput of 0.95.
                Reading { label: "in all", source: Source::Wall, limit: Limit::Ratio(105) },
            ],
        },
        after: &[Step::Remove(SHM_IMAGE)],
        yardstick: SHM_WRITE,
        teardown: &[REMOVE, Step::Remove(SHM_YARDSTICK), Step::Remove(SHM_IMAGE)],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "1 GiB of memory, 1 % changed since its parent",
        setup: &[CHANGING, READY, TAKE_PARENT, CHANGE, Step::Await("changed")],
        before: &[],
        subject: Sample {
            run: yendor(&[
                "checkpoint",
                "{name}",
                "-o",
                "{dir}/image",
                "--leave-running",
                "--parent",
                "{dir}/parent",
                "--json",
            ]),
            readings: &[plain("stopped", STOPPED), plain("in all", TOTAL)],
        },
        after: &[DROP_IMAGE, Step::Remove("{dir}/whole")],
        yardstick: WHOLE,
        teardown: &[REMOVE, DROP_IMAGE, Step::Remove("{dir}/whole"), Step::Remove("{dir}/parent")],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "1 GiB of memory, 1 % changed and tracked since its parent",
        setup: &[CHANGING, READY],
        before: &[Step::Remove("{dir}/parent"), TRACK_PARENT, CHANGE, Step::Do(host("sleep", &["0.5"]))],
        subject: Sample {
            run: yendor(&["checkpoint", "{name}", "-o", "{dir}/image", "--leave-running", "--track", "--json"]),
            readings: &[plain("stopped", STOPPED), Reading { label: "in all", source: TOTAL, limit: Limit::Ratio(10) }],
        },
        after: &[DROP_IMAGE, Step::Remove("{dir}/whole")],
        yardstick: WHOLE,
        teardown: &[REMOVE, DROP_IMAGE, Step::Remove("{dir}/whole"), Step::Remove("{dir}/parent")],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "redis-benchmark after a checkpoint, 200000 SET and GET each",
        setup: &[REDIS, OTHER_REDIS, Step::Await("Ready to accept connections"), FILL_BOTH],
        before: &[Step::Remove("{dir}/parent"), TRACK_PARENT],
        subject: Sample {
            run: yendor(&[
                "exec",
                "{name}",
                "--",
                "redis-benchmark",
                "-q",
                "-n",
                "200000",
                "-r",
                "100000",
                "-t",
                "set,get",
            ]),
            readings: &[Reading { label: "tracked", source: Source::Wall, limit: Limit::Ratio(103) }],
        },
        after: &[Step::Remove("{dir}/other"), TAKE_OTHER],
        yardstick: Sample {
            run: yendor(&[
                "exec",
                "{name}-other",
                "--",
                "redis-benchmark",
                "-q",
                "-n",
                "200000",
                "-r",
                "100000",
                "-t",
                "set,get",
            ]),
            readings: &[plain("not tracked", Source::Wall)],
        },
        teardown: &[
            REMOVE,
            Step::Do(yendor(&["rm", "-f", "{name}-other"])),
            Step::Remove("{dir}/parent"),
            Step::Remove("{dir}/other"),
        ],
        rounds: 7,
        cpus: Cpus::All,
    },
    Row {
        name: "4 GiB of memory, left running",
        setup: &[FOUR_GIBIBYTES, READY],
        before: &[],
        subject: Sample { run: CHECKPOINT, readings: &[at_most("stopped", STOPPED, 90), plain("in all", TOTAL)] },
        after: &[DROP_IMAGE],
        yardstick: UNSHARE,
        teardown: &[REMOVE, DROP_IMAGE],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "4 GiB of memory, 1 % written each second, read before the stop",
        setup: &[FOUR_GIBIBYTES_WRITTEN, READY],
        before: &[],
        subject: Sample {
            run: yendor(&[
                "checkpoint",
                "{name}",
                "-o",
                "{dir}/image",
                "--leave-running",
                "--rounds",
                "auto",
                "--json",
            ]),
            readings: &[at_most("stopped", STOPPED, 15), plain("in all", TOTAL)],
        },
        after: &[DROP_IMAGE],
        yardstick: UNSHARE,
        teardown: &[REMOVE, DROP_IMAGE],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "1 GiB of memory, restore",
        setup: &[GIBIBYTE, READY, TAKE_IMAGE, REMOVE, Step::Do(WRITE.run)],
        before: &[],
        subject: Sample {
            run: RESTORE,
            readings: &[Reading { label: "in all", source: Source::Wall, limit: Limit::Ratio(130) }],
        },
        after: &[REMOVE],
        yardstick: POPULATE_READ,
        teardown: &[DROP_IMAGE, Step::Remove("{dir}/yardstick")],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "lazy restore: first instruction of a 4 GiB task",
        setup: &[FOUR_GIBIBYTES, READY, TAKE_IMAGE, REMOVE],
        before: &[],
        subject: Sample { run: LAZY, readings: &[at_most("it runs", TOTAL, 30)] },
        after: &[REMOVE],
        yardstick: UNSHARE,
        teardown: &[REMOVE, DROP_IMAGE],
        rounds: 5,
        cpus: Cpus::All,
    },
    Row {
        name: "20 clones of 1 GiB",
        setup: &[GIBIBYTE, READY, TAKE_IMAGE, REMOVE, Step::Do(WRITE.run)],
        before: &[],
        subject: Sample {
            run: yendor(&["restore", "{dir}/image", "-d", "--name", "{name}", "--count", "20"]),
            readings: &[at_most("in all", Source::Wall, 2000)],
        },
        after: &[REMOVE_CLONES],
        yardstick: POPULATE_READ,
        teardown: &[REMOVE_CLONES, DROP_IMAGE, Step::Remove("{dir}/yardstick")],
        rounds: 5,
        cpus: Cpus::All,
    },
];
