"""nginx before PHP-FPM, with clients that keep their connections: no request fails."""
import glob, http.client

FPM = sorted(glob.glob("/usr/sbin/php-fpm*"))[-1]
WWW = TMP + "/www"
os.mkdir(WWW)
write(WWW + "/index.php", "<?php header('X-Pid: ' . getmypid()); usleep(2000); echo str_repeat($_GET['n'] . ' ', 5000);\n")
who = "user = nobody\ngroup = nogroup\n" if os.getuid() == 0 else ""
write(TMP + "/fpm.conf", """[global]
error_log = {0}/fpm.log
daemonize = no
[www]
{1}listen = {0}/fpm.sock
listen.mode = 0666
pm = static
pm.max_children = 4
pm.max_requests = 200
""".format(TMP, who))
write(TMP + "/nginx.conf", """
daemon off; worker_processes 2; pid {0}/nginx.pid; error_log {0}/error.log;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u;
 scgi_temp_path {0}/s; server {{ listen 127.0.0.1:8080; root {0}/www; location / {{
 fastcgi_pass unix:{0}/fpm.sock; fastcgi_param SCRIPT_FILENAME {0}/www/index.php; fastcgi_param QUERY_STRING $query_string;
 fastcgi_param REQUEST_METHOD $request_method; }} }} }}
""".format(TMP))
fpm = start(FPM, "-F", "-y", TMP + "/fpm.conf", "-n")
until(lambda: os.path.exists(TMP + "/fpm.sock"), "PHP-FPM's socket")
server = start("nginx", "-c", TMP + "/nginx.conf", "-e", TMP + "/error.log")
CLIENTS = 20
served = [0] * CLIENTS


def ask(connection, n):
    connection.request("GET", "/?n=%d" % n)
    answer = connection.getresponse()
    expect(answer.status, 200, "an answer")
    expect(answer.read(), b"%d " % n * 5000, "its body")


def client(i):
    while not asked.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
        for n in range(900):
            ask(connection, 1000000 * i + n)
            served[i] += 1
            if asked.is_set():
                break
        connection.close()


def listens():
    try:
        socket.create_connection(("127.0.0.1", 8080), 1).close()
        return True
    except OSError:
        return False


until(listens, "nginx's port")


def guarded(i):
    try:
        client(i)
    except Exception as error:
        fail("client %d after %d answers: %r" % (i, served[i], error))


clients = [threading.Thread(target=guarded, args=(i,)) for i in range(CLIENTS)]
for thread in clients:
    thread.start()
until(lambda: all(served), "an answer for every client")
say("ready")
asked.wait()
now = list(served)
for thread in clients:
    thread.join()
ask(http.client.HTTPConnection("127.0.0.1", 8080, timeout=60), 5)
server.send_signal(signal.SIGQUIT)
end(server)
fpm.send_signal(signal.SIGQUIT)
end(fpm)
say("ok")
