"""What `deploy/` ships: linted, checked against the schemas of Kubernetes and KubeRay, and held to this
project's commands, keys and locks."""

import inspect
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from alphadrive.cli import parse_arguments
from alphadrive.config import load_config
from alphadrive.doctor.software import lock_pins
from alphadrive.pools import parse_pool

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = Path(sysconfig.get_path("scripts"))
KUBERNETES = "1.37"
GPU_LOCK = lock_pins(ROOT / "requirements" / "gpu.lock")

COUNT = {"type": "integer", "minimum": 0}
TEMPLATE = {"type": "object", "required": ["spec"]}
PARAMETERS = {
    "type": "object", "additionalProperties": {"type": "string"},
    "propertyNames": {"not": {"enum": ["labels", "resources", "num-gpus", "memory"]}},
}  # fmt: skip
"""KubeRay refuses labels here; resources are the pod's limits."""
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


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
    labels=LABELS,
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
        submitterPodTemplate=TEMPLATE,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
            rayVersion={"type": "string"},
            authOptions=closed(["mode"], mode={"const": "token"}, secretName={"type": "string"}),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=closed(
                ["version"],
                version={"enum": ["v1", "v2"]},
                idleTimeoutSeconds=COUNT,
                securityContext={"type": "object"},
            ),
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


def pod_of(name, template):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}


def templates(job):
    """Every pod of the job by the name of its group; `submitter` is that of the submission."""
    of_groups = {name: group["template"] for name, group in groups(job).items()}
    return of_groups | {"submitter": job["spec"]["submitterPodTemplate"]}


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
    for name, template in templates(job).items():
        kubernetes_validate.validate(pod_of(name, template), KUBERNETES, strict=True)


def test_a_slip_in_a_pod_or_in_the_job_is_seen():
    _, job = manifests()
    pod = pod_of("head", templates(job)["head"])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    parameters = groups(job)["head"]["rayStartParams"]
    for slip in ({"num-cpus": 0}, {"labels": "pool=head"}):
        groups(job)["head"]["rayStartParams"] = parameters | slip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job, RAY_JOB)


def test_the_entrypoint_is_a_command_of_this_project_that_can_be_repeated():
    _, job = manifests()
    args, config = entrypoint(job)
    assert args.resume
    folders = (config.run.root, config.model.path, config.data.train, config.data.eval)
    assert all(folder.startswith("/shared/") for folder in folders)
    assert config.run.name == job["metadata"]["name"]


def as_ray_sees_it(job):
    """The node types that Ray's autoscaler reads from the manifest."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = {"metadata": {"name": "x", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own
def test_the_nodes_have_the_gpus_that_the_run_asks_for_and_the_labels_of_its_pools():
    _, job = manifests()
    _, config = entrypoint(job)
    types = as_ray_sees_it(job)
    assert {name: node["labels"] for name, node in types.items()} == {
        "headgroup": {}, "learner": {"pool": "learner"}, "rollout": {"pool": "rollout"}
    }  # fmt: skip
    assert types["headgroup"]["resources"]["CPU"] == 0
    for key in ("learner_pool", "rollout_pool", "reward_pool"):
        pool = parse_pool(key, getattr(config.cluster, key))
        assert pool and any(pool.items() <= node["labels"].items() for node in types.values())
    learner, rollout = types["learner"], types["rollout"]
    ranks = config.learner.num_ranks
    assert learner["resources"]["GPU"] * learner["min_workers"] == ranks * config.learner.gpus_per_rank
    assert learner["resources"]["CPU"] * learner["min_workers"] >= ranks * config.learner.cpus_per_rank
    engines = config.rollout.num_workers
    assert rollout["resources"]["GPU"] == config.rollout.gpus_per_worker
    assert rollout["resources"]["CPU"] >= config.rollout.cpus_per_worker
    assert 1 <= groups(job)["rollout"]["replicas"] <= engines <= rollout["max_workers"]
    for group in groups(job).values():
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


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


def test_every_pod_is_confined():
    _, job = manifests()
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert job["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"] == confined
    for name, template in templates(job).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        assert [container["securityContext"] for container in pod["containers"]] == [confined]
        assert pod["automountServiceAccountToken"] == (name == "head")


def test_every_node_has_the_shared_volume_and_shared_memory():
    claim, job = manifests()
    for group in groups(job).values():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounted["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        shm = mounted["/dev/shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        memory = container["resources"]["limits"]["memory"]
        assert int(shm["sizeLimit"].removesuffix("Gi")) < int(memory.removesuffix("Gi"))


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
