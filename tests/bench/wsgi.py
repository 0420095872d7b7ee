"""The same answer as tiny.py, for gunicorn."""
import os

if "TINY_DIES" in os.environ:
    raise RuntimeError("told to die")


def app(environ, start_response):
    body = b'{"status": "ok"}'
    start_response("200 OK", [("Content-Type", "application/json"), ("Pid", str(os.getpid())),
                              ("Content-Length", str(len(body)))])
    return [body]
