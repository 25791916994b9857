//! Development aid: run, checkpoint, restore without the command line.
#![allow(missing_docs)]
use yendor_engine::checkpoint::{Options, Target, checkpoint};
use yendor_engine::front::{Launch, Source, Spec, Stdio, keeper_main, launch};
use yendor_engine::request::{Net, Request, Root, Userns};
use yendor_engine::state::{self, Places};
use yendor_image::Bytes;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args[0] == "keeper" {
        keeper_main()
    }
    let places = Places::from_environment();
    let request = Request {
        name: args[1].clone(),
        root: Root::Layered,
        volumes: vec![],
        net: Net::Private,
        userns: if std::env::var("HOSTNS").is_ok() { Userns::Host } else { Userns::Auto },
        hostname: None,
        memory: None,
        pids: None,
        cap_drop: vec![],
        policy: yendor_engine::request::Policy::default(),
        layout: None,
    };
    let fail = |e: yendor_engine::Error| -> ! {
        eprintln!("{e}");
        std::process::exit(e.exit_code().into())
    };
    let b = |s: &str| Bytes(s.as_bytes().to_vec());
    let stdio = if std::env::var("LOG").is_ok() { Stdio::Log } else { Stdio::Inherit };
    match args[0].as_str() {
        "run" | "restore" => {
            let source = if args[0] == "run" {
                Source::Compose(Spec {
                    command: args[2..].iter().map(|a| b(a)).collect(),
                    env: vec![b("PATH=/usr/bin:/bin:/usr/sbin")],
                    cwd: None,
                    user: None,
                    ..Spec::default()
                })
            } else {
                Source::Image(args[2].clone().into())
            };
            let s = launch(&Launch { request, source, stdio, places, image_ref: None, attended: true })
                .unwrap_or_else(|e| fail(e));
            eprintln!("main {} init {} {:?} {:?}", s.main, s.init, s.notes, s.timings);
            if stdio == Stdio::Log {
                return;
            }
            println!("status {:?}", s.wait().map_err(|e| e.to_string()));
        }
        "checkpoint" => {
            let dir = places.container(&args[1]);
            let st = state::read(&dir).unwrap();
            let o = Options { leave_running: std::env::var("LEAVE").is_ok(), ..Options::default() };
            let s = checkpoint(&Target::Container(st, dir), args[2].as_ref(), &o).unwrap_or_else(|e| fail(e));
            eprintln!("{s:?}");
        }
        _ => unreachable!(),
    }
}
