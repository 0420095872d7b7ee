"""Kubernetes and Nomad: the files of docs/supervisor.md, as far as they can be checked without a cluster."""
import http.client
import json
import shlex
import subprocess
from urllib.parse import urlsplit

import pytest

from harness import until
from lab import lab, pypi  # noqa: F401
from page import block, commands, fill

pytestmark = pytest.mark.once
PLACES = dict(CHECKOUT="/srv/hermes-webui", PORT="8787", USER="hermes", STATE="/var/lib/hermes-webui")
READ_YAML = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"
READ_HCL = "import hcl2, json, sys; print(json.dumps(hcl2.load(open(sys.argv[1]))))"


def run(*command):
    return subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


def plain(value):
    """What python-hcl2 read, without the list that it puts around a block, the quotes around a
    word, and its own marks; its versions differ in these."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        items = [plain(item) for item in value]
        return items[0] if len(items) == 1 and isinstance(items[0], dict) else items
    return value.strip('"') if isinstance(value, str) else value


def status(address, port, path):
    """What a request comes back with that names this address, as a pod is asked by its own."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def manifest(tmp_path):
    """The Deployment of the page as a file."""
    path = tmp_path / "deployment.yaml"
    path.write_text(fill(block("deployment.yaml"), **PLACES))
    return path


def validate(path):
    return run(pypi("kubernetes-validate") / "kubernetes-validate", "--strict", path)


def test_the_deployment_is_valid_for_kubernetes(manifest):
    done = validate(manifest)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("right, wrong", [
    ("containerPort: 8787", "containerPort: many"), ("livenessProbe", "livingProbe"),
    ("image: hermes", "imag: hermes")])
def test_the_validator_tells_a_wrong_deployment(manifest, right, wrong):
    text = manifest.read_text()
    assert right in text
    manifest.write_text(text.replace(right, wrong))
    assert validate(manifest).returncode != 0


def test_its_three_probes_and_its_command_suit_the_server(lab, manifest):
    """The container's command and environment are started, and each probe is asked as a kubelet does."""
    manifest.write_text(fill(block("deployment.yaml"), **lab.places()))
    done = run(pypi("kubernetes-validate") / "python", "-c", READ_YAML, manifest)
    container, = json.loads(done.stdout)["spec"]["template"]["spec"]["containers"]
    environ = {row["name"]: row["value"] for row in container["env"]}
    assert environ["HERMES_WEBUI_PORT"] == str(container["ports"][0]["containerPort"]) == str(lab.port)
    environ["HERMES_WEBUI_STATE_DIR"] = str(lab.state)
    lab.tracked = None
    lab.spawn("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
              "cd {} && exec {}".format(shlex.quote(str(lab.repo)), shlex.join(container["command"])),
              env=environ)
    lab.place = "."     # its working folder
    until(lab.answers, "the server answers")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == container["ports"][0]["name"]
        assert status("127.0.0.2", lab.port, asked["path"]) == 200, probe
    assert urlsplit(container["readinessProbe"]["httpGet"]["path"]).query == "deep=1"


@pytest.fixture
def job(tmp_path):
    """The Nomad job of the page, as its grammar reads it."""
    path = tmp_path / "hermes-webui.nomad"
    path.write_text(fill(block("hermes-webui.nomad"), **PLACES))
    done = run(pypi("python-hcl2") / "python", "-c", READ_HCL, path)
    assert done.returncode == 0, done.stdout
    return plain(json.loads(done.stdout))["job"]["hermes-webui"]["group"]["web"]


def test_the_nomad_job_runs_the_launcher_in_the_foreground_and_asks_its_health(job):
    task = job["task"]["server"]
    assert task["config"] == {"command": "/bin/bash", "args": [
        PLACES["CHECKOUT"] + "/start.sh", PLACES["PORT"], "--foreground"]}
    assert task["env"] == {"HERMES_WEBUI_HOST": "${NOMAD_IP_http}", "HERMES_WEBUI_STATE_DIR": PLACES["STATE"]}
    assert str(job["network"]["port"]["http"]["static"]) == PLACES["PORT"]
    check = task["service"]["check"]
    assert (check["type"], check["path"]) == ("http", "/health") and check["check_restart"]["limit"] == 3
    assert job["restart"]["mode"] == "fail" and task["kill_signal"] == "SIGTERM"


def test_the_nomad_task_starts_as_it_stands(lab, tmp_path):
    path = tmp_path / "hermes-webui.nomad"
    path.write_text(fill(block("hermes-webui.nomad"), **lab.places()))
    done = run(pypi("python-hcl2") / "python", "-c", READ_HCL, path)
    task = plain(json.loads(done.stdout))["job"]["hermes-webui"]["group"]["web"]["task"]["server"]
    environ = {name: value.replace("${NOMAD_IP_http}", "127.0.0.1") for name, value in task["env"].items()}
    lab.spawn(task["config"]["command"], *task["config"]["args"], env=environ)
    until(lab.answers, "the server answers")
    assert lab.status_inside()["mode"] == "foreground"


@pytest.mark.parametrize("name, program", [
    (engine + step, program) for engine, program in (("kubernetes", "kubectl"), ("nomad", "nomad"))
    for step in ("-install", "-reload", "-logs", "-stop")])
def test_a_command_names_the_object_of_the_file(name, program):
    """Without a cluster there is nothing to run them on; what they name has to exist."""
    line, = commands(name)
    words = shlex.split(line)
    assert words[0] == program and any("hermes-webui" in word or word == "deployment.yaml" for word in words)
