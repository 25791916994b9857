"""CPython with threads, asyncio and a subprocess that talks through pipes."""
import asyncio

counts = [0] * 8
stop = threading.Event()


def work(i):
    while not stop.is_set():
        counts[i] += 1
        time.sleep(0.001)


threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads:
    t.start()
cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def ticker(queue):
    n = 0
    while not asked.is_set():
        n += 1
        await queue.put(n)
        await asyncio.sleep(0.005)
    await queue.put(None)


async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    queue = asyncio.Queue()
    task = asyncio.create_task(ticker(queue))
    say("ready")
    last = 0
    while (n := await queue.get()) is not None:
        if n != last + 1:
            fail("tick %d after %d" % (n, last))
        last = n
        line = b"line %d\n" % n
        cat.stdin.write(line)
        cat.stdin.flush()
        if cat.stdout.readline() != line:
            fail("cat lost a line")
    await task


asyncio.run(main())
before = list(counts)
time.sleep(0.2)
if any(a >= b for a, b in zip(before, counts)):
    fail("a thread stands still: %r %r" % (before, counts))
stop.set()
for t in threads:
    t.join()
cat.stdin.close()
end(cat)
say("ok")
