#!/usr/bin/python3
"""Redis with a million keys and a client that counts: started by this, asked by SIGUSR1."""
import os, signal, socket, subprocess, sys, time

KEYS = int(sys.argv[1])
PLACE = "/tmp/redis.sock"
server = subprocess.Popen(
    ["redis-server", "--port", "0", "--unixsocket", PLACE, "--save", "", "--dir", "/tmp", "--daemonize", "no",
     "--enable-debug-command", "yes"],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def connect():
    for _ in range(200):
        try:
            s = socket.socket(socket.AF_UNIX)
            s.connect(PLACE)
            return s.makefile("rwb")
        except OSError:
            time.sleep(0.05)
    sys.exit("redis does not answer")


def ask(client, *words):
    parts = [str(w).encode() for w in words]
    client.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
    client.flush()
    line = client.readline()
    if line[:1] == b"$":
        data = client.read(int(line[1:]) + 2)
        return data[:-2]
    if line[:1] == b"-":
        sys.exit("redis says %r" % line)
    return line[1:].strip()


client = connect()
ask(client, "DEBUG", "POPULATE", KEYS, "key", 16) if KEYS else None
ask(client, "SET", "counter", 0)
asked = False


def go(*_):
    global asked
    asked = True


signal.signal(signal.SIGUSR1, go)
print("ready", flush=True)
n = 0
while not asked:
    n += 1
    got = int(ask(client, "INCR", "counter"))
    if got != n:
        sys.exit("FAIL: counter is %d instead of %d" % (got, n))
size = int(ask(client, "DBSIZE"))
if size != KEYS + 1:
    sys.exit("FAIL: %d keys instead of %d" % (size, KEYS + 1))
for i in range(0, KEYS, max(1, KEYS // 997)):
    value = ask(client, "GET", "key:%d" % i)
    if not value.startswith(b"value:%d" % i):
        sys.exit("FAIL: key %d holds %r" % (i, value))
second = connect()
if int(ask(second, "GET", "counter")) != n:
    sys.exit("FAIL: a second client sees another counter")
server.terminate()
server.wait(10)
print("ok", flush=True)
