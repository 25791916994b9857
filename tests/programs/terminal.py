"""Terminals of tmux: bash with a job in the background, vim with an edit unsaved, NetHack in mid game, a pager in raw mode."""
import re

SOCKET = "/tmp/tmux.socket"
os.environ.update(HOME="/tmp", LANG="C.UTF-8", TERM="xterm", HISTFILE="/dev/null", SHELL="/bin/bash")
os.environ.pop("TMUX", None)
BASH = "bash --norc --noprofile"


def tmux(*words):
    done = subprocess.run(["tmux", "-S", SOCKET, "-f", "/dev/null", *words], capture_output=True, text=True)
    if done.returncode != 0:
        fail("tmux %s: %s" % (" ".join(words), done.stderr))
    return done.stdout


def window(name, command):
    tmux("new-window", "-d", "-n", name, command)


def keys(name, *words):
    tmux("send-keys", "-t", ":" + name, *words)


def screen(name):
    """All that a person would see: characters, colours, and where the cursor is."""
    place = tmux("display-message", "-p", "-t", ":" + name, "#{cursor_x},#{cursor_y},#{alternate_on},#{pane_width}x#{pane_height}")
    return tmux("capture-pane", "-p", "-e", "-t", ":" + name) + place


def shows(name, text, limit=30):
    until(lambda: text in screen(name), lambda: "%r on the screen of %s:\n%s" % (text, name, screen(name)), limit)


server = start("tmux", "-S", SOCKET, "-f", "/dev/null", "-D")
until(lambda: os.path.exists(SOCKET), "tmux's socket")
tmux("new-session", "-d", "-x", "80", "-y", "24", "-n", "shell", BASH)
tmux("set-option", "-g", "remain-on-exit", "on")
keys("shell", "PS1='$ '; set -o notify; clear", "Enter")
keys("shell", "sleep 1000 & cat | tr a-z A-Z > /tmp/upper & stty -echo; stty echo; echo job $((40 + 2))", "Enter")
shows("shell", "job 42")
keys("shell", "echo half a li")
shows("shell", "half a li")
window("vim", "vim -n -u DEFAULTS -i NONE /tmp/letter")
shows("vim", "~/letter")
keys("vim", "iDear Rodney,", "Enter", "this was not saved", "Escape", "yyp0")
shows("vim", "this was not saved\nthis was not saved")
keys("vim", "ix")
shows("vim", "-- INSERT --")
window("less", "seq 1 1000 | less -i")
shows("less", "\n20\n")
keys("less", "Space")
shows("less", "\n40\n")
GAME, PLACE = "/usr/lib/games/nethack", "/tmp/nethack"
# A playground of its own: that of the system belongs to a group which the container may not have.
os.makedirs(PLACE + "/save")
for name in ("nhdat", "symbols", "license"):
    os.symlink(os.path.join(GAME, name), os.path.join(PLACE, name))
for name in ("perm", "record", "logfile", "xlogfile"):
    write(os.path.join(PLACE, name), "")
write("/tmp/.nethackrc", "OPTIONS=role:Valkyrie,race:human,gender:female,align:neutral,name:Rodney,!legacy,!splash_screen,!autopickup,"
      "!news,time,pettype:none,windowtype:tty,playmode:explore\n")
window("nethack", "NETHACKOPTIONS=@/tmp/.nethackrc %s/nethack-console -d %s" % (GAME, PLACE))
until(lambda: "Rodney" in screen("nethack") or "Hello" in screen("nethack"), "the dungeon")
for _ in range(3):
    if "--More--" in screen("nethack"):
        keys("nethack", "Enter")
    time.sleep(0.1)

def turn():
    return int((re.search(r"T:(\d+)", screen("nethack")) or [0, 0])[1])

def plays_on(*words):
    """The next keys, unless the game wants something else first."""
    shown = screen("nethack")
    if "--More--" in shown:
        keys("nethack", "Enter")
    elif "Die?" in shown:
        keys("nethack", "n")  # explorers need not
    else:
        keys("nethack", *words)
    time.sleep(0.2)

# Whoever comes along ends a search early.
def searches_until(when):
    if turn() < when:
        plays_on("5s")
    return turn() >= when

until(lambda: searches_until(8), lambda: "some turns:\n" + screen("nethack"))
time.sleep(0.5)
if "--More--" in screen("nethack"):
    keys("nethack", "Enter")
keys("nethack", "i")  # an inventory on top of the map
shows("nethack", "(end)")
TURN = re.search(r"T:(\d+)", screen("nethack"))
windows = tmux("list-windows", "-F", "#{window_name}").split()
before = {name: screen(name) for name in windows}
pids = tmux("list-panes", "-s", "-F", "#{pane_pid} #{pane_tty} #{pane_dead}")
say("ready")
while not asked.wait(0.2):
    expect(screen("less"), before["less"], "a screen that nobody has touched")
for name in windows:
    expect(screen(name), before[name], "the screen of " + name)
expect(tmux("list-panes", "-s", "-F", "#{pane_pid} #{pane_tty} #{pane_dead}"), pids, "the panes")

keys("shell", "ne; jobs", "Enter")  # the half of a line is finished
shows("shell", "\nhalf a line\n")
shows("shell", "sleep 1000 &")
shows("shell", "Stopped")  # cat in the background that reads its terminal
keys("shell", "fg %2", "Enter")
shows("shell", "\ncat | tr")
keys("shell", "shout", "Enter", "C-d")
until(lambda: os.path.exists("/tmp/upper") and open("/tmp/upper").read() == "SHOUT\n", "the job in the foreground")
keys("shell", "kill %1; wait %1; echo code $?", "Enter")
shows("shell", "code 143")
tmux("resize-window", "-t", ":shell", "-x", "100", "-y", "30")
keys("shell", "clear; stty size", "Enter")
shows("shell", "30 100")

keys("vim", "Escape", "u", ":wq", "Enter")
until(lambda: os.path.exists("/tmp/letter") and open("/tmp/letter").read(), "vim's file")
expect(open("/tmp/letter").read(), "Dear Rodney,\nthis was not saved\nthis was not saved\n", "what vim has written")
keys("less", "/777", "Enter")
shows("less", "799")
keys("less", "q")
if "nethack" in windows:
    keys("nethack", "Escape")
    until(lambda: searches_until(int(TURN[1]) + 1), lambda: "a turn after %r" % screen("nethack"))

    def saved():
        plays_on("S", "y")
        return os.listdir(PLACE + "/save")

    until(saved, lambda: "a saved game: %r" % screen("nethack"))
    # Not what tmux says: it now and then overlooks the end of a child, restored or not.
    until(lambda: any(end in screen("nethack") for end in ("Be seeing you", "Pane is dead (status 0")), "the end of the game")
tmux("kill-server")
end(server)
say("ok")
