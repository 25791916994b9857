#!/usr/bin/python3
"""nginx serves a file to a client that asks again and again."""
import os, signal, socket, subprocess, sys, time

os.makedirs("/tmp/www", exist_ok=True)
body = bytes(range(256)) * 400
open("/tmp/www/file", "wb").write(body)
open("/tmp/nginx.conf", "w").write("""
daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log /tmp/error.log;
events { worker_connections 64; }
http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
 scgi_temp_path /tmp/s; server { listen unix:/tmp/www.sock; root /tmp/www; } }
""")
server = subprocess.Popen(["nginx", "-c", "/tmp/nginx.conf", "-e", "/tmp/error.log"], stdin=subprocess.DEVNULL)


def connect():
    for _ in range(200):
        try:
            s = socket.socket(socket.AF_UNIX)
            s.connect("/tmp/www.sock")
            return s.makefile("rwb")
        except OSError:
            time.sleep(0.05)
    sys.exit("nginx does not answer")


def fetch(client):
    client.write(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    client.flush()
    status = client.readline()
    length = 0
    while (line := client.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if b"200" not in status or client.read(length) != body:
        sys.exit("FAIL: a wrong answer: %r" % status)


asked = False


def go(*_):
    global asked
    asked = True


signal.signal(signal.SIGUSR1, go)
client = connect()
fetch(client)
print("ready", flush=True)
served = 0
while not asked:
    fetch(client)
    served += 1
    if served % 90 == 0:
        client = connect()
fetch(connect())
server.terminate()
server.wait(10)
print("ok", flush=True)
