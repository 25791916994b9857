"""A Java program with 50 threads: sleeping, computing, locking, waiting, and the garbage collector at work."""
write("/tmp/Program.java", r"""
import java.io.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
public class Program {
    static final int THREADS = 50;
    static final AtomicLongArray counts = new AtomicLongArray(THREADS);
    static volatile boolean stop;
    static long shared;
    static byte[][] heap = new byte[64][];
    public static void main(String[] arguments) throws Exception {
        SynchronousQueue<Long> queue = new SynchronousQueue<>(true);
        Thread[] threads = new Thread[THREADS];
        for (int i = 0; i < THREADS; i++) {
            final int me = i;
            threads[i] = new Thread(() -> { try { work(me, queue); } catch (InterruptedException e) { } });
            threads[i].start();
        }
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null && !line.equals("end");) {
            StringBuilder all = new StringBuilder();
            for (int i = 0; i < THREADS; i++) all.append(counts.get(i)).append(' ');
            System.out.println(all);
        }
        stop = true;
        // Some wait for others who have ended already.
        for (Thread t : threads) t.interrupt();
        for (Thread t : threads) { t.join(5000); if (t.isAlive()) System.exit(3); }
        long sum = 0;
        for (int i = 0; i < THREADS; i += 5) sum += counts.get(i);
        System.out.println(sum == shared ? "consistent" : sum + " is not " + shared);
    }
    static void work(int me, SynchronousQueue<Long> queue) throws InterruptedException {
        while (!stop) {
            switch (me % 5) {
                case 0: synchronized (counts) { shared++; counts.incrementAndGet(me); } Thread.sleep(1); break;
                case 1: heap[me] = new byte[10000 + me]; counts.incrementAndGet(me); Thread.sleep(1); break;
                case 2: queue.put(counts.incrementAndGet(me)); Thread.sleep(1); break;
                case 3: queue.take(); counts.incrementAndGet(me); break;
                default: double x = me; for (int k = 0; k < 10000; k++) x = Math.sin(x) + me;
                    if (x < me - 1) System.exit(4);
                    counts.incrementAndGet(me); Thread.sleep(2);
            }
        }
    }
}
""")
subprocess.run(["javac", "-d", "/tmp", "/tmp/Program.java"], check=True)
java = talk("java", "-Xmx64m", "-cp", "/tmp", "Program")


def counts():
    tell(java, "state")
    return [int(n) for n in hear(java, "java").split()]


until(lambda: all(counts()), "every thread")
say("ready")
while not asked.wait(0.05):
    counts()
now = counts()
until(lambda: all(a < b for a, b in zip(now, counts())), "every thread goes on from %r" % now)
tell(java, "end")
expect(hear(java, "java"), "consistent", "a counter under a lock")
end(java)
say("ok")
