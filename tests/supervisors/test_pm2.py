"""PM2: with the ecosystem file of docs/supervisor.md."""
import json

import pytest

from harness import until
from lab import FLAGS, PERMANENT, lab, npm, prove_one_start, prove_revival, prove_tracking  # noqa: F401

pytestmark = pytest.mark.once


def prepare(lab):
    lab.on_path(npm("pm2"))
    lab.env["PM2_HOME"] = str(lab.folder / "pm2")


def install(lab, flag=True, **places):
    prepare(lab)
    lab.put("ecosystem.config.js", flag, **places)
    lab.tracked = lambda: tracked(lab)
    lab.follow("pm2-install")


def tracked(lab):
    return int(lab.ask("sh", "-c", 'cat "$PM2_HOME"/pids/hermes-webui-*.pid') or 0)


def state(lab):
    described = json.loads(lab.ask("pm2", "jlist"))
    return described[0]["pm2_env"]["status"]


@FLAGS
def test_pm2_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    prove_tracking(lab, proving, "PM2")


def test_pm2_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    prove_revival(lab, proving, "PM2")


@pytest.mark.parametrize("code", PERMANENT)
def test_pm2_does_not_start_again_what_cannot_start(lab, proving, code):
    with proving("PM2", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(code))
        until(lambda: state(lab) == "stopped", "it is stopped")
        prove_one_start(lab, "pm2-logs")


def test_pm2_is_detected_through_shells_and_runuser(lab, proving):
    with proving("PM2", "detected"):
        prepare(lab)
        shapes = lab.shapes()
        apps = [{"name": shape, "script": script, "interpreter": "none"}
                for shape, (_, script) in shapes.items()]
        lab.write_file("/etc/pm2/ecosystem.config.js", "module.exports = " + json.dumps({"apps": apps}))
        lab.call("pm2", "start", "/etc/pm2/ecosystem.config.js")
        lab.came_up(shapes)
