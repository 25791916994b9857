//! What a command answers about what has gone or is not there: statuses of containers that nobody finds any more, images that there are not,
//! words that nobody knows.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use yendor_tests::{Flavour, Forge, Outcome, PATIENCE, Started, Terminal, Yendor, skipped, wait_until};

const SOON: Duration = Duration::from_secs(30);
const NONE: &str = "/nonexistent";

yendor_tests::root_and_user! {
    a_container_that_removes_itself_leaves_its_status_to_those_who_wait
    who_waits_hears_of_a_checkpoint_and_has_his_terminal_back
    a_container_that_has_the_name_of_a_removed_one_is_left_alone
    a_plan_exits_as_the_restore_would
    a_plan_knows_another_kernel
    another_processor_is_refused_unless_any_is_asked_for
    a_plan_says_what_confined_the_container
    words_that_nobody_knows_are_refused
    what_json_has_is_what_the_page_says
    a_stopped_container_is_listed_as_stopped
    a_number_that_a_container_names_is_no_other_images
    a_working_directory_that_is_none_is_named
    ids_that_a_container_has_not_are_told_from_those_it_has
    a_name_in_use_says_how_to_free_it
    a_comparison_of_nothing_is_told
    where_there_is_no_memory_there_are_no_strings
    how_a_restore_is_called_is_what_its_help_says
    a_volume_of_a_restore_has_a_form_of_its_own
    keys_that_are_not_there_are_no_misuse
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[track_caller]
fn says(outcome: &Outcome, words: &str) {
    assert!(outcome.stderr.contains(words), "`{}` does not say {words:?}: {}", outcome.command, outcome.stderr);
}

fn a_container_that_removes_itself_leaves_its_status_to_those_who_wait(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("brief");
    for _ in 0..3 {
        yendor.run_detached_with(&name, &["--rm"], &["sh", "-c", "sleep 0.3; exit 8"]).exits(0);
        yendor.call(&["wait", &name]).exits(8);
        let gone = || !yendor.path("state/run").join(&name).exists();
        assert!(wait_until(SOON, gone), "it is there still");
    }
    yendor.run_detached_with(&name, &["--rm", "-t"], &["sh", "-c", "echo rea''dy; read line; exit 9"]).exits(0);
    let mut terminal = Terminal::new(25, 80);
    let mut attach = terminal.start(&mut yendor.command(&["attach", &name]));
    terminal.write("on\r");
    assert_eq!(attach.ended(PATIENCE).map(Started::code), Some(9), "{}", terminal.text());
}

/// `run --rm` stands still between the start and its first look: what it says does not go into a full pipe.
fn a_container_that_has_the_name_of_a_removed_one_is_left_alone(flavour: Flavour) {
    // What a pipe has room for (pipe(7)).
    const ROOM: usize = 1 << 16;
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("named");
    let (mut reader, mut writer) = std::io::pipe().expect("pipe");
    std::io::Write::write_all(&mut writer, &[b'.'; ROOM]).expect("there is room for so much");
    let words = [&["run", "--rm", "--json", "--name", &name], yendor.flavour().options(), &["--", "sleep", "1000"]];
    let mut first = Started::new(yendor.command(&words.concat()).stderr(writer));
    assert!(wait_until(SOON, || yendor.call(&["ps"]).stdout.contains(&name)), "it does not run");
    yendor.call(&["rm", "-f", &name]).exits(0);
    yendor.run_detached(&name, &["sleep", "1000"]);
    let drained = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    assert_eq!(first.ended(SOON).map(Started::code), Some(137), "it waits for the other");
    drained.join().expect("no panic").expect("a pipe can be read");
    assert!(yendor.call(&["ps"]).exits(0).stdout.contains(&name), "it has removed the other");
    yendor.call(&["exec", &name, "--", "true"]).exits(0);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn who_waits_hears_of_a_checkpoint_and_has_his_terminal_back(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (plain, brief, drawn) = (yendor.fresh("plain"), yendor.fresh("brief"), yendor.fresh("drawn"));
    let waits = |words: &[&str], name: &str, tell: &'static str| {
        let (mut command, said) = (yendor.command(words), yendor.path(&format!("said-{tell}")));
        let file = std::fs::File::create(&said).expect("a file of our own");
        let child = Started::new(command.stdout(std::process::Stdio::null()).stderr(file));
        let runs = || yendor.call(&["ps"]).stdout.contains(name);
        assert!(wait_until(SOON, runs), "{name} does not run");
        if tell.starts_with("wait") {
            // It has begun to wait, most likely; either way it is told the same.
            std::thread::sleep(Duration::from_millis(300));
        }
        move |image: &str| {
            let mut child = child;
            assert_eq!(child.ended(PATIENCE).map(Started::code), Some(1), "{tell}");
            let said = std::fs::read_to_string(&said).expect("a file of our own");
            assert!(
                said.contains("was checkpointed") && said.contains(&format!("`yendor restore {image}`")),
                "{tell}: {said}"
            );
        }
    };
    // In the foreground, in the background, and one that is gone by then; from the store and elsewhere.
    let run = waits(&["run", "--name", &plain, "--", "sleep", "1000"], &plain, "run");
    yendor.call(&["checkpoint", &plain]).exits(0);
    run(&format!("{plain}@1"));
    let restore = waits(&["restore", &plain], &plain, "restore");
    let wait = waits(&["wait", &plain], &plain, "wait");
    let elsewhere = yendor.path("elsewhere");
    yendor.call(&["checkpoint", &plain, "--leave-running"]).exits(0);
    yendor.call(&["checkpoint", &plain, "-o", utf8(&elsewhere)]).exits(0);
    restore(utf8(&elsewhere));
    wait(utf8(&elsewhere));
    yendor.run_detached_with(&brief, &["--rm"], &["sleep", "1000"]).exits(0);
    let wait = waits(&["wait", &brief], &brief, "wait-brief");
    yendor.call(&["checkpoint", &brief]).exits(0);
    wait(&format!("{brief}@1"));

    // An editor's screen.
    let script = "printf '\\033[?1049h\\033[?25l'; echo rea''dy; exec sleep 1000";
    for words in [&["run", "-t", "--rm", "--name", &drawn, "--", "sh", "-c", script][..], &["attach", &drawn]] {
        if words[0] == "attach" {
            yendor.run_detached_with(&drawn, &["-t"], &["sh", "-c", &format!("sleep 1; {script}")]).exits(0);
        }
        let mut terminal = Terminal::new(25, 80);
        let mut shown = terminal.start(&mut yendor.command(words));
        terminal.wait_for("ready", PATIENCE);
        let image = yendor.call(&["checkpoint", &drawn]).exits(0).stdout;
        assert_eq!(shown.ended(PATIENCE).map(Started::code), Some(1), "{}", terminal.text());
        terminal.wait_for("\x1b[?25h\x1b[?1049l", SOON);
        terminal.wait_for(&format!("`yendor restore {}`", image.trim()), SOON);
    }
}

fn a_plan_exits_as_the_restore_would(flavour: Flavour) {
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, other, place) = (yendor.fresh("planned"), yendor.fresh("other"), yendor.path("tmp"));
    let data = format!("data={}", place.display());
    let sleep = ["sleep", "1000"];
    yendor.run_detached_with(&name, &["--volume", &format!("{data}:/mnt")], &sleep).exits(0);
    yendor.call(&["checkpoint", &name]).exits(0);
    yendor.run_detached(&other, &sleep);
    let active = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let module = ["apparmor", "smack", "selinux"].into_iter().find(|m| !active.contains(m)).expect("not all of them");
    let (profile, more) = (format!("{module}:foo"), format!("more={}", place.display()));
    let cases: [(&[&str], i32); 7] = [
        (&[], 5),
        (&["--volume", &data, "--volume", &more], 1),
        (&["--volume", "data=/nonexistent"], 1),
        (&["--volume", &data, "--rootfs", "/nonexistent"], 1),
        (&["--volume", &data, "--lsm-profile", &profile], 5),
        (&["--volume", &data, "--name", &other], 1),
        (&["--volume", &data, "--verify", KEY], 5),
    ];
    for (options, code) in cases {
        let [planned, restored] =
            ["plan", "restore"].map(|verb| yendor.call(&[&[verb, &name, "-d"], options].concat()).exits(code));
        let reason = |outcome: &Outcome| outcome.stderr.lines().next().unwrap_or_default().to_owned();
        assert_eq!(reason(&planned), reason(&restored), "{options:?}");
    }
    assert!(
        yendor
            .call(&["plan", &name, "--json"])
            .exits(5)
            .json()
            .as_array()
            .is_some_and(|lines| { lines.iter().filter(|line| line["ok"] == false).count() == 1 })
    );
    let pid = utf8(&yendor.path("pid")).to_owned();
    yendor.call(&["plan", &name, "-d", "--volume", &data, "--pidfile", &pid, "--lazy"]).exits(0);
    yendor.call(&["restore", &name, "-d", "--volume", &data, "--pidfile", &pid]).exits(0);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn a_plan_knows_another_kernel(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, image, other) = (yendor.fresh("here"), yendor.path("image"), yendor.path("other"));
    yendor.run_detached(&name, &["sleep", "1000"]);
    yendor.call(&["checkpoint", &name, "-o", utf8(&image)]).exits(0);
    let mut forge = Forge::open(&image);
    forge.set("machine/vdso", "07".repeat(32));
    forge.write(&other);
    yendor.give(&other);
    for (image, code) in [(&image, 0), (&other, 5)] {
        let words = |verb| [&[verb, utf8(image), "-d", "--name", &name], yendor.flavour().options()].concat();
        let planned = yendor.call(&words("plan")).exits(code);
        let lines = planned.stdout.lines().filter(|line| line.contains("would stop here")).collect::<Vec<_>>();
        assert_eq!(lines.len(), usize::from(code != 0), "{planned:?}");
        if code != 0 {
            says(&planned, "whose vdso this one's differs from");
            assert!(lines.iter().all(|line| line.contains("vdso") && line.starts_with("rebuild")), "{lines:?}");
            says(&yendor.call(&words("restore")).exits(code), "whose vdso this one's differs from");
        }
    }
}

/// A program has chosen by what the processor has: on one without it, it would die later, in the middle of something.
fn another_processor_is_refused_unless_any_is_asked_for(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, image, other, older) =
        (yendor.fresh("here"), yendor.path("image"), yendor.path("other"), yendor.path("older"));
    yendor.run_detached(&name, &["sleep", "1000"]);
    yendor.call(&["checkpoint", &name, "-o", utf8(&image)]).exits(0);
    let mut forge = Forge::open(&image);
    let had = forge.list("machine/processor").clone();
    // Whatever runs the tests has it.
    assert!(had.contains(&"sse4_2".into()), "{had:?}");
    let said = yendor.call(&["inspect", utf8(&image)]).exits(0).stdout;
    assert!(said.lines().any(|line| line.starts_with("processor") && line.contains("x86-64-v")), "{said}");
    forge.list("machine/processor").push("zz_warp".into());
    forge.write(&other);
    let ciborium::Value::Map(machine) = forge.at("machine") else { panic!("no map") };
    machine.retain(|(key, _)| key.as_text() != Some("processor"));
    forge.write(&older);
    [&other, &older].iter().for_each(|image| yendor.give(image));
    let words = |verb, image, more: &[&str]| {
        let words = [&[verb, utf8(image), "-d", "--name", &name], more, yendor.flavour().options()].concat();
        yendor.call(&words)
    };
    for verb in ["plan", "restore"] {
        let refused = words(verb, &other, &[]).exits(5);
        says(&refused, "(zz_warp)");
        says(&refused, "--any-cpu");
        assert!(!refused.stderr.contains("sse"), "{refused:?}");
    }
    let planned = words("plan", &other, &[]).stdout;
    assert_eq!(planned.lines().filter(|line| line.contains("would stop here")).count(), 1, "{planned}");
    let planned = words("plan", &other, &["--any-cpu"]).exits(0).stdout;
    assert!(planned.lines().any(|line| line.contains("SIGILL") && line.contains("zz_warp")), "{planned}");
    for (image, options, noted) in [(&other, &["--any-cpu"][..], true), (&older, &[], false), (&image, &[], false)] {
        let restored = words("restore", image, options).exits(0);
        assert_eq!(restored.stderr.contains("zz_warp"), noted, "{restored:?}");
        assert_eq!(restored.stderr.contains("SIGILL"), noted, "{restored:?}");
        yendor.call(&["rm", "-f", &name]).exits(0);
    }
}

fn a_plan_says_what_confined_the_container(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("confined");
    yendor.run_detached_with(&name, &["--cap-drop", "CAP_NET_RAW"], &["sleep", "1000"]).exits(0);
    yendor.call(&["checkpoint", &name]).exits(0);
    for (options, weaker) in [(&[][..], true), (&["--cap-drop", "CAP_NET_RAW"], false)] {
        let planned = yendor.call(&[&["plan", &name, "-d", "--json"], options].concat()).exits(0).json();
        let said = |line: &&Value| line["what"] == "it ran under --cap-drop, which nobody asks for now";
        let lines: Vec<&Value> = planned.as_array().expect("a list").iter().filter(said).collect();
        assert_eq!(lines.len(), usize::from(weaker), "{planned}");
        assert!(lines.iter().all(|line| line["ok"] == true && line["step"] == "confine"), "{planned}");
    }
}

fn words_that_nobody_knows_are_refused(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("words");
    yendor.run_detached(&name, &["sleep", "1000"]);
    // A kind that cannot be lost is no loss that anybody could accept.
    for kind in ["tpc", "pipe", ""] {
        let said = yendor.call(&["checkpoint", &name, "--leave-running", "--allow-lost", kind]).exits(2);
        says(&said, "tcp, udp, iptables, landlock");
    }
    assert!(yendor.call(&["checkpoint", "--help"]).exits(0).stdout.contains("tcp, udp, iptables, landlock"));
    yendor.call(&["checkpoint", &name, "--leave-running", "--allow-lost", "tcp", "--allow-lost", "udp"]).exits(0);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

/// The keys of a table of docs/json.md, in order of the alphabet.
fn documented(section: &str) -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json.md")).expect("stored");
    let part = page.split("\n## ").find_map(|part| part.strip_prefix(&format!("{section}\n"))).expect("a section");
    let mut keys: Vec<String> =
        part.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect();
    keys.sort();
    keys
}

#[track_caller]
fn as_documented(section: &str, value: &Value) {
    let mut keys: Vec<String> = value.as_object().unwrap_or_else(|| panic!("{value}")).keys().cloned().collect();
    keys.sort();
    assert_eq!(keys, documented(section), "{section}: {value}");
}

fn what_json_has_is_what_the_page_says(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("page");
    as_documented("run", &yendor.run_detached_with(&name, &["--json"], &["sleep", "1000"]).exits(0).json());
    as_documented("checkpoint", &yendor.call(&["checkpoint", &name, "--json"]).exits(0).json());
    as_documented("restore", &yendor.call(&["restore", &name, "-d", "--json"]).exits(0).json());
    std::fs::create_dir_all(yendor.path("state/images/broken/1")).expect("a directory of our own");
    yendor.owns(&yendor.path("state/images/broken"));
    yendor.owns(&yendor.path("state/images/broken/1"));
    // Of every sort: of the command line, of the command itself, of the engine, of the container's keeper.
    let cases: [(&[&str], i32); 6] = [
        (&["restore", "--json", "--no-such-option"], 2),
        (&["restore", "--json", "broken", "--verify", "nokey"], 1),
        (&["restore", "--json", &name, "--name", &name], 1),
        (&["restore", "--json", &name, "--name", "free", "--rootfs", "/nonexistent"], 1),
        (&["run", "--json", "--name", &name, "--", "true"], 1),
        (&["run", "--json", "--rm", "--lsm-profile", "smack:x", "--", "true"], 5),
    ];
    for (words, code) in cases {
        let said = yendor.call(words).exits(code);
        let value: Value = serde_json::from_str(said.stderr.trim()).unwrap_or_else(|e| panic!("{e}: {said:?}"));
        let error = &value["error"];
        as_documented("Errors", error);
        let message = error["message"].as_str().expect("a text");
        assert!(!message.contains("hint:") && !message.contains("denied by"), "{message}");
        assert!(error["exit_code"] == code, "{error}");
        let has_hint = words.contains(&"free") || words.contains(&"broken") || error["hint"].is_string();
        assert!(has_hint, "{error}");
    }
    for (section, words) in [
        ("ps", &["ps", "-a"][..]),
        ("images", &["images"]),
        ("plan", &["plan", &format!("{name}@1"), "--name", "free"]),
        ("doctor", &["doctor"]),
    ] {
        let all = yendor.call(&[words, &["--json"]].concat()).json();
        let all = all.as_array().expect("a list");
        assert!(!all.is_empty(), "{section}");
        all.iter().for_each(|one| as_documented(section, one));
    }
    let whole = yendor.call(&["inspect", &name, "--json"]).exits(0).json();
    as_documented("inspect", &whole);
    let area = &whole["records"]["processes"][0]["state"]["alive"]["memory"]["areas"][0]["start"];
    let span = format!("{}:{area}+4096", whole["records"]["processes"][0]["pid"]);
    as_documented("inspect", &yendor.call(&["inspect", &name, "--json", "--strings", &span]).exits(0).json());
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn a_stopped_container_is_listed_as_stopped(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("stopped");
    yendor.run_detached(&name, &["sh", "-c", "sleep 1000 & sleep 1000"]);
    let is = |state: &str| {
        let all = yendor.call(&["ps", "--json"]).exits(0).json();
        let row = all.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == *name));
        row.is_some_and(|row| row["state"] == state && row["pid"].is_number())
    };
    assert!(wait_until(SOON, || is("running")));
    // One of several is not all of it.
    yendor.kill(&name, "STOP");
    assert!(!is("stopped"));
    yendor.kill(&name, "CONT");
    yendor.call(&["checkpoint", &name, "--leave-stopped"]).exits(0);
    assert!(wait_until(SOON, || is("stopped")), "{}", yendor.call(&["ps"]).stdout);
    assert!(yendor.call(&["ps"]).stdout.contains("stopped"));
    yendor.call(&["kill", "--all", "-s", "CONT", &name]).exits(0);
    assert!(wait_until(SOON, || is("running")), "{}", yendor.call(&["ps"]).stdout);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn a_number_that_a_container_names_is_no_other_images(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, other) = (yendor.fresh("number"), yendor.fresh("other"));
    let take = || yendor.call(&["checkpoint", &name, "--leave-running"]).exits(0).stdout.trim().to_owned();
    yendor.run_detached(&name, &["sleep", "1000"]);
    let first = take();
    yendor.will_remove(&other);
    yendor.call(&["restore", &first, "-d", "--name", &other]).exits(0);
    yendor.call(&["rmi", &first]).exits(0);
    let second = take();
    assert_eq!((first.as_str(), second.as_str()), (&*format!("{name}@1"), &*format!("{name}@2")));
    assert!(yendor.call(&["ps"]).exits(0).stdout.contains(&first));
    // Nor is that of the image that clones are from.
    yendor.will_remove(&format!("{name}-1"));
    yendor.call(&["clone", &name]).exits(0);
    let third = take();
    assert!(!yendor.call(&["ps"]).exits(0).stdout.contains(&third), "{third} is what the clone is from");
    // Where nobody names it, it is as free as any.
    yendor.call(&["rm", "-f", &other]).exits(0);
    yendor.call(&["rm", "-f", &format!("{name}-1")]).exits(0);
    for image in [&second, &third] {
        yendor.call(&["rmi", image]).exits(0);
    }
    assert_eq!(take(), first);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

fn asleep(yendor: &Yendor, stem: &str) -> String {
    let name = yendor.fresh(stem);
    yendor.run_detached(&name, &["sleep", "1000"]);
    name
}

fn run(yendor: &Yendor, options: &[&str]) -> Outcome {
    yendor.call(&[&["run", "--rm"], options, &["--", "true"]].concat())
}

fn a_working_directory_that_is_none_is_named(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    says(&run(&yendor, &["-w", NONE]).exits(1), "yendor: -w /nonexistent: no such directory in the container");
    says(&run(&yendor, &["-w", "/etc/passwd"]).exits(1), "yendor: -w /etc/passwd: no directory in the container");
}

fn ids_that_a_container_has_not_are_told_from_those_it_has(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let said = run(&yendor, &["-u", "99999"]).exits(5);
    let mut some = (100_000..1_000_000).step_by(5_000);
    if *yendor.flavour() == Flavour::Root || some.any(|id| yendor.account().may_be(id)) {
        says(&said, "hint: this container has users 0 to 6553");
    } else {
        skipped("several ids in a container: the account of the tests has no subordinate ones");
    }
}

fn a_name_in_use_says_how_to_free_it(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = asleep(&yendor, "taken");
    says(&run(&yendor, &["--name", &name]).exits(1), &format!("yendor rm -f {name} ends"));
    yendor.kill(&name, "KILL");
    assert_eq!(yendor.wait(&name), 137);
    says(&run(&yendor, &["--name", &name]).exits(1), &format!("yendor rm {name} "));
}

fn a_comparison_of_nothing_is_told(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = asleep(&yendor, "compared");
    let checkpoint = ["checkpoint", &name, "--leave-running", "--verify-delta"];
    says(&yendor.call(&checkpoint).exits(0), "note: --verify-delta has compared nothing");
    let said = yendor.call(&[&checkpoint[..], &["--json"]].concat()).exits(0).json();
    assert!(said["notes"].as_array().is_some_and(|notes| notes.len() == 1), "{said}");
}

fn where_there_is_no_memory_there_are_no_strings(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = asleep(&yendor, "strings");
    yendor.call(&["checkpoint", &name]).exits(0);
    let said = yendor.call(&["inspect", &name, "--strings", "2:0x1000+64"]).exits(1);
    says(&said, "process 2 has no memory at 0x1000+64");
}

fn how_a_restore_is_called_is_what_its_help_says(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    for verb in ["run", "restore", "plan"] {
        let help = yendor.call(&[verb, "--help"]).exits(0).stdout;
        let help: Vec<&str> = help.split_whitespace().collect();
        assert!(
            help.join(" ").contains("without one, that of the image, if it is from one and the name is free"),
            "{verb}"
        );
    }
}

fn a_volume_of_a_restore_has_a_form_of_its_own(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    for verb in ["restore", "plan"] {
        says(&yendor.call(&[verb, "x", "--volume", "data=/tmp:ro"]).exits(2), "a volume of an image is NAME=HOSTPATH");
    }
    says(&yendor.call(&["run", "--volume", "data=/tmp:ro", "--", "true"]).exits(2), "a volume is NAME=HOSTPATH:PATH");
}

fn keys_that_are_not_there_are_no_misuse(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = asleep(&yendor, "keys");
    yendor.call(&["checkpoint", &name, "--leave-running"]).exits(0);
    yendor.call(&["checkpoint", &name, "--leave-running", "--sign", NONE]).exits(1);
    yendor.call(&["restore", &name, "-d", "--identity", NONE]).exits(1);
    says(&yendor.call(&["restore", &name, "-d", "--verify", NONE]).exits(1), "no such file");
    yendor.call(&["restore", &name, "-d", "--verify", "/etc/passwd"]).exits(2);
}
