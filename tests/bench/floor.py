"""The least a launcher can do: become tiny.py, or start it and wait until it says ok.

With --popen it starts it by subprocess.Popen, as a launcher does that closes descriptors, restores
signals and tells on every system why a program cannot be executed.
"""
import os
import sys

command = [sys.executable, os.path.join(os.path.dirname(os.path.realpath(__file__)), "tiny.py")]
if "--foreground" in sys.argv:
    os.execv(command[0], command)
import _socket  # noqa: E402 (the foreground does without)
import time  # noqa: E402

if "--popen" in sys.argv:
    import subprocess
    child = subprocess.Popen(command, start_new_session=True).pid
else:
    child = os.posix_spawn(command[0], command, os.environ, setsid=True)
while os.waitpid(child, os.WNOHANG) == (0, 0):
    stream = _socket.socket()
    try:
        stream.connect(("127.0.0.1", int(os.environ["PORT"])))
        stream.send(b"GET /health HTTP/1.0\r\n\r\n")
        if b'"ok"' in stream.recv(4096):
            os._exit(0)
    except OSError:
        time.sleep(0.001)
    stream.close()
sys.exit("floor: the server ended")
