"""nginx with two workers serves a file to clients that ask again and again, through a unix socket and through TCP."""
BODY = bytes(range(256)) * 400
os.mkdir("/tmp/www")
with open("/tmp/www/file", "wb") as f:
    f.write(BODY)
write("/tmp/nginx.conf", """
daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log /tmp/error.log;
events { worker_connections 64; }
http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
 scgi_temp_path /tmp/s; server { listen unix:/tmp/www.sock; listen 127.0.0.1:8080; root /tmp/www; } }
""")
server = start("nginx", "-c", "/tmp/nginx.conf", "-e", "/tmp/error.log")


def connect(place):
    def attempt():
        s = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
        try:
            s.connect(place)
            return s.makefile("rwb")
        except OSError:
            return None
    return until(attempt, "a connection to %r" % (place,))


def fetch(client):
    client.write(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    client.flush()
    status = client.readline()
    if b"200" not in status:
        fail("the answer is %r" % status)
    length = 0
    while (line := client.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if client.read(length) != BODY:
        fail("the file is not what it was")


PLACES = ["/tmp/www.sock", ("127.0.0.1", 8080)]
served = [0, 0]


def client(i):
    """nginx closes a connection after a thousand requests."""
    while not asked.is_set():
        connection = connect(PLACES[i])
        for _ in range(900):
            fetch(connection)
            served[i] += 1
            if asked.is_set():
                break


clients = [threading.Thread(target=client, args=(i,)) for i in (0, 1)]
for thread in clients:
    thread.start()
until(lambda: all(served), "a file for both clients")
say("ready")
asked.wait()
for thread in clients:
    thread.join()
for place in PLACES:
    fetch(connect(place))
server.terminate()
end(server)
say("ok")
