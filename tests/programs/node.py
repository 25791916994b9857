"""Node.js: intervals, timeouts, promises, worker threads that share memory, a child process, and an HTTP server."""
write("/tmp/program.js", r"""
const { Worker, isMainThread, workerData } = require('worker_threads');
const { spawn } = require('child_process');
const http = require('http');
if (!isMainThread) {
  const cells = new Int32Array(workerData.cells);
  setInterval(() => Atomics.add(cells, workerData.index, 1), 2);
} else {
  const cells = new SharedArrayBuffer(4 * 4);
  const workers = [0, 1, 2, 3].map(index => new Worker(__filename, { workerData: { cells, index } }));
  let fires = 0, answers = 0, lost = 0, requests = 0;
  setInterval(() => { fires++; }, 3);
  const cat = spawn('cat');
  let sent = 0;
  const next = () => cat.stdin.write(`line ${++sent}\n`);
  cat.stdout.on('data', data => { if (String(data) !== `line ${sent}\n`) lost++; answers++; setTimeout(next, 1); });
  next();
  const agent = new http.Agent({ keepAlive: true });
  const server = http.createServer((_, reply) => reply.end('x'.repeat(100000)));
  const get = () => http.get({ port: server.address().port, host: '127.0.0.1', agent }, reply => {
    let length = 0;
    reply.on('data', d => { length += d.length; });
    reply.on('end', () => { if (length !== 100000) lost++; requests++; setTimeout(get, 2); });
  }).on('error', e => { console.log('FAIL: ' + e); process.exit(1); });
  server.listen(0, '127.0.0.1', get);
  const late = new Promise(done => setTimeout(() => done('late'), 2500));
  const state = () => [fires, answers, requests, ...new Int32Array(cells)];
  require('readline').createInterface({ input: process.stdin }).on('line', async line => {
    if (line === 'state') console.log(JSON.stringify({ lost, state: state() }));
    if (line === 'end') { console.log(await late); cat.kill(); process.exit(lost ? 1 : 0); }
  });
}
""")
import json

node = talk("node", "/tmp/program.js")


def state():
    tell(node, "state")
    got = json.loads(hear(node, "node"))
    expect(got["lost"], 0, "lines and answers lost")
    return got["state"]


until(lambda: all(state()), "every timer, worker and request")
say("ready")
last = state()
while not asked.wait(0.05):
    state()
now = state()
until(lambda: all(a < b for a, b in zip(now, state())), "every timer, worker and request goes on from %r" % now)
if any(a > b for a, b in zip(last, now)):
    fail("counters went back: %r, %r" % (last, now))
tell(node, "end")
expect(hear(node, "node"), "late", "a timeout that was pending")
end(node)
say("ok")
