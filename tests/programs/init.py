"""An init tree of s6 with ten services: supervised, one that dies all the time, one with a logger, dependents that talk by fifos."""
SERVICES = 10
ROOT = TMP + "/services"
for i in range(SERVICES):
    place = "%s/service-%d" % (ROOT, i)
    os.makedirs(place)
    work = "echo $$ > pid; n=0; while :; do n=$((n+1)); echo $n > count.new; mv count.new count; sleep 0.02; %sdone" % ("[ $n -lt 5 ] || exit 3; " if i == 0 else "")
    write(place + "/run", "#!/bin/sh\nexec 2>&1\ncd %s\ntrap 'exit 0' TERM\n%s\n" % (place, work))
    os.chmod(place + "/run", 0o755)
place = ROOT + "/service-1"
os.makedirs(place + "/log")
write(place + "/run", "#!/bin/sh\necho $$ > pid; n=0; while :; do n=$((n+1)); echo $n > count; echo line $n; sleep 0.02; done\n")
write(place + "/log/run", "#!/bin/sh\nexec s6-log n20 s1000000 %s/logged\n" % TMP)
for name in ("/run", "/log/run"):
    os.chmod(place + name, 0o755)
tree = start("s6-svscan", ROOT)


def word(i, name):
    try:
        return int(open("%s/service-%d/%s" % (ROOT, i, name)).read())
    except (OSError, ValueError):
        return 0


def stat(i):
    out = subprocess.run(["s6-svstat", "-u", "%s/service-%d" % (ROOT, i)], capture_output=True, text=True)
    return out.stdout.strip() == "true"


def counts():
    return [word(i, "count") for i in range(1, SERVICES)]


until(lambda: all(counts()) and word(0, "pid"), "every service")
pids = [word(i, "pid") for i in range(1, SERVICES)]
say("ready")
asked.wait()
now, dying = counts(), word(0, "pid")
until(lambda: all(a < b for a, b in zip(now, counts())), "every service goes on")
expect([word(i, "pid") for i in range(1, SERVICES)], pids, "the services' pids")
until(lambda: word(0, "pid") not in (0, dying), "a service that dies is started again")
os.kill(pids[4], signal.SIGKILL)
until(lambda: word(5, "pid") not in (0, pids[4]) and stat(5), "a service that was killed is started again")
subprocess.run(["s6-svc", "-wd", "-T", "5000", "-d", ROOT + "/service-7"], check=True)
expect(stat(7), False, "a service that was told to stop")
logged = []
for name in sorted(os.listdir(TMP + "/logged"), key=lambda n: (n == "current", n)):
    if name == "current" or name.startswith("@"):
        logged += [int(line.split()[1]) for line in open("%s/logged/%s" % (TMP, name))]
expect(logged, list(range(logged[0], logged[0] + len(logged))), "the logger's lines")
subprocess.run(["s6-svscanctl", "-t", ROOT], check=True)
end(tree)
say("ok")
