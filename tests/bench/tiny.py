"""The same small server for everybody: says ok on 127.0.0.1:$PORT, and who it is."""
import os
import socket
import time


def note(event):
    """Leave the moment of an event for the bench; the clock is the whole machine's."""
    if "TINY_NOTES" in os.environ:
        with open(os.environ["TINY_NOTES"], "a") as file:
            file.write("%s %.6f\n" % (event, time.monotonic()))


def serve(listener):
    body = b'{"status": "ok"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    well = (head + b"Connection: close\r\nPid: %d\r\n\r\n%s") % (len(body), os.getpid(), body)
    unknown = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                asked = connection.recv(4096).split(None, 2)[1:2]
                connection.sendall(well if asked == [b"/health"] else unknown)
            except OSError:
                pass


if __name__ == "__main__":
    if "TINY_DIES" in os.environ:
        os.write(2, b"tiny: told to die\n")
        note("dies")
        os._exit(1)     # at once: what Python does at its end is not the launcher's time
    time.sleep(float(os.environ.get("TINY_DELAY", "0")))
    socket_that_listens = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
    note("listens")
    serve(socket_that_listens)
