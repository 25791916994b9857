//! The words of the command line, as a user says them: every verb and option, what it prints, how it exits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use yendor_tests::{Flavour, Outcome, Started, Terminal, Yendor, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Without YENDOR_ROOT an account's containers and images lie where XDG says.
#[test]
fn state_lies_where_xdg_says() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let name = yendor.fresh("xdg");
    let call = |words: &[&str]| {
        let mut command = yendor.command(words);
        command.env_remove("YENDOR_ROOT");
        yendor.to_its_end(command, words.join(" "))
    };
    let said = call(&["-vv", "run", "-d", "--name", &name, "--", "sleep", "1000"]).exits(0).stderr;
    let (run, images) = (yendor.path("run/yendor"), yendor.path("data/yendor/images"));
    let places = format!("containers in {}, images in {}", run.display(), images.display());
    assert!(said.contains(&places) && said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    assert!(run.join(&name).join("state.json").exists());
    call(&["checkpoint", &name]).exits(0);
    assert!(
        images.join(&name).join("1").join("manifest.json").exists(),
        "{:?}",
        fs::read_dir(&images).map(Iterator::count)
    );
    call(&["rm", &name]).exits(0);
    assert!(!run.join(&name).exists() && !yendor.path("state/run").join(&name).exists());
}

/// Each of these is a test as real root in a new user namespace, and as an account without rights.
macro_rules! both {
    ($($name:ident)+) => {
        mod userns { $(#[test] fn $name() { if let Some(y) = super::Yendor::new(super::Flavour::RootUserns) { super::$name(&y) } })+ }
        mod user { $(#[test] fn $name() { if let Some(y) = super::Yendor::new(super::Flavour::user()) { super::$name(&y) } })+ }
    };
}

both! {
    exit_codes_are_those_of_the_command
    what_goes_wrong_is_said_plainly
    the_environment_is_what_was_asked_for
    a_detached_container_is_listed_logged_killed_waited_for_and_removed
    a_detached_container_can_remove_itself
    exec_runs_beside
    dropped_capabilities_stay_dropped
    the_store_keeps_images_by_name
    volumes_are_holes_that_a_restore_fills_by_name
    a_directory_as_root_has_to_be_given_again
    networks
    the_foreground_passes_signals_and_the_status_on
    a_restore_in_the_foreground_is_like_a_run
    a_terminal_is_shared_left_and_taken_up_again
    a_change_of_size_is_told
    exec_at_a_terminal
    loudness
    json_is_one_value
    the_demo_does_the_main_job
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[track_caller]
fn says(outcome: &Outcome, words: &str) {
    assert!(outcome.stderr.contains(words), "`{}` does not say {words:?}: {}", outcome.command, outcome.stderr);
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn exit_codes_are_those_of_the_command(yendor: &Yendor) {
    yendor.call(&["run", "--rm", "--", "true"]).exits(0);
    yendor.call(&["run", "--rm", "--", "sh", "-c", "exit 3"]).exits(3);
    yendor.call(&["run", "--rm", "--", "sh", "-c", "kill -9 $$"]).exits(137);
    let name = yendor.fresh("kept");
    yendor.call(&["run", "--name", &name, "--", "sh", "-c", "echo out; echo err >&2; exit 4"]).exits(4);
    yendor.call(&["wait", &name]).exits(4);
    yendor.call(&["rm", &name]).exits(0);
}

fn what_goes_wrong_is_said_plainly(yendor: &Yendor) {
    let name = yendor.fresh("there");
    yendor.run_detached(&name, &["sleep", "1000"]);
    let run = |command: &str| yendor.call(&["run", "--rm", "--", command]);
    says(&run("no-such-command").exits(127), "no-such-command: command not found in the container");
    says(&run("/etc/passwd").exits(126), "not executable");
    says(&yendor.call(&["run", "--name", &name, "--", "true"]).exits(1), "is in use");
    says(&yendor.call(&["rm", &name]).exits(1), "runs");
    says(&yendor.call(&["run", "--name", "a/b", "--", "true"]).exits(2), "a/b");
    says(&yendor.call(&["run", "--memory", "x", "--", "true"]).exits(2), "512M");
    says(&yendor.call(&["run", "--volume", "x", "--", "true"]).exits(2), "NAME=HOSTPATH:PATH");
    says(&yendor.call(&["run", "-w", "tmp", "--", "true"]).exits(2), "absolute");
    says(&yendor.call(&["kill", "-s", "NOSUCH", &name]).exits(2), "NOSUCH");
    for verb in [&["kill"][..], &["wait"], &["rm"], &["logs"], &["attach"], &["checkpoint"]] {
        says(&yendor.call(&[verb, &["nobody"]].concat()).exits(1), "there is no container \"nobody\"");
    }
    says(&yendor.call(&["exec", "nobody", "--", "true"]).exits(1), "there is no container");
    says(&yendor.call(&["attach", &name]).exits(1), "without -t");
    says(&yendor.call(&["restore", "nothing"]).exits(1), "there is no image nothing");
    says(&yendor.call(&["restore", "/no/such/image"]).exits(1), "there is no image at /no/such/image");
    says(&yendor.call(&["inspect", "/no/such/image"]).exits(1), "there is no image at /no/such/image");
    says(&yendor.call(&["checkpoint", "--pid", "999999999"]).exits(1), "there is no process");
    yendor.call(&["no-such-verb"]).exits(2);
    yendor.call(&[]).exits(2);
}

fn the_environment_is_what_was_asked_for(yendor: &Yendor) {
    let script = "echo $A-$B; pwd; id -u; hostname";
    let options = ["-e", "A=1", "-e", "B=2", "-e", "A=3", "-w", "/tmp", "--hostname", "zork"];
    let said = yendor.call(&[&["run", "--rm"], &options[..], &["--", "sh", "-c", script]].concat()).exits(0);
    assert_eq!(said.stdout, "3-2\n/tmp\n0\nzork\n");
    let said = yendor.call(&["run", "--rm", "--", "sh", "-c", "env"]).exits(0).stdout;
    assert!(!said.contains("YENDOR_ROOT") && said.contains("PATH="), "the caller's environment leaks:\n{said}");
}

fn a_detached_container_is_listed_logged_killed_waited_for_and_removed(yendor: &Yendor) {
    let name = yendor.fresh("d");
    let script = "trap 'echo bye; exit 7' TERM; echo one; echo two >&2; while :; do sleep 0.05; done";
    yendor.run_detached(&name, &["sh", "-c", script]);
    yendor.wait_for_log(&name, "two", SOON);
    assert_eq!(yendor.logs(&name), "one\ntwo\n");
    let listed = yendor.call(&["ps", "--json"]).exits(0).json();
    let row = listed.as_array().and_then(|rows| rows.iter().find(|r| r["name"] == *name)).expect("it is listed");
    assert_eq!((row["state"].as_str(), row["image"].is_null()), (Some("running"), true), "{row}");
    // The shell, and perhaps its sleep; never Yendor's own pid 1.
    assert!(row["tasks"].as_u64().is_some_and(|n| (1..=2).contains(&n)), "{row}");
    assert!(row["pid"].as_i64().is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()), "{row}");
    let mut known = keys(row);
    known.sort_unstable();
    assert_eq!(known.join(" "), "exit_code generation image memory_bytes name pid started state tasks uptime_s");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(row["started"].as_u64().is_some_and(|at| (now - 600..=now).contains(&at)), "{row}");
    assert!(row["uptime_s"].as_u64() < Some(600) && row["uptime_s"].is_u64(), "{row}");
    assert!(row["memory_bytes"].as_u64() > Some(4096) && row["generation"] == 0 && row["exit_code"].is_null(), "{row}");
    let table = yendor.call(&["ps"]).exits(0).stdout;
    let cells = |line: &str| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = table.lines().map(cells).collect();
    assert_eq!(rows[0].join(" "), "NAME STATE PID UPTIME TASKS MEMORY IMAGE");
    let human = rows.iter().find(|cells| cells[0] == name).unwrap_or_else(|| panic!("{table}"));
    assert_eq!((human[1].as_str(), &human[2], human[6].as_str()), ("running", &row["pid"].to_string(), "-"), "{table}");
    assert!(human[3].ends_with('s') && ["1", "2"].contains(&human[4].as_str()) && human[5].ends_with('B'), "{table}");

    let mut follow = yendor.command(&["logs", "-f", &name]);
    let mut follow = Started::new(follow.stdout(yendor.output("followed")).stderr(Stdio::null()));
    let mut wait = Started::new(yendor.command(&["wait", &name]).stdout(Stdio::null()).stderr(Stdio::null()));
    std::thread::sleep(Duration::from_millis(100));
    yendor.call(&["kill", &name]).exits(0);
    let code = |started: &mut Started| started.ended(SOON).map(Started::code);
    assert_eq!((code(&mut wait), code(&mut follow)), (Some(7), Some(0)));
    let followed = fs::read_to_string(yendor.path("followed")).expect("a file of our own");
    assert_eq!(followed, "one\ntwo\nbye\n");
    assert!(!yendor.call(&["ps"]).exits(0).stdout.contains(&name));
    assert!(yendor.call(&["ps", "-a"]).exits(0).stdout.contains("exited (7)"));
    yendor.call(&["rm", &name]).exits(0);
    assert!(!yendor.call(&["ps", "-a"]).exits(0).stdout.contains(&name));

    yendor.run_detached(&name, &["sleep", "1000"]);
    yendor.call(&["kill", "-s", "SIGINT", &name]).exits(0);
    assert_eq!(yendor.wait(&name), 130);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn a_detached_container_can_remove_itself(yendor: &Yendor) {
    let name = yendor.fresh("gone");
    // With files of other ids, and directories that nobody may enter.
    let script = "mkdir -p /var/tmp/a/b /tmp/c && chmod 000 /var/tmp/a && sleep 0.2";
    yendor.run_detached_with(&name, &["--rm"], &["sh", "-c", script]).exits(0);
    assert!(yendor.call(&["ps"]).exits(0).stdout.contains(&name));
    let gone = || fs::read_dir(yendor.path("state/run")).map_or(true, |mut entries| entries.next().is_none());
    assert!(wait_until(SOON, gone), "{}", yendor.call(&["ps", "-a"]).stdout);
}

fn exec_runs_beside(yendor: &Yendor) {
    let name = yendor.fresh("e");
    yendor.run_detached(&name, &["sh", "-c", "echo here > /tmp/mark; exec sleep 1000"]);
    let mark = || yendor.call(&["exec", &name, "--", "cat", "/tmp/mark"]).stdout == "here\n";
    assert!(wait_until(SOON, mark), "the command does not see the container's files");
    let said =
        yendor.call(&["exec", "-e", "A=b", "-w", "/tmp", &name, "--", "sh", "-c", "echo $A; pwd; exit 6"]).exits(6);
    assert_eq!(said.stdout, "b\n/tmp\n");
    // A session of its own: it has nothing to do with the caller's terminal.
    yendor.call(&["exec", &name, "--", "awk", "{ exit $1 != $6 || $7 }", "/proc/self/stat"]).exits(0);
    says(&yendor.call(&["exec", &name, "--", "no-such"]).exits(127), "command not found");
    says(&yendor.call(&["exec", &name, "--", "/etc/passwd"]).exits(126), "not executable");
    // As a user, too; where nobody may change ids, that is another matter.
    let user = |command: &str| yendor.call(&["exec", "-u", "0:0", &name, "--", command]);
    match user("true").code {
        0 => {
            says(&user("/etc/passwd").exits(126), "not executable");
            says(&user("no-such").exits(127), "command not found");
        }
        code => assert_eq!((code, user("/etc/passwd").code), (5, 5)),
    }
    says(&yendor.call(&["exec", "-w", "/no/such", &name, "--", "true"]).exits(1), "/no/such");
    let mut child = yendor.command(&["exec", "-i", &name, "--", "cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    use std::io::Write as _;
    child.stdin.take().expect("a pipe").write_all(b"through").expect("write");
    assert_eq!(child.wait_with_output().expect("wait").stdout, b"through");
}

fn dropped_capabilities_stay_dropped(yendor: &Yendor) {
    let name = yendor.fresh("caps");
    let script = "grep CapBnd /proc/self/status; exec sleep 1000";
    yendor
        .run_detached_with(&name, &["--cap-drop", "NET_RAW", "--cap-drop", "cap_kill"], &["sh", "-c", script])
        .exits(0);
    let bounding = "CapBnd:\t000001ffffffdfdf";
    yendor.wait_for_log(&name, bounding, SOON);
    let said = yendor.call(&["exec", &name, "--", "grep", "CapBnd", "/proc/self/status"]).exits(0);
    assert_eq!(said.stdout.trim(), bounding, "exec gets what the container may not have");
}

fn the_store_keeps_images_by_name(yendor: &Yendor) {
    let name = yendor.fresh("s");
    yendor.run_detached(&name, &["sleep", "1000"]);
    let first = yendor.call(&["checkpoint", &name, "--leave-running"]).exits(0);
    assert_eq!(first.stdout.trim(), format!("{name}@1"));
    // One task is not "1 tasks"; the phases are said.
    says(&first, "1 task, ");
    says(&first, "freeze");
    assert_eq!(yendor.call(&["checkpoint", &name]).exits(0).stdout.trim(), format!("{name}@2"));
    let listed = yendor.call(&["images", "--json"]).exits(0).json();
    let known: Vec<_> =
        listed.as_array().expect("an array").iter().map(|i| i["image"].as_str().unwrap_or("")).collect();
    assert_eq!(known, [format!("{name}@1"), format!("{name}@2")]);
    assert!(yendor.call(&["images"]).exits(0).stdout.contains("container"));
    assert!(yendor.call(&["ps", "-a"]).exits(0).stdout.contains("checkpointed"));
    // A name alone is the newest; the checkpointed container gives its name to its successor.
    let restored = yendor.call(&["restore", &name, "-d"]).exits(0);
    assert_eq!(restored.stdout.trim(), name);
    says(&restored, "rebuild");
    assert!(yendor.call(&["ps"]).exits(0).stdout.contains(&format!("{name}@2")));
    let other = yendor.fresh("other");
    yendor.call(&["restart", &format!("{name}@1"), "-d", "--name", &other]).exits(0);
    for option in ["--tree", "--files", "--memory", "--sockets", "--security", "--lost"] {
        assert!(!yendor.call(&["inspect", &name, option]).exits(0).stdout.is_empty(), "{option}");
    }
    assert!(yendor.call(&["inspect", &name, "--tree"]).exits(0).stdout.contains("sleep"));
    assert!(yendor.call(&["plan", &name]).exits(0).stdout.contains("all tasks run"));
    yendor.call(&["rmi", &format!("{name}@1")]).exits(0);
    yendor.call(&["restore", &format!("{name}@1"), "-d"]).exits(1);
    // An image that lies elsewhere is not removed half: neither it nor what leads there.
    let (place, elsewhere) = (yendor.path("state/images").join(&name), yendor.path("elsewhere"));
    std::fs::rename(place.join("2"), &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, place.join("2")).expect("a link");
    let said = yendor.call(&["rmi", &name]).exits(1).stderr;
    assert!(said.contains("symbolic link") && elsewhere.join("manifest.json").exists(), "{said}");
    yendor.call(&["inspect", &name]).exits(0);
    std::fs::remove_file(place.join("2")).and_then(|()| std::fs::rename(&elsewhere, place.join("2"))).expect("back");
    yendor.call(&["rmi", &name]).exits(0);
    assert!(!yendor.call(&["images"]).exits(0).stdout.contains(&name));
    yendor.call(&["rm", "-f", &name]).exits(0);
    yendor.call(&["rm", "-f", &other]).exits(0);
}

fn volumes_are_holes_that_a_restore_fills_by_name(yendor: &Yendor) {
    let name = yendor.fresh("v");
    for place in ["one", "two"] {
        fs::create_dir(yendor.path(place)).expect("a directory of our own");
        fs::set_permissions(yendor.path(place), fs::Permissions::from_mode(0o700)).expect("chmod");
        fs::write(yendor.path(place).join("who"), place).expect("a file of our own");
        yendor.owns(&yendor.path(place));
    }
    let volume = |place: &str| format!("data={}", yendor.path(place).display());
    let (first, read_only) = (volume("one") + ":/srv/data", format!("etc={}:/mnt/ro:ro", yendor.path("one").display()));
    let script = "touch /mnt/ro/x 2>/dev/null && echo the read-only volume is writable; echo ready; \
                  trap 'cat /srv/data/who > /srv/data/seen; touch /mnt/ro/x 2>/dev/null && exit 9; exit 0' USR1; \
                  while :; do sleep 0.05; done";
    yendor.run_detached_with(&name, &["--volume", &first, "--volume", &read_only], &["sh", "-c", script]).exits(0);
    yendor.wait_for_log(&name, "ready", SOON);
    assert_eq!(yendor.logs(&name), "ready\n");
    // What is mounted is no other because it has another name now.
    fs::rename(yendor.path("one"), yendor.path("other")).expect("rename");
    yendor.call(&["checkpoint", &name]).exits(0);
    fs::rename(yendor.path("other"), yendor.path("one")).expect("rename");
    let restore = |options: &[&str]| yendor.call(&[&["restore", &name, "-d"], options].concat());
    says(&restore(&[]).exits(5), "--volume data=HOSTPATH");
    let (data, etc) = (volume("two"), format!("etc={}", yendor.path("one").display()));
    says(&restore(&["--volume", &data]).exits(5), "--volume etc=HOSTPATH");
    says(&restore(&["--volume", &data, "--volume", &etc, "--volume", "more=/tmp"]).exits(1), "no volume more");
    let planned = yendor.call(&["plan", &name]).exits(5);
    says(&planned, "--volume data=HOSTPATH");
    assert!(planned.stdout.contains("--volume data=HOSTPATH"), "{planned:?}");
    restore(&["--volume", &data, "--volume", &etc]).exits(0);
    yendor.kill(&name, "USR1");
    assert_eq!(yendor.wait(&name), 0, "a volume that could not be written can be after a restore");
    assert_eq!(fs::read_to_string(yendor.path("two/seen")).expect("written to the other volume"), "two");
    let mode = fs::metadata(yendor.path("two")).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "a restore has changed a directory of the host's");
}

fn a_directory_as_root_has_to_be_given_again(yendor: &Yendor) {
    let (name, root) = (yendor.fresh("r"), yendor.path("root"));
    for directory in ["", "bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir(root.join(directory)).expect("a directory of our own");
        yendor.owns(&root.join(directory));
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    yendor.run_detached_with(&name, &["--rootfs", utf8(&root)], &["/bin/busybox", "sleep", "1000"]).exits(0);
    yendor.call(&["checkpoint", &name]).exits(0);
    says(&yendor.call(&["restore", &name, "-d"]).exits(5), "--rootfs DIR");
    yendor.call(&["restore", &name, "-d", "--rootfs", utf8(&root)]).exits(0);
    let said = yendor.call(&["exec", &name, "--", "/bin/busybox", "ls", "/"]).exits(0).stdout;
    assert_eq!(said, "bin\ndev\nproc\nsys\ntmp\n");
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn networks(yendor: &Yendor) {
    let links = |net: &str| {
        let run = yendor.call(&[
            "run",
            "--rm",
            "--net",
            net,
            "--",
            "sh",
            "-c",
            "readlink /proc/self/ns/net; grep -c : /proc/net/dev; cat /sys/class/net/lo/operstate",
        ]);
        run.exits(0).stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = fs::read_link("/proc/self/ns/net").expect("a link").display().to_string();
    let (private, host, none) = (links("private"), links("host"), links("none"));
    assert_eq!(host[0], own);
    assert!(private[0] != own && none[0] != own && private[0] != none[0]);
    assert_eq!(
        (private[2].as_str(), none[2].as_str()),
        ("unknown", "down"),
        "only a private network has its loopback up"
    );
}

fn the_foreground_passes_signals_and_the_status_on(yendor: &Yendor) {
    let name = yendor.fresh("f");
    let script = "trap 'echo term; exit 9' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.05; done";
    let mut command = yendor.command(&["run", "--name", &name, "--", "sh", "-c", script]);
    let mut run = Started::new(command.stdout(yendor.output("out")).stderr(Stdio::null()));
    passes_on(yendor, &mut run, "out");
    yendor.call(&["rm", &name]).exits(0);
}

#[track_caller]
fn passes_on(yendor: &Yendor, run: &mut Started, file: &str) {
    let text = || fs::read_to_string(yendor.path(file)).unwrap_or_default();
    assert!(wait_until(SOON, || text().contains("ready")), "{}", text());
    // The container runs before its front has heard of that: until then, a signal ends the front.
    assert!(wait_until(SOON, || blocks_hup(run.pid())), "SIGHUP is not blocked");
    signal(run, "HUP");
    assert!(wait_until(SOON, || text().contains("hup")), "SIGHUP is not passed on: {}", text());
    signal(run, "TERM");
    assert_eq!(run.ended(SOON).map(Started::code), Some(9), "{}", text());
    assert!(text().contains("term"), "{}", text());
}

fn blocks_hup(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

fn signal(started: &Started, name: &str) {
    let status = std::process::Command::new("kill").args(["-s", name, &started.pid().to_string()]).status();
    assert!(status.expect("kill").success());
}

fn a_restore_in_the_foreground_is_like_a_run(yendor: &Yendor) {
    let name = yendor.fresh("rf");
    let script = "trap 'echo term; exit 9' TERM; trap 'echo hup' HUP; while :; do echo ready; sleep 0.05; done";
    yendor.run_detached(&name, &["sh", "-c", script]);
    yendor.wait_for_log(&name, "ready", SOON);
    yendor.call(&["checkpoint", &name]).exits(0);
    let pidfile = yendor.path("pid");
    let mut command = yendor.command(&["restore", &name, "--pidfile", utf8(&pidfile)]);
    let mut run = Started::new(command.stdout(yendor.output("out")).stderr(Stdio::null()));
    let text = || fs::read_to_string(&pidfile).unwrap_or_default();
    assert!(wait_until(SOON, || text().ends_with('\n')), "no pid file");
    let comm = fs::read_to_string(format!("/proc/{}/comm", text().trim())).expect("the pid is one of the caller's");
    assert_eq!(comm, "sh\n");
    passes_on(yendor, &mut run, "out");
}

fn a_terminal_is_shared_left_and_taken_up_again(yendor: &Yendor) {
    let name = yendor.fresh("t");
    let mut terminal = Terminal::new(30, 100);
    let script =
        "stty size; echo rea''dy; while read line; do echo got $line $(stty size); test $line = end && exit 5; done";
    let mut run = terminal.start(&mut yendor.command(&["run", "-t", "--name", &name, "--", "bash", "-c", script]));
    terminal.wait_for("30 100", SOON);
    terminal.wait_for("ready", SOON);
    terminal.resize(40, 90);
    terminal.write("first\r");
    terminal.wait_for("got first 40 90", SOON);
    terminal.write("\x10\x11");
    assert_eq!(run.ended(SOON).map(Started::code), Some(0), "{}", terminal.text());
    terminal.wait_for(&format!("yendor attach {name}"), SOON);

    let mut terminal = Terminal::new(25, 80);
    let mut attach = terminal.start(&mut yendor.command(&["attach", &name]));
    terminal.write("second\r");
    terminal.wait_for("got second", SOON);
    terminal.write("\x10\x11");
    assert_eq!(attach.ended(SOON).map(Started::code), Some(0), "{}", terminal.text());

    // The image knows that its tasks sit at a terminal: nobody has to say so.
    yendor.call(&["checkpoint", &name]).exits(0);
    yendor.call(&["restore", "-d", &name]).exits(0);
    let mut terminal = Terminal::new(25, 80);
    let mut attach = terminal.start(&mut yendor.command(&["attach", &name]));
    terminal.write("third\r");
    terminal.wait_for("got third", SOON);
    terminal.write("\x10\x11");
    assert_eq!(attach.ended(SOON).map(Started::code), Some(0), "{}", terminal.text());

    yendor.call(&["checkpoint", &name]).exits(0);
    let mut terminal = Terminal::new(25, 80);
    let mut restore = terminal.start(&mut yendor.command(&["restore", &name]));
    terminal.write("fourth\r");
    terminal.wait_for("got fourth", SOON);
    terminal.write("end\r");
    terminal.wait_for("got end", SOON);
    assert_eq!(restore.ended(SOON).map(Started::code), Some(5), "{}", terminal.text());
    yendor.call(&["rm", &name]).exits(0);
}

fn a_change_of_size_is_told(yendor: &Yendor) {
    let mut terminal = Terminal::new(30, 100);
    let script = "trap 'stty size' WINCH; trap 'exit 3' INT; echo rea''dy; while :; do sleep 0.05; done";
    let mut run = terminal.start(&mut yendor.command(&["run", "-t", "--rm", "--", "sh", "-c", script]));
    terminal.wait_for("ready", SOON);
    terminal.resize(41, 91);
    terminal.wait_for("41 91", SOON);
    // Typed, it is the container's terminal that makes a signal of it.
    terminal.write("\x03");
    assert_eq!(run.ended(SOON).map(Started::code), Some(3), "{}", terminal.text());
}

fn exec_at_a_terminal(yendor: &Yendor) {
    let name = yendor.fresh("et");
    yendor.run_detached(&name, &["sleep", "1000"]);
    let mut terminal = Terminal::new(33, 77);
    let script = "tty; stty size; read line; echo got $line; exit 8";
    let mut exec = terminal.start(&mut yendor.command(&["exec", "-t", "-i", &name, "--", "bash", "-c", script]));
    terminal.wait_for("/dev/pts/", SOON);
    terminal.wait_for("33 77", SOON);
    terminal.write("word\r");
    terminal.wait_for("got word", SOON);
    assert_eq!(exec.ended(SOON).map(Started::code), Some(8), "{}", terminal.text());
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn the_demo_does_the_main_job(yendor: &Yendor) {
    let redis = ["server", "cli"].iter().all(|part| Path::new(&format!("/usr/bin/redis-{part}")).exists());
    let last = if redis { "Not one key is missing or different." } else { "Not one number is missing or twice." };
    for (words, last) in [(&["demo"][..], last), (&["demo", "--counter"], "Not one number is missing or twice.")] {
        let said = yendor.call(words).exits(0);
        assert_eq!(said.stdout.trim_end().lines().last(), Some(last), "{said:?}");
        assert_eq!(said.stderr, "");
    }
    assert!(yendor.tasks_left().is_empty());
}

fn loudness(yendor: &Yendor) {
    let name = yendor.fresh("q");
    let detached = ["run", "-d", "--name", &name];
    let said = yendor.call(&[&detached[..], &["-v", "--", "sleep", "1000"]].concat()).exits(0);
    says(&said, "started");
    says(&said, "contain");
    let quiet = yendor.call(&["checkpoint", "-q", &name]).exits(0);
    assert_eq!((quiet.stdout.trim(), quiet.stderr.as_str()), (format!("{name}@1").as_str(), ""));
    let quiet = yendor.call(&["restore", "-q", "-d", &name]).exits(0);
    assert_eq!((quiet.stdout.trim(), quiet.stderr.as_str()), (name.as_str(), ""));
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn json_is_one_value(yendor: &Yendor) {
    let name = yendor.fresh("j");
    let run = yendor.call(&["run", "-d", "--json", "--name", &name, "--", "sleep", "1000"]).exits(0).json();
    assert_eq!(run["name"], *name);
    assert!(keys(&run["phases"]).contains(&"contain_us") && run["total_us"].is_u64(), "{run}");
    let taken = yendor.call(&["checkpoint", "--json", &name]).exits(0).json();
    let phases = keys(&taken["phases"]).join(" ");
    assert!(["freeze_us", "collect_us", "store_us", "stopped_us"].iter().all(|p| phases.contains(p)), "{taken}");
    let restored = yendor.call(&["restore", "-d", "--json", &name]).exits(0).json();
    assert!(keys(&restored["phases"]).contains(&"rebuild_us"), "{restored}");
    let listed = yendor.call(&["ps", "--json"]).exits(0).json();
    let row = listed.as_array().and_then(|rows| rows.iter().find(|r| r["name"] == *name)).expect("it is listed");
    assert!(row["image"] == format!("{name}@1") && row["generation"] == 1 && row["pid"] == restored["pid"], "{row}");
    for verb in [&["ps"][..], &["ps", "-a"], &["images"], &["inspect", &name], &["plan", &name]] {
        yendor.call(&[verb, &["--json"]].concat()).exits(0).json();
    }
    assert!(yendor.call(&["doctor", "--json"]).json().as_array().is_some_and(|checks| checks.len() > 5));
    let refused = yendor.call(&["restore", "--json", "/no/such/image"]).exits(1);
    let value: Value = serde_json::from_str(refused.stderr.trim()).expect("one value on stderr");
    assert!(value.is_object(), "{value}");
    // In the foreground standard output is the command's.
    let run = yendor.call(&["run", "--rm", "--json", "--", "echo", "mine"]).exits(0);
    assert_eq!(run.stdout, "mine\n");
    assert!(serde_json::from_str::<Value>(run.stderr.trim()).is_ok_and(|v| v["phases"].is_object()), "{}", run.stderr);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

#[test]
fn user_and_group_are_numbers_inside() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let run = |user: &str| yendor.call(&["run", "--rm", "-u", user, "--", "sh", "-c", "id -u; id -g"]).exits(0).stdout;
    assert_eq!((run("1:2"), run("7")), ("1\n2\n".into(), "7\n7\n".into()));
    yendor.call(&["run", "--rm", "-u", "somebody", "--", "true"]).exits(2);
}

#[test]
fn limits_hold_and_go_with_their_container() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let place = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    if !place.contains(":memory:") && !place.contains("0::") {
        yendor_tests::skipped("limits: no cgroups here");
        return;
    }
    let name = yendor.fresh("limited");
    let run = yendor.run_detached_with(&name, &["--memory", "48M", "--pids", "8"], &["sleep", "1000"]);
    if run.code == 5 {
        yendor_tests::skipped(&format!("limits: {}", run.stderr.trim()));
        return;
    }
    run.exits(0);
    let fork = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; wait";
    says(&yendor.call(&["run", "--rm", "--pids", "8", "--", "sh", "-c", fork]), "fork");
    let exec = |script: &str| yendor.call(&["exec", &name, "--", "sh", "-c", script]);
    exec("exec dd if=/dev/zero of=/dev/null bs=100M count=1").exits(137);
    assert!(!cgroups(&name).is_empty(), "no cgroup of the container's is to be seen");
    let image = yendor.path("image");
    yendor.checkpoint(&name, &image);
    assert_eq!(cgroups(&name), Vec::<String>::new(), "cgroups outlive their container");
    // Limits are the caller's: without new ones there are none.
    let (free, again) = (yendor.fresh("free"), yendor.fresh("again"));
    yendor.restore(&image, &free);
    assert_eq!(cgroups(&free), Vec::<String>::new());
    yendor.restore_with(&image, &again, &["--pids", "4"]).exits(0);
    let exec = yendor.call(&["exec", &again, "--", "sh", "-c", "for i in 1 2 3; do sleep 1 & done; wait"]);
    says(&exec, "fork");
    yendor.call(&["rm", "-f", &again]).exits(0);
    assert_eq!(cgroups(&again), Vec::<String>::new());
    // Whose memory has no room is denied, and by whom is said.
    let name = yendor.fresh("large");
    let words = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ready; sleep 1000";
    yendor.run_detached(&name, &["sh", "-c", words]);
    yendor.wait_for_log(&name, "ready", yendor_tests::PATIENCE);
    let image = yendor.path("large");
    yendor.checkpoint(&name, &image);
    let small = yendor.fresh("small");
    let said = yendor.restore_with(&image, &small, &["--memory", "16M"]).exits(5);
    says(&said, "denied by: cgroup: the container's limit of 16777216 bytes of memory (--memory)");
    assert_eq!(cgroups(&small), Vec::<String>::new());
}

/// Cgroups by a container's name, in all hierarchies.
fn cgroups(name: &str) -> Vec<String> {
    let start = format!("yendor-{name}-");
    let mut found = Vec::new();
    let mut next = vec![Path::new("/sys/fs/cgroup").to_path_buf()];
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(&start) {
                    found.push(entry.path().display().to_string());
                }
                next.push(entry.path());
            }
        }
    }
    found
}

/// The log lies in /run, in memory: nobody's container fills that.
#[test]
fn of_a_long_log_the_end_is_kept() {
    use std::os::unix::fs::MetadataExt;
    for flavour in [Flavour::RootUserns, Flavour::user()] {
        let Some(yendor) = Yendor::new(flavour) else { continue };
        for terminal in [&[][..], &["-t"]] {
            let name = yendor.fresh("loud");
            let script = "seq 1 4000000; echo quiet; read x < /tmp/pipe";
            let words = ["sh", "-c", &format!("mkfifo /tmp/pipe; {script}")];
            yendor.run_detached_with(&name, terminal, &words).exits(0);
            let log = yendor.path(&format!("state/run/{name}/log"));
            let ends = || yendor.call(&["logs", &name]).exits(0).stdout.trim_end().ends_with("quiet");
            assert!(wait_until(yendor_tests::PATIENCE, ends), "it does not come to its end");
            let held = || std::fs::metadata(&log).expect("a log").blocks() * 512;
            // It is looked at once a second at least.
            assert!(wait_until(yendor_tests::PATIENCE, || held() <= 16 << 20), "{}", held());
            let said = yendor.call(&["logs", &name]).exits(0);
            let lines: Vec<&str> = said.stdout.lines().collect();
            assert!(lines.len() > 500_000, "{}", lines.len());
            let (first, last) = (lines[0].trim().parse::<u32>().expect("a whole line"), lines[lines.len() - 2].trim());
            assert_eq!((last, 4_000_000 - first), ("4000000", u32::try_from(lines.len()).expect("few") - 2));
            assert!(said.stderr.contains("bytes of this log are gone"), "{}", said.stderr);
            yendor.call(&["rm", "-f", &name]).exits(0);
        }
    }
}

/// Runs it with its state in these places.
fn with_state_in(yendor: &Yendor, run: &Path, data: &Path, words: &[&str]) -> Outcome {
    let places = [("YENDOR_ROOT", ""), ("XDG_RUNTIME_DIR", utf8(run)), ("XDG_DATA_HOME", utf8(data))];
    yendor.call_with(words, &places)
}

/// Images lay among the containers then, and went as what a killed start had left.
#[test]
fn one_place_for_containers_and_images_loses_neither() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let place = yendor.path("data");
    let call = |words: &[&str]| with_state_in(&yendor, &place, &place, words);
    let name = yendor.fresh("one");
    call(&["run", "-d", "--name", &name, "--", "sleep", "1000"]).exits(0);
    call(&["checkpoint", &name]).exits(0);
    let lists = |words: &[&str], name: &str| assert!(call(words).exits(0).stdout.contains(name));
    lists(&["ps", "-a"], &name);
    lists(&["images"], &format!("{name}@1"));
    call(&["restore", &name, "-d"]).exits(0);
    lists(&["ps"], &name);
    call(&["rm", "-f", &name]).exits(0);
}

/// What lies there says which processes are signalled and what is removed.
#[test]
fn state_that_somebody_else_can_change_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    let place = yendor.path("lent");
    std::fs::create_dir_all(place.join("run/precious")).expect("mkdir");
    let call = |words: &[&str]| yendor.call_with(words, &[("YENDOR_ROOT", utf8(&place))]);
    let refused = |what: &str| {
        for words in [&["ps"][..], &["images"], &["kill", "web"], &["run", "--rm", "--", "true"]] {
            let said = call(words).exits(5).stderr;
            assert!(said.contains("lent") && said.contains("this user alone"), "{what}: {said}");
        }
    };
    call(&["ps"]).exits(0);
    call(&["rm", "-f", "precious"]).exits(1);
    call(&["run", "--rm", "--name", "precious", "--", "true"]).exits(1);
    assert!(place.join("run/precious").exists(), "it is not ours");
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
    mode(&place, 0o777);
    refused("everybody may write");
    mode(&place, 0o755);
    chown(&place, Some(65534), None).expect("chown");
    refused("another's");
    chown(&place, Some(0), None).expect("chown");
    std::fs::rename(place.join("run"), place.join("other")).expect("rename");
    symlink("other", place.join("run")).expect("symlink");
    refused("a link");
    std::fs::remove_file(place.join("run")).expect("a link of our own");
    call(&["ps"]).exits(0);
}

#[test]
fn a_pid_file_is_written_through_no_link() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let (link, file) = (yendor.path("data/pid"), yendor.path("data/kept"));
    std::fs::create_dir_all(yendor.path("data")).expect("mkdir");
    std::fs::write(&file, "kept").expect("write");
    std::os::unix::fs::symlink(&file, &link).expect("symlink");
    let name = yendor.fresh("pid");
    yendor.run_detached(&name, &["sleep", "1000"]);
    let (image, again) = (yendor.path("image"), yendor.fresh("pid"));
    yendor.checkpoint(&name, &image);
    yendor.restore_with(&image, &again, &["--pidfile", utf8(&link)]).exits(1);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "kept");
    assert!(!yendor.call(&["ps", "-a"]).exits(0).stdout.contains(&again));
}
