"""What `deploy/` ships: linted, checked against the schemas of Kubernetes and KubeRay, and held to this
project's commands, keys and locks. The Slurm script runs against programs that stand in for Slurm's."""

import inspect
import os
import re
import shlex
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from alphadrive.cli import parse_arguments
from alphadrive.config import load_config
from alphadrive.doctor.software import lock_pins

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = Path(sysconfig.get_path("scripts"))
KUBERNETES = "1.37"
GPU_LOCK = lock_pins(ROOT / "requirements" / "gpu.lock")

COUNT = {"type": "integer", "minimum": 0}
TEMPLATE = {"type": "object", "required": ["spec"]}
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required, **properties):
    return {
        "type": "object", "additionalProperties": False, "required": required, "properties": properties
    }  # fmt: skip


HEAD_GROUP = closed(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=PARAMETERS,
    template=TEMPLATE,
)
WORKER_GROUP = closed(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string", "pattern": "^[a-z0-9-]+$"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=PARAMETERS,
    template=TEMPLATE,
)
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(["name"], name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
    spec=closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
            rayVersion={"type": "string"},
            authOptions=closed(["mode"], mode={"const": "token"}, secretName={"type": "string"}),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=closed([], idleTimeoutSeconds=COUNT),
            headGroupSpec=HEAD_GROUP,
            workerGroupSpecs={"type": "array", "items": WORKER_GROUP, "minItems": 1},
        ),
    ),
)
"""The fields that KubeRay documents for a RayJob, as far as they are used here."""


def manifests():
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    return claim, job


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }


def entrypoint(job):
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[0] == "alphadrive"
    args = parse_arguments(command[1:])
    return args, load_config(args.config, args.overrides)


def pod_of(name, group):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}


def lint(program, *arguments):
    done = subprocess.run([str(SCRIPTS / program), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def ray_start_options():
    from ray.scripts.scripts import start

    return {option.removeprefix("--") for parameter in start.params for option in parameter.opts}


def test_linters_find_nothing():
    lint("hadolint", DEPLOY / "Dockerfile")
    lint("shellcheck", DEPLOY / "slurm.sbatch")


def test_the_manifests_fit_the_schemas_of_kubernetes_and_kuberay():
    claim, job = manifests()
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    jsonschema.validate(job, RAY_JOB)
    for name, group in groups(job).items():
        kubernetes_validate.validate(pod_of(name, group), KUBERNETES, strict=True)


def test_a_slip_in_a_pod_or_in_the_job_is_seen():
    _, job = manifests()
    pod = pod_of("head", groups(job)["head"])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def test_the_entrypoint_is_a_command_of_this_project_that_can_be_repeated():
    _, job = manifests()
    args, config = entrypoint(job)
    assert args.resume
    folders = (config.run.root, config.model.path, config.data.train, config.data.eval)
    assert all(folder.startswith("/shared/") for folder in folders)
    assert config.run.name == job["metadata"]["name"]


def test_the_nodes_have_the_gpus_that_the_run_asks_for():
    _, job = manifests()
    _, config = entrypoint(job)
    by_name = groups(job)

    def gpus(name):
        (container,) = by_name[name]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        return int(container["resources"]["limits"]["nvidia.com/gpu"]) * by_name[name]["replicas"]

    assert gpus("learner") == config.learner.num_ranks * config.learner.gpus_per_rank
    assert gpus("rollout") == config.rollout.num_workers * config.rollout.gpus_per_worker
    assert {name: group["rayStartParams"].get("labels") for name, group in by_name.items()} == {
        "head": None, "learner": "pool=learner", "rollout": "pool=rollout"
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own
def test_ray_is_the_locked_one_and_knows_every_parameter():
    _, job = manifests()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == GPU_LOCK["ray"]
    known = ray_start_options()
    for group in groups(job).values():
        assert set(group["rayStartParams"]) <= known
    script = (DEPLOY / "slurm.sbatch").read_text()
    assert {"head", "labels", "port", "block"} <= set(re.findall(r"--([a-z-]+)", script)) & known
    of_ray = (
        re.search(r"ray start (.+)", script).group(1)
        + script[script.index("--head") :].partition("\n  else")[0]
    )
    assert set(re.findall(r"--([a-z-]+)", of_ray)) <= known


def test_every_pod_is_confined_and_reaches_the_shared_volume():
    claim, job = manifests()
    for name, group in groups(job).items():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounted["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        shm = mounted["/dev/shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        memory = container["resources"]["limits"]["memory"]
        assert int(shm["sizeLimit"].removesuffix("Gi")) < int(memory.removesuffix("Gi"))
        assert pod["automountServiceAccountToken"] == (name == "head")


def test_the_token_comes_from_a_secret_and_nothing_secret_is_in_the_files():
    _, job = manifests()
    text = (DEPLOY / "kuberay.yaml").read_text()
    secret = job["spec"]["rayClusterSpec"]["authOptions"]["secretName"]
    assert f"kubectl create secret generic {secret} --from-literal=auth_token=" in text
    for file in (entry for entry in DEPLOY.rglob("*") if entry.is_file()):
        assert not re.search(
            r"(TOKEN|KEY|PASSWORD|SECRET)\s*[=:]\s*[\"']?[A-Za-z0-9]{8}", file.read_text()
        ), file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own
def test_a_stopped_job_has_the_time_for_its_checkpoint():
    from ray.dashboard.modules.job import job_supervisor

    _, job = manifests()
    _, config = entrypoint(job)
    head = groups(job)["head"]["template"]["spec"]
    (variable,) = head["containers"][0]["env"]
    assert f'"{variable["name"]}"' in inspect.getsource(job_supervisor)
    assert config.checkpoint.stop_grace_s < int(variable["value"]) < head["terminationGracePeriodSeconds"]
    notice_s = re.search(r"--signal=B:USR1@(\d+)", (DEPLOY / "slurm.sbatch").read_text())
    assert config.checkpoint.stop_grace_s < int(notice_s.group(1))


def test_the_image_is_made_of_the_lock_for_the_python_and_cuda_of_it():
    text = (DEPLOY / "Dockerfile").read_text()
    cuda = re.search(r"^ARG CUDA=(\d+)\.", text, re.MULTILINE).group(1)
    assert f"nvidia-nccl-cu{cuda}" in GPU_LOCK
    assert "uv python install 3.11" in text and "-r requirements/gpu.lock" in text
    assert "install.py --venv /opt/venv --extra gpu" in text
    users = re.findall(r"^USER (.+)$", text, re.MULTILINE)
    assert users == ["10001"] and "--uid 10001" in text
    assert text.index("USER 10001") > text.rindex("RUN ")


def test_the_image_gets_all_that_an_installation_reads_and_nothing_else():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    taken = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines and all((ROOT / name).exists() for name in taken)
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert (
        packages | {"pyproject.toml", "README.md", "requirements", "configs", "assets", "site_hooks"} <= taken
    )
    assert not taken & {".git", ".venv", "runs", "data", "tests"}


SLURM = {
    "scontrol": 'if [ "$1" = show ]; then printf "nodeA\\nnodeB\\n"; else echo "$*" >>"$LOG"; fi',
    "getent": "echo 10.0.0.1 STREAM nodeA",
    "srun": 'echo "srun $*" >>"$LOG"; trap "exit 0" TERM; while :; do sleep 0.05; done',
    "python": "echo ${NODES_UP:-2}",
    "alphadrive": """\
{ echo "alphadrive $*"; stat -c "token %a" "$RAY_AUTH_TOKEN_PATH"; wc -c <"$RAY_AUTH_TOKEN_PATH"
  echo "$RAY_ADDRESS $RAY_AUTH_MODE"; echo up; } >>"$LOG"
trap 'sleep 0.3; echo checkpoint >>"$LOG"; exit 143' TERM
while [ ! -e "$LOG.finish" ]; do sleep 0.05; done
exit "$(cat "$LOG.finish")" """,
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script on two nodes that are none; gives the process and the file of what was called."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    started = []

    def start(**environment):
        given = {
            "HOME": str(tmp_path), "ALPHADRIVE_VENV": str(programs.parent), "LOG": str(log),
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[A-B]",
        }  # fmt: skip
        command = ["bash", str(DEPLOY / "slurm.sbatch"), "grpo", "debug", "run.name=first"]
        process = subprocess.Popen(command, env=os.environ | given | environment, stderr=subprocess.PIPE)
        started.append(process)
        return process, log

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(10)
        process.stderr.close()


def wait_for(log, line):
    deadline_s = time.monotonic() + 60
    while line not in log.read_text().splitlines():
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.02)


def test_a_slurm_job_starts_ray_behind_a_token_on_every_node_and_ends_with_the_run(slurm, tmp_path):
    process, log = slurm()
    wait_for(log, "up")
    (tmp_path / "log.finish").write_text("3")
    assert process.wait(30) == 3
    said = log.read_text()
    head, worker = sorted(
        (line for line in said.splitlines() if "srun" in line), key=lambda x: "--head" not in x
    )
    assert (
        "--nodelist=nodeA" in head
        and "--labels=pool=learner" in head
        and "--node-ip-address=10.0.0.1" in head
    )
    assert "--nodelist=nodeB" in worker and "--labels=pool=rollout --" in worker
    assert worker.endswith("--address=10.0.0.1:6379")
    assert "alphadrive grpo debug run.name=first --resume" in said
    assert "token 600\n64\n10.0.0.1:6379 token\n" in said and "requeue" not in said
    assert list((tmp_path / ".ray").iterdir()) == []


def test_a_slurm_job_whose_time_is_over_ends_with_a_checkpoint_and_is_queued_again(slurm, tmp_path):
    process, log = slurm()
    wait_for(log, "up")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 143
    assert log.read_text().splitlines()[-2:] == ["checkpoint", "requeue 7"]
    assert list((tmp_path / ".ray").iterdir()) == []


def test_a_slurm_job_that_is_cancelled_ends_with_a_checkpoint_and_stays_away(slurm):
    process, log = slurm()
    wait_for(log, "up")
    process.terminate()
    assert process.wait(30) == 143
    assert log.read_text().splitlines()[-1] == "checkpoint"


def test_a_slurm_job_whose_nodes_do_not_come_up_says_so(slurm, tmp_path):
    process, log = slurm(NODES_UP="1", ALPHADRIVE_NODES_TIMEOUT_S="0")
    assert process.wait(30) == 1
    assert b"Ray has not come up on all 2 nodes in 0 s" in process.stderr.read()
    assert "alphadrive" not in log.read_text() and list((tmp_path / ".ray").iterdir()) == []
