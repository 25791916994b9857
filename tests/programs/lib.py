"""What every script of this folder begins with: it says "ready", works until SIGUSR1 asks it, and says "ok" or "FAIL: ..."."""
import os, signal, socket, subprocess, sys, threading, time

TMP = os.environ.get("TMPDIR", "/tmp")
asked = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: asked.set())


def say(word):
    print(word, flush=True)


def tasks():
    """Who is there, and what everybody waits for."""
    lines = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = dict(line.split(":", 1) for line in open("/proc/%s/status" % pid))
            waits = open("/proc/%s/wchan" % pid).read()
        except OSError:
            continue
        lines.append(" ".join([pid, waits] + [status[k].strip() for k in ("Name", "State", "PPid", "TracerPid", "SigBlk", "ShdPnd")]))
    return "\n".join(sorted(lines))


def fail(what):
    say("FAIL: %s\n%s" % (what, tasks()))
    os._exit(1)


def until(holds, what, limit=60):
    end = time.monotonic() + limit
    while not (got := holds()):
        if time.monotonic() > end:
            fail("%s: not in %d s" % (what() if callable(what) else what, limit))
        time.sleep(0.02)
    return got


def expect(got, wanted, what):
    if got != wanted:
        fail("%s: %r instead of %r" % (what, got, wanted))


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def start(*command, **options):
    """A program of ours; what it says goes to this script's log unless it is asked for."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(command, **options)


def talk(*command, **options):
    """A program that is talked to line by line."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, **options)


def tell(program, line):
    program.stdin.write(line + "\n")
    program.stdin.flush()


def hear(program, what):
    line = program.stdout.readline()
    if not line:
        fail(what + ": ended with %r" % program.wait())
    return line.rstrip("\n")


def end(program, code=0, limit=30):
    try:
        expect(program.wait(limit), code, "exit code of %s" % program.args[0])
    except subprocess.TimeoutExpired:
        fail("%s does not end" % program.args[0])
