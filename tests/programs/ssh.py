"""A session of ssh into sshd over TCP, with a shell on a terminal at its far end and a forwarded port."""
HOME = TMP + "/ssh"
os.mkdir(HOME, 0o700)
for name in ("host", "user"):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "%s/%s" % (HOME, name)], check=True)
os.rename(HOME + "/user.pub", HOME + "/authorized_keys")
os.makedirs("/run/sshd", exist_ok=True)
# A rootless container cannot read the shadow file, and sshd takes root's account for locked then.
write("/etc/shadow.new", "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
os.rename("/etc/shadow.new", "/etc/shadow")
write(HOME + "/sshd_config", """
Port 2222
ListenAddress 127.0.0.1
HostKey {0}/host
AuthorizedKeysFile {0}/authorized_keys
PidFile {0}/pid
StrictModes no
PermitRootLogin yes
UsePAM no
PrintMotd no
PrintLastLog no
X11Forwarding no
""".format(HOME))
server = start("/usr/sbin/sshd", "-D", "-e", "-f", HOME + "/sshd_config", stderr=open(HOME + "/log", "w"))
OPTIONS = ["-F", "none", "-i", HOME + "/user", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
           "-o", "ServerAliveInterval=5"]


def reaches(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


until(lambda: reaches(2222), "sshd's port")
session = talk("ssh", *OPTIONS, "-tt", "-p", "2222", "-L", "127.0.0.1:2223:127.0.0.1:2222", "root@127.0.0.1", "bash --norc --noprofile",
               env=dict(os.environ, TERM="dumb"))


def run(command):
    """Its output, between two marks that the echo of the command does not hold."""
    tell(session, "echo B''EGIN; %s; echo E''ND" % command)
    while hear(session, "ssh").strip() != "BEGIN":
        pass
    lines = []
    while (line := hear(session, "ssh").strip()) != "END":
        lines.append(line)
    return [line for line in lines if "E''ND" not in line]


run("PS1=")
run("n=41; sleep 1000 & true")
tty, shell = run("tty")[-1], run("echo $$")[-1]
if not tty.startswith("/dev/pts/"):
    fail("the session has no terminal: " + tty)
until(lambda: reaches(2223), "the forwarded port")


def half_closed():
    """Connections whose other end has gone already (CLOSE_WAIT): they cannot be had without it."""
    return [line for line in open("/proc/net/tcp") if line.split()[3] == "08"]


until(lambda: not half_closed(), "the end of that connection")
say("ready")
n = 0
while not asked.is_set():
    n += 1
    expect(run("echo %d" % n)[-1], str(n), "a line through the session")
expect(run("echo $((n + 1))")[-1], "42", "a variable of the shell")
expect([run("tty")[-1], run("echo $$")[-1]], [tty, shell], "terminal and shell")
expect(run("kill %1; wait %1 2>/dev/null; echo $?")[-1], "143", "the job in the background")
with socket.create_connection(("127.0.0.1", 2223), 5) as forwarded:
    greeting = forwarded.recv(4)
expect(greeting, b"SSH-", "what answers behind the forwarded port")
big = run("seq 1 20000")
expect([line for line in big if line.isdigit()], [str(i) for i in range(1, 20001)], "many lines")
tell(session, "exit 7")
end(session, 7)
expect(subprocess.run(["ssh", *OPTIONS, "-p", "2222", "root@127.0.0.1", "echo anew"], capture_output=True, text=True).stdout, "anew\n", "a new session")
server.terminate()
server.wait(10)
say("ok")
