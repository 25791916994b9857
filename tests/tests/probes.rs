//! Every probe in every flavour: checkpointed, killed, restored, asked.
//!
//! One line for each probe. `root`: real root with `--userns host`; `userns`: real root in a new user namespace;
//! `user`: an account without rights, twice, of which both images must say the same (the law of every kind); `tree_root` and
//! `tree_user`: a tree that Yendor did not start.

use yendor_tests::{Flavour, Via, generations, probe_survives};

fn root(name: &str) {
    probe_survives(name, Flavour::Root, Via::Container);
}

fn userns(name: &str) {
    probe_survives(name, Flavour::RootUserns, Via::Container);
}

fn user(name: &str) {
    probe_survives(name, Flavour::user(), Via::Container);
}

fn tree_root(name: &str) {
    probe_survives(name, Flavour::RootUserns, Via::PidTree);
}

fn tree_user(name: &str) {
    probe_survives(name, Flavour::user(), Via::PidTree);
}

fn three_generations_root(name: &str) {
    generations(name, Flavour::RootUserns, 3);
}

/// A line is a test for each of its words.
macro_rules! probes {
    ($($module:ident $name:literal: $($flavour:ident)+;)*) => {
        $(mod $module { $(#[test] fn $flavour() { super::$flavour($name); })+ })*
        const TESTED: &[(&str, &[&str])] = &[$(($name, &[$(stringify!($flavour)),+]),)*];
    };
}

probes! {
    labels "labels": root userns user tree_root tree_user three_generations_root;
    seccomp_filter "seccomp-filter": root userns user tree_root three_generations_root;
    landlock "landlock": root userns user three_generations_root;
    adopted "adopted": root userns user tree_root tree_user three_generations_root;
    aio "aio": root userns user tree_root tree_user three_generations_root;
    amx "amx": root userns user tree_root tree_user three_generations_root;
    anon_memory "anon-memory": root userns user tree_root tree_user three_generations_root;
    controls "controls": root userns user tree_root tree_user three_generations_root;
    cow "cow": root userns user tree_root tree_user three_generations_root;
    creds "creds": root userns user tree_root tree_user three_generations_root;
    cwd "cwd": root userns user tree_root tree_user three_generations_root;
    cwd_deleted "cwd-deleted": root userns user tree_root tree_user three_generations_root;
    devs "devs": root userns user tree_root tree_user three_generations_root;
    ending "ending": root userns user tree_root tree_user three_generations_root;
    epoll "epoll": root userns user tree_root tree_user three_generations_root;
    eventfd "eventfd": root userns user tree_root tree_user three_generations_root;
    exit_signal "exit-signal": root userns user tree_root tree_user three_generations_root;
    file_map "file-map": root userns user tree_root tree_user three_generations_root;
    guards "guards": root userns user tree_root tree_user three_generations_root;
    inet_listen "inet-listen": root userns user tree_root tree_user three_generations_root;
    inotify "inotify": root userns user tree_root tree_user three_generations_root;
    itimers "itimers": root userns user tree_root tree_user three_generations_root;
    kernel_files "kernel-files": root userns user tree_root tree_user three_generations_root;
    late_accept "late-accept": root userns user three_generations_root;
    leaderless "leaderless": root userns user tree_root tree_user three_generations_root;
    locked_later "locked-later": root userns user tree_root tree_user three_generations_root;
    locks "locks": root userns user tree_root tree_user three_generations_root;
    many_fds "many-fds": root userns user tree_root tree_user three_generations_root;
    many_maps "many-maps": root userns user tree_root tree_user three_generations_root;
    many_tasks "many-tasks": root userns user tree_user;
    many_threads "many-threads": root userns user tree_user;
    memory_policy "memory-policy": root userns user tree_root tree_user three_generations_root;
    misc_prctl "misc-prctl": root userns user tree_root tree_user three_generations_root;
    mounts "mounts": root userns user three_generations_root;
    multicast "multicast": root userns user tree_root tree_user three_generations_root;
    mqueue "mqueue": root userns user three_generations_root;
    namespaces "namespaces": root userns user three_generations_root;
    orphan "orphan": root userns user three_generations_root;
    parent_thread "parent-thread": root userns user tree_root tree_user three_generations_root;
    pid_namespaces "pid-namespaces": root userns user three_generations_root;
    pidfds "pidfds": root userns user tree_root tree_user three_generations_root;
    pipes "pipes": root userns user tree_root tree_user three_generations_root;
    posix_timers "posix-timers": root userns user tree_root tree_user three_generations_root;
    regs "regs": root userns user tree_root tree_user three_generations_root;
    regular "regular": root userns user tree_root tree_user three_generations_root;
    rlimits "rlimits": root userns user tree_root tree_user three_generations_root;
    sched "sched": root userns user tree_root tree_user three_generations_root;
    sealed "sealed": root userns user tree_root tree_user three_generations_root;
    settings "settings": root userns user three_generations_root;
    shared_memory "shared-memory": root userns user tree_root tree_user three_generations_root;
    sigactions "sigactions": root userns user tree_root tree_user three_generations_root;
    sigio "sigio": root userns user tree_root tree_user three_generations_root;
    signalfd "signalfd": root userns user tree_root tree_user three_generations_root;
    sigqueue "sigqueue": root userns user tree_root tree_user three_generations_root;
    syscalls_interrupted "syscalls-interrupted": root userns user tree_root tree_user three_generations_root;
    tcp_closed "tcp-closed": root userns user three_generations_root;
    threads "threads": root userns user tree_root tree_user three_generations_root;
    ticker "ticker": root userns user tree_root tree_user three_generations_root;
    timerfd "timerfd": root userns user tree_root tree_user three_generations_root;
    tree "tree": root userns user tree_root tree_user three_generations_root;
    tty "tty": root userns user tree_root tree_user three_generations_root;
    unix_sockets "unix-sockets": root userns user tree_root tree_user three_generations_root;
    users "users": root userns user three_generations_root;
    uts_time "uts-time": root userns user tree_root tree_user three_generations_root;
    vdso "vdso": root userns user tree_root tree_user three_generations_root;
    writer "writer": root userns user tree_root tree_user three_generations_root;
}

#[test]
fn no_probe_is_forgotten() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../probes/src/bin");
    let files = std::fs::read_dir(folder).expect("the probes are there");
    let mut there: Vec<String> = files
        .flatten()
        .map(|file| file.file_name().to_string_lossy().replace("probe-", "").replace(".rs", ""))
        .collect();
    let mut tested: Vec<&str> = TESTED.iter().map(|(name, _)| *name).collect();
    there.sort_unstable();
    tested.sort_unstable();
    assert_eq!(there, tested);
}

/// Whoever has a reason to leave one out gives it here, beside the name.
#[test]
fn every_probe_is_tested_in_three_flavours() {
    for (name, flavours) in TESTED {
        for flavour in ["root", "userns", "user"] {
            assert!(flavours.contains(&flavour), "{name} is not tested as {flavour}");
        }
    }
}
