"""SQLite: a writer in a transaction that holds its locks, another that waits for them, and readers, with a journal and with a WAL."""
import sqlite3

WRITER = r"""
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for line in sys.stdin:
    try:
        rows = base.execute(line).fetchall()
        print(repr(rows), flush=True)
    except sqlite3.Error as error:
        print("error: %s" % error, flush=True)
"""


def client(path):
    return talk(sys.executable, "-c", WRITER, path)


def query(program, text):
    tell(program, text)
    return hear(program, "a client")


class Case:
    def __init__(self, mode):
        self.path = "%s/base-%s" % (TMP, mode)
        self.mode = mode
        self.holder, self.waiter, self.reader = (client(self.path) for _ in range(3))
        expect(query(self.holder, "PRAGMA journal_mode=" + mode), "[('%s',)]" % mode, "the mode")
        query(self.holder, "CREATE TABLE t (n INTEGER)")
        query(self.holder, "INSERT INTO t VALUES (1)")
        expect(query(self.holder, "BEGIN IMMEDIATE"), "[]", "a lock")
        query(self.holder, "INSERT INTO t VALUES (2)")
        tell(self.waiter, "INSERT INTO t VALUES (3)")  # goes on when the holder commits
        self.blocked()
        expect(query(self.reader, "BEGIN"), "[]", "a reader")
        expect(query(self.reader, "SELECT sum(n) FROM t"), "[(1,)]", "what the reader sees")

    def blocked(self):
        """Somebody else cannot write: the lock is there."""
        base = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            base.execute("BEGIN IMMEDIATE")
            fail("%s: the writer's lock is gone" % self.mode)
        except sqlite3.OperationalError as error:
            expect(str(error), "database is locked", "another writer")
        base.close()

    def check(self):
        self.blocked()
        query(self.holder, "INSERT INTO t VALUES (4)")
        expect(query(self.reader, "SELECT sum(n) FROM t"), "[(1,)]", "what the reader sees afterwards")
        expect(query(self.reader, "COMMIT"), "[]", "the reader's end")
        expect(query(self.holder, "COMMIT"), "[]", "the commit")
        expect(hear(self.waiter, "the waiter"), "[]", "who waited")
        expect(query(self.reader, "SELECT sum(n), count(*) FROM t"), "[(10, 4)]", "all rows")
        expect(query(self.reader, "PRAGMA integrity_check"), "[('ok',)]", "the file")
        for program in (self.holder, self.waiter, self.reader):
            program.stdin.close()
            end(program)


cases = [Case("delete"), Case("wal")]
say("ready")
asked.wait()
for case in cases:
    case.check()
say("ok")
