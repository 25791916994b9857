//! A hundred containers leave nothing, one image serves many at once, big trees keep their keeper small; and nothing of the
//! caller or the keeper gets into a container.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use yendor_tests::{Flavour, Orphans, PATIENCE, Yendor, cgroups, kill, probe, rounds, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn start(yendor: &Yendor, name: &str, arguments: &[&str]) -> String {
    let container = yendor.fresh(name);
    let program = probe(name);
    yendor.run_detached(&container, &[&[text(&program)], arguments].concat());
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn finish(yendor: &Yendor, container: &str) {
    yendor.kill(container, "USR1");
    assert_eq!(yendor.wait(container), 0, "{}", yendor.logs(container));
    yendor.call(&["rm", container]).exits(0);
}

fn state(yendor: &Yendor, container: &str) -> Value {
    let file = yendor.path("state/run").join(container).join("state.json");
    serde_json::from_slice(&fs::read(file).expect("state")).expect("json")
}

fn pid(state: &Value, of: &str) -> i64 {
    state[of].as_i64().expect("a pid")
}

/// One image, twice in a row and three times at once: all have the same content and none knows of the others.
fn one_image_for_many(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let image = yendor.path("image");
    let container = start(&yendor, "ticker", &[]);
    yendor.checkpoint(&container, &image);
    for _ in 0..2 {
        let again = yendor.fresh("row");
        yendor.restore(&image, &again);
        finish(&yendor, &again);
    }
    let names: Vec<String> = (0..3).map(|_| yendor.fresh("side")).collect();
    std::thread::scope(|scope| {
        let restores: Vec<_> = names
            .iter()
            .map(|name| {
                let mut command = yendor.command(&["restore", "--detach", "--name", name]);
                command.args(yendor.flavour().options()).arg(&image);
                scope.spawn(move || command.output().expect("the command runs"))
            })
            .collect();
        for restore in restores {
            let output = restore.join().expect("a thread of ours");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    });
    let mains: Vec<i64> = names.iter().map(|name| pid(&state(&yendor, name), "main")).collect();
    assert!(mains[0] != mains[1] && mains[1] != mains[2] && mains[0] != mains[2], "{mains:?}");
    for name in &names {
        let ticks = || yendor.logs(name).lines().count();
        let now = ticks();
        assert!(wait_until(PATIENCE, || ticks() > now), "{name} does not go on");
    }
    for name in &names {
        finish(&yendor, name);
    }
}

/// Descriptors, state, mounts and processes after many containers are those before.
fn many_in_a_row(flavour: Flavour) {
    let orphans = Orphans::adopt();
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("own mounts").lines().count();
    let before = mounts();
    let options = yendor.flavour().options();
    for _ in 0..rounds(25, 100) {
        let name = yendor.fresh("row");
        yendor.call(&[&["run", "--rm", "--name", &name], options, &["--", "/bin/true"]].concat()).exits(0);
        let left = orphans.left(&name, Duration::from_secs(10));
        assert!(left.is_empty(), "{left:?}");
    }
    let left: Vec<_> = fs::read_dir(yendor.path("state/run")).expect("state").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(mounts(), before);
    assert!(yendor.tasks_left().is_empty());
}

/// What a big tree takes: time, and memory of its keeper. The figures are printed; the limits only catch what is absurd.
fn big(flavour: Flavour, name: &str, memory_limit: u64) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = start(&yendor, name, &[]);
    let image = yendor.path("image");
    let begin = Instant::now();
    yendor.checkpoint(&container, &image);
    let checkpoint = begin.elapsed();
    let again = yendor.fresh(name);
    let begin = Instant::now();
    yendor.restore(&image, &again);
    let restore = begin.elapsed();
    let keeper = pid(&state(&yendor, &again), "keeper");
    let status = fs::read_to_string(format!("/proc/{keeper}/status")).expect("the keeper's status");
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let (now, peak) = (field("VmRSS"), field("VmHWM"));
    println!("{name}: checkpoint {checkpoint:?}, restore {restore:?}, keeper {now} kB, at most {peak} kB");
    assert!(peak < memory_limit, "the keeper takes {peak} kB");
    finish(&yendor, &again);
}

/// What a task of a container has that it should not: read with the eyes of the kernel, from outside.
fn no_leak(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour.clone()) else { return };
    let container = yendor.fresh("leak");
    // Nothing inherited but three descriptors, and its own environment.
    let secret = [("SECRET_OF_THE_CALLER", "yes"), ("LD_PRELOAD_NOT", "1")];
    let arguments = [&["run", "-d", "--name", &container], yendor.flavour().options()].concat();
    let arguments = [&arguments[..], &["-e", "ONLY=this", "--", "/bin/sleep", "1000"]].concat();
    yendor.call_with(&arguments, &secret).exits(0);
    let image = yendor.path("image");
    let fresh = look(&yendor, &container, &flavour);
    yendor.checkpoint(&container, &image);
    let again = yendor.fresh("again");
    let mut arguments = vec!["restore", "-d", "--name", &again];
    arguments.extend(yendor.flavour().options());
    arguments.push(text(&image));
    yendor.call_with(&arguments, &secret).exits(0);
    let restored = look(&yendor, &again, &flavour);
    assert_eq!(fresh, restored);
    yendor.call(&["rm", "-f", &container]).exits(0);
    yendor.call(&["rm", "-f", &again]).exits(0);
}

/// Descriptors, environment and capabilities of the main task; those of pid 1 are looked at on the way.
fn look(yendor: &Yendor, container: &str, flavour: &Flavour) -> BTreeMap<String, String> {
    let state = state(yendor, container);
    let (main, init) = (pid(&state, "main"), pid(&state, "init"));
    let of = |pid: i64, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let descriptors = |pid: i64| -> Vec<String> {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut all: Vec<String> = all
            .map(|fd| {
                let link = fs::read_link(fd.path()).unwrap_or_default();
                format!("{}={}", fd.file_name().to_string_lossy(), link.display())
            })
            .collect();
        all.sort();
        all
    };
    let mut seen = BTreeMap::new();
    let own = descriptors(main);
    assert_eq!(own.len(), 3, "descriptors of the task: {own:?}");
    assert!(own[0].starts_with("0=/dev/null") && own[1].starts_with("1=") && own[1].ends_with("/log"), "{own:?}");
    assert_eq!(descriptors(init), Vec::<String>::new(), "descriptors of pid 1");
    let environment = of(main, "environ");
    for word in ["SECRET", "LD_PRELOAD", "YENDOR_"] {
        assert!(!environment.contains(word), "{word} in the environment: {environment:?}");
    }
    assert!(environment.contains("ONLY=this"), "{environment:?}");
    seen.insert("environment".into(), environment);
    // No memory of the keeper: pid 1 has its part of the scratch memory mapped and what the kernel maps, the task not even that.
    let strange = |pid: i64, known: &[&str]| -> Vec<String> {
        let maps = of(pid, "maps");
        assert!(!maps.is_empty(), "maps of {pid}");
        let all = maps.lines().filter(|line| !known.iter().any(|word| line.contains(word)));
        all.map(str::to_owned).collect()
    };
    assert_eq!(strange(init, &["/memfd:yendor", "[vdso]", "[vvar", "[vsyscall]"]), Vec::<String>::new(), "pid 1");
    let task = of(main, "maps");
    assert!(task.contains("/sleep") && !task.contains("yendor"), "{task}");
    for name in
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups", "SigBlk", "SigIgn"]
    {
        let status = of(main, "status");
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
        seen.insert(name.into(), line.to_owned());
    }
    let user_namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap_or_default();
    let inside = user_namespace(&main.to_string()) != user_namespace("self");
    // Whatever capabilities there are, they are those of another user namespace: in ours there is none.
    assert_eq!(inside, *flavour != Flavour::Root, "user namespace of the task");
    for name in ["mnt", "pid", "ipc", "uts", "net", "cgroup", "time"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap_or_default();
        assert_ne!(namespace(&main.to_string()), namespace("self"), "{name} namespace");
    }
    seen
}

/// A limit of tasks holds, in a new container and in a restored one, and its cgroup goes with the container: even when the
/// keeper is killed.
fn limits(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let script = "trap 'for i in 1 2 3 4 5 6 7 8; do sleep 5 & done 2>/dev/null || true; echo refused' USR1
        echo ready; while :; do read -t 0.05 < /dev/zero; done";
    let name = yendor.fresh("limits");
    yendor.run_detached_with(&name, &["--pids", "6"], &["/bin/bash", "-c", script]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    assert_eq!(cgroups(&name).len(), 1, "{:?}", cgroups(&name));
    let image = yendor.path("image");
    yendor.checkpoint(&name, &image);
    assert_eq!(cgroups(&name), Vec::<PathBuf>::new());
    let again = yendor.fresh("limits");
    yendor.restore_with(&image, &again, &["--pids", "6"]).exits(0);
    let [cgroup] = &cgroups(&again)[..] else { panic!("{:?}", cgroups(&again)) };
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    assert_eq!(read("pids.max").trim(), "7", "pid 1 of the container is not counted");
    let main = pid(&state(&yendor, &again), "main").to_string();
    assert!(read("cgroup.procs").lines().any(|line| line == main), "{main}: {}", read("cgroup.procs"));
    yendor.kill(&again, "USR1");
    assert!(wait_until(PATIENCE, || read("pids.current").trim() == "7"), "{}", read("pids.current"));
    kill(libc_pid(pid(&state(&yendor, &again), "keeper")));
    assert!(wait_until(PATIENCE, || yendor.tasks_left().is_empty()), "{:?}", yendor.tasks_left());
    yendor.call(&["rm", &again]).exits(0);
    assert_eq!(cgroups(&again), Vec::<PathBuf>::new());
}

fn libc_pid(pid: i64) -> i32 {
    i32::try_from(pid).expect("a pid")
}

yendor_tests::flavours! {
    one_image_for_many
    many_in_a_row
    no_leak
}

macro_rules! sizes {
    ($($name:ident $probe:literal $memory:literal)*) => {
        $(#[test]
        fn $name() {
            let flavour = if rounds(0, 1) == 1 { Flavour::RootUserns } else { Flavour::user() };
            big(flavour, $probe, $memory);
        })*
    };
}

#[test]
fn limits_root() {
    limits(Flavour::Root);
}

#[test]
fn limits_userns() {
    limits(Flavour::RootUserns);
}

sizes! {
    a_thousand_tasks "many-tasks" 400_000
    a_thousand_threads "many-threads" 200_000
    five_thousand_mappings "many-maps" 100_000
    two_thousand_descriptors "many-fds" 100_000
}
