//! Whose children tasks are: where a restore cannot make them those of the thread that had them.

use yendor_tests::{Flavour, PATIENCE, Yendor};

/// Another thread than the first bears the leader of a session; a grandchild of that is adopted, by the first.
const PROGRAM: &str = r"
import ctypes, os, threading, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
top = os.getpid()
def wait():
    while True: time.sleep(0.05)
def bear():
    if os.fork(): wait()
    os.setsid()
    if os.fork():
        os.wait()
        wait()
    if os.fork() == 0:
        while os.getppid() != top: time.sleep(0.01)
        print('ready', flush=True)
        wait()
    os._exit(0)
threading.Thread(target=bear).start()
wait()
";

/// That is said where what is lost is, and by the restore.
fn of_another_thread_are_told(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, restored, image) = (yendor.fresh("parents"), yendor.fresh("restored"), yendor.path("image"));
    yendor.run_detached(&name, &["python3", "-c", PROGRAM]);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let path = image.to_str().expect("UTF-8");
    let taken = yendor.call(&["checkpoint", &name, "-o", path, "--json"]).exits(0).json();
    let told = |said: &str| said.matches("which thread of its parent").count();
    assert_eq!(told(&taken["lost"].to_string()), 1, "{taken}");
    let records = yendor.call(&["inspect", path, "--json"]).exits(0).json();
    let borne = records["records"]["processes"].as_array().expect("processes").iter();
    assert_eq!(borne.filter(|process| !process["parent_thread"].is_null()).count(), 1, "{records}");
    let said = yendor.restore_with(&image, &restored, &[]).exits(0);
    assert_eq!(told(&said.stderr), 1, "{}", said.stderr);
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

yendor_tests::flavours! { of_another_thread_are_told }
