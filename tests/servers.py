"""Source texts of small servers: each is a server.py that behaves in one particular way."""

PRELUDE = r'''
import json, os, socket, sys, time

here = os.path.dirname(os.path.abspath(__file__))
host, port = os.environ["HERMES_WEBUI_HOST"], int(os.environ["HERMES_WEBUI_PORT"])

def note(**more):
    """Leave a line about this start for the test."""
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            pass
    line = dict(pid=os.getpid(), ppid=os.getppid(), sid=os.getsid(0), pgid=os.getpgid(0),
                cwd=os.getcwd(), argv=sys.argv, python=sys.executable, environ=dict(os.environ),
                fds=fds, **more)
    with open(os.path.join(here, "starts"), "ab", 0) as file:
        file.write(json.dumps(line).encode() + b"\n")

def listen():
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=64)

def http(body, status="200 OK", headers=b""):
    head = "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n" % (status, len(body))
    return head.encode() + headers + b"\r\n" + body

def answer(listener, reply):
    """Send each caller the bytes of reply(path)."""
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                words = connection.recv(65536).split()
                for piece in reply(words[1].decode() if len(words) > 1 else ""):
                    connection.sendall(piece)
            except OSError:
                pass

def serve(listener, *pieces):
    answer(listener, lambda path: pieces)

OK = http(b'{"status": "ok"}')
'''


def small(*lines):
    """A server of these lines, on top of what all small servers have."""
    return PRELUDE + "\n" + "\n".join(lines) + "\n"


def answering(*pieces):
    """A server that sends every caller these expressions."""
    return small("note()", "serve(listen(), {})".format(", ".join(pieces)))


OK = answering("OK")
SILENT = small("note()", "time.sleep(3600)")
DEAF = small("import signal", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "note()",
             "serve(listen(), OK)")


def slow(seconds, *lines):
    """A server that takes its time before it listens."""
    return small("note()", *lines, "time.sleep({})".format(seconds), "serve(listen(), OK)")


# It listens once there is a file `go` beside it.
WAITING = small("note()", "while not os.path.exists(os.path.join(here, 'go')):", "    time.sleep(0.01)",
                "serve(listen(), OK)")

FORKING = small(
    "listener = listen()",
    "for _ in range(2):",
    "    if not os.fork():",
    "        serve(listener, OK)",
    "note()",
    "while True:",
    "    os.wait()")

# The process that was started ends; the one it leaves behind is the server.
ENDING_ITS_PARENT = small(
    "if os.fork():",
    "    os._exit(0)",
    "time.sleep(0.3)",
    "note()",
    "serve(listen(), OK)")

# As `uv run` does it: the process that was started waits for the one that listens.
BEHIND_A_WRAPPER = small(
    "import subprocess",
    "if len(sys.argv) == 1:",
    "    sys.exit(subprocess.call([sys.executable, __file__, 'inner']))",
    "note()",
    "serve(listen(), OK)")


def foreign(lines, address="127.0.0.1"):
    """A process of somebody else on the port in argv; the lines run with its `listener`."""
    return "\n".join([
        "import socket, sys, time",
        "listener = socket.create_server(({!r}, int(sys.argv[1])), backlog=64)".format(address),
        "print('ready', flush=True)",
        lines])


def foreign_http(reply):
    """Somebody else's web server."""
    return foreign("while True:\n"
                   "    connection, _ = listener.accept()\n"
                   "    connection.recv(65536); connection.sendall({!r}); connection.close()".format(reply))
