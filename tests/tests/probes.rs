//! Every probe in every flavour: checkpointed, killed, restored, asked.
//!
//! One line for each probe. `root`: real root with `--userns host`; `userns`: real root in a new user namespace;
//! `user`: an account without rights; `tree_root` and `tree_user`: a tree that Yendor did not start.

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

fn three_generations_user(name: &str) {
    generations(name, Flavour::user(), 3);
}

/// A line is a test for each of its words.
macro_rules! probes {
    ($($module:ident $name:literal: $($flavour:ident)+;)*) => {
        $(mod $module { $(#[test] fn $flavour() { super::$flavour($name); })+ })*
        const TESTED: &[&str] = &[$($name,)*];
    };
}

probes! {
    labels "labels": root userns user tree_root tree_user three_generations_root three_generations_user;
    seccomp_filter "seccomp-filter": root userns user tree_root three_generations_root three_generations_user;
    landlock "landlock": root userns user three_generations_root three_generations_user;
    aio "aio": root userns user tree_root tree_user three_generations_root three_generations_user;
    amx "amx": root userns user tree_root tree_user three_generations_root three_generations_user;
    anon_memory "anon-memory": root userns user tree_root tree_user three_generations_root three_generations_user;
    controls "controls": root userns user tree_root tree_user three_generations_root three_generations_user;
    cow "cow": root userns user tree_root tree_user three_generations_root three_generations_user;
    creds "creds": root userns user tree_root tree_user three_generations_root three_generations_user;
    cwd "cwd": root userns user tree_root tree_user three_generations_root three_generations_user;
    cwd_deleted "cwd-deleted": root userns user tree_root tree_user three_generations_root three_generations_user;
    devs "devs": root userns user tree_root tree_user three_generations_root three_generations_user;
    ending "ending": root userns user tree_root tree_user three_generations_root three_generations_user;
    epoll "epoll": root userns user tree_root tree_user three_generations_root three_generations_user;
    eventfd "eventfd": root userns user tree_root tree_user three_generations_root three_generations_user;
    exit_signal "exit-signal": root userns user tree_root tree_user three_generations_root three_generations_user;
    file_map "file-map": root userns user tree_root tree_user three_generations_root three_generations_user;
    guards "guards": root userns user tree_root tree_user three_generations_root three_generations_user;
    inet_listen "inet-listen": root userns user tree_root tree_user three_generations_root three_generations_user;
    inotify "inotify": root userns user tree_root tree_user three_generations_root three_generations_user;
    itimers "itimers": root userns user tree_root tree_user three_generations_root three_generations_user;
    kernel_files "kernel-files": root userns user tree_root tree_user three_generations_root three_generations_user;
    late_accept "late-accept": root userns user three_generations_root three_generations_user;
    leaderless "leaderless": root userns user tree_root tree_user three_generations_root three_generations_user;
    locked_later "locked-later": root userns user tree_root tree_user three_generations_root three_generations_user;
    locks "locks": root userns user tree_root tree_user three_generations_root three_generations_user;
    many_fds "many-fds": root userns user tree_root tree_user three_generations_root three_generations_user;
    many_maps "many-maps": root userns user tree_root tree_user three_generations_root three_generations_user;
    many_tasks "many-tasks": root userns user tree_root tree_user;
    many_threads "many-threads": root userns user tree_root tree_user three_generations_user;
    memory_policy "memory-policy": root userns user tree_root tree_user three_generations_root three_generations_user;
    misc_prctl "misc-prctl": root userns user tree_root tree_user three_generations_root three_generations_user;
    mounts "mounts": root userns user three_generations_root three_generations_user;
    multicast "multicast": root userns user tree_root tree_user three_generations_root three_generations_user;
    mqueue "mqueue": root userns user three_generations_root three_generations_user;
    namespaces "namespaces": root userns user three_generations_root three_generations_user;
    orphan "orphan": root userns user three_generations_root three_generations_user;
    pid_namespaces "pid-namespaces": root userns user three_generations_root three_generations_user;
    pidfds "pidfds": root userns user tree_root tree_user three_generations_root three_generations_user;
    pipes "pipes": root userns user tree_root tree_user three_generations_root three_generations_user;
    posix_timers "posix-timers": root userns user tree_root tree_user three_generations_root three_generations_user;
    regs "regs": root userns user tree_root tree_user three_generations_root three_generations_user;
    regular "regular": root userns user tree_root tree_user three_generations_root three_generations_user;
    rlimits "rlimits": root userns user tree_root tree_user three_generations_root three_generations_user;
    sched "sched": root userns user tree_root tree_user three_generations_root three_generations_user;
    sealed "sealed": root userns user tree_root tree_user three_generations_root three_generations_user;
    settings "settings": root userns user three_generations_root three_generations_user;
    shared_memory "shared-memory": root userns user tree_root tree_user three_generations_root three_generations_user;
    sigactions "sigactions": root userns user tree_root tree_user three_generations_root three_generations_user;
    sigio "sigio": root userns user tree_root tree_user three_generations_root three_generations_user;
    signalfd "signalfd": root userns user tree_root tree_user three_generations_root three_generations_user;
    sigqueue "sigqueue": root userns user tree_root tree_user three_generations_root three_generations_user;
    syscalls_interrupted "syscalls-interrupted": root userns user tree_root tree_user three_generations_root three_generations_user;
    tcp_closed "tcp-closed": root userns user three_generations_root three_generations_user;
    threads "threads": root userns user tree_root tree_user three_generations_root three_generations_user;
    ticker "ticker": root userns user tree_root tree_user three_generations_root three_generations_user;
    timerfd "timerfd": root userns user tree_root tree_user three_generations_root three_generations_user;
    tree "tree": root userns user tree_root tree_user three_generations_root three_generations_user;
    tty "tty": root userns user tree_root tree_user three_generations_root three_generations_user;
    unix_sockets "unix-sockets": root userns user tree_root tree_user three_generations_root three_generations_user;
    users "users": root userns user three_generations_root three_generations_user;
    uts_time "uts-time": root userns user tree_root tree_user three_generations_root three_generations_user;
    vdso "vdso": root userns user tree_root tree_user three_generations_root three_generations_user;
    writer "writer": root userns user tree_root tree_user three_generations_root three_generations_user;
}

#[test]
fn no_probe_is_forgotten() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../probes/src/bin");
    let files = std::fs::read_dir(folder).expect("the probes are there");
    let mut there: Vec<String> = files
        .flatten()
        .map(|file| file.file_name().to_string_lossy().replace("probe-", "").replace(".rs", ""))
        .collect();
    let mut tested = TESTED.to_vec();
    there.sort_unstable();
    tested.sort_unstable();
    assert_eq!(there, tested);
}
