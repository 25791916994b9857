"""PostgreSQL with a transaction open in psql, and a second client that commits all the time."""
import glob

BIN = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
DATA, PLACE, OWNER = "/tmp/pg", "/tmp/pg.sockets", 1000  # it refuses to run as root
WHO = dict(user=OWNER, group=OWNER, extra_groups=[])
for directory in (DATA, PLACE):
    os.mkdir(directory, 0o700)
    os.chown(directory, OWNER, OWNER)
subprocess.run([BIN + "/initdb", "-D", DATA, "-U", "me", "-A", "trust", "--no-sync", "--no-instructions"],
               check=True, stdout=subprocess.DEVNULL, cwd="/tmp", **WHO)
server = start(BIN + "/postgres", "-D", DATA, "-k", PLACE, "-c", "listen_addresses=127.0.0.1", cwd="/tmp", **WHO)
CALL = [BIN + "/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "me", "-d", "postgres"]


def psql(host=PLACE):
    return talk(*CALL, "-h", host, cwd="/tmp", env=dict(os.environ, HOME="/tmp"), **WHO)


def query(client, text):
    tell(client, text + ";")
    tell(client, "\\echo END")
    lines = []
    while (line := hear(client, "psql")) != "END":
        lines.append(line)
    return "\n".join(lines)


until(lambda: subprocess.run([BIN + "/pg_isready", "-q", "-h", PLACE]).returncode == 0, "the server's start")
teller, other = psql(), psql("127.0.0.1")
query(teller, "CREATE TABLE account (id int PRIMARY KEY, amount int); CREATE TABLE tick (n int)")
query(teller, "INSERT INTO account SELECT n, 100 FROM generate_series(1, 10000) n")
query(teller, "BEGIN")
query(teller, "UPDATE account SET amount = amount - 30 WHERE id = 1")
backend = query(teller, "SELECT pg_backend_pid()")
query(teller, "DECLARE c CURSOR FOR SELECT id FROM account ORDER BY id")
expect(query(teller, "FETCH 3 FROM c"), "1\n2\n3", "the cursor")
say("ready")
n = 0
while not asked.is_set():
    n += 1
    query(other, "INSERT INTO tick VALUES (%d)" % n)
expect(query(other, "SELECT count(*), max(n) FROM tick"), "%d|%d" % (n, n), "ticks")
expect(query(other, "SELECT amount FROM account WHERE id = 1"), "100", "seen from outside the transaction")
expect(query(other, "SELECT pg_try_advisory_lock(7)"), "t", "an advisory lock")
expect(query(teller, "SELECT pg_backend_pid()"), backend, "the backend")
expect(query(teller, "FETCH 2 FROM c"), "4\n5", "the cursor afterwards")
query(teller, "UPDATE account SET amount = amount + 30 WHERE id = 2")
query(teller, "COMMIT")
fresh = psql()
expect(query(fresh, "SELECT id, amount FROM account WHERE amount <> 100 ORDER BY id"), "1|70\n2|130", "committed")
for client in (teller, other, fresh):
    tell(client, "\\q")
    end(client)
server.send_signal(signal.SIGINT)
end(server)
say("ok")
