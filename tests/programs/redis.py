"""Redis with many keys and a client that counts, which must never see a number twice or miss one."""
KEYS = int(sys.argv[1])
PLACE = TMP + "/redis.sock"
server = start("redis-server", "--port", "0", "--unixsocket", PLACE, "--save", "", "--dir", TMP, "--enable-debug-command", "yes",
               stdout=subprocess.DEVNULL)


def connect():
    def attempt():
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(PLACE)
            return s.makefile("rwb")
        except OSError:
            return None
    return until(attempt, "an answer of redis")


def ask(client, *words):
    parts = [str(w).encode() for w in words]
    client.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
    client.flush()
    line = client.readline()
    if line[:1] == b"$":
        return client.read(int(line[1:]) + 2)[:-2]
    if line[:1] in b"-":
        fail("redis says %r" % line)
    return line[1:].strip()


client = connect()
ask(client, "DEBUG", "POPULATE", KEYS, "key", 16)
ask(client, "SET", "counter", 0)
say("ready")
n = 0
while not asked.is_set():
    n += 1
    expect(int(ask(client, "INCR", "counter")), n, "the counter")
expect(int(ask(client, "DBSIZE")), KEYS + 1, "the number of keys")
for first in range(0, KEYS, 1000):
    last = min(first + 1000, KEYS)
    client.write(b"".join(b"GET key:%d\r\n" % i for i in range(first, last)))
    client.flush()
    for i in range(first, last):
        value = client.read(int(client.readline()[1:]) + 2).rstrip(b"\0\r\n")
        expect(value, (b"value:%d" % i)[:16], "key %d" % i)
expect(int(ask(connect(), "GET", "counter")), n, "the counter of another client")
server.terminate()
end(server)
say("ok")
