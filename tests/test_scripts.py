"""The shell scripts, run for real in a folder of their own with one tiny package to install, from a file."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPTS = ("setup_venv.sh", "run_train.sh", "run_tests.sh", ".ci/run")
TOOLS = ("bash", "env", "dirname", "cat", "rm", "sed", "touch", "sha256sum", "git")


class Machine:
    """A folder with the scripts, whose name has a space, and a PATH with little more than Python on it; no uv."""

    def __init__(self, folder: Path, python: bool = True) -> None:
        self.tree, self.bin, self.elsewhere = folder / "my encore", folder / "bin", folder / "elsewhere"
        for made in (self.tree, self.bin, self.elsewhere):
            made.mkdir()
        for name in ("setup_venv.sh", "run_train.sh"):
            shutil.copy2(ROOT / name, self.tree)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name) or name)
        if python:
            (self.bin / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
        with zipfile.ZipFile(self.tree / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny.py", "")
            wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
            wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("tiny-1.0.dist-info/RECORD", "")
        self.tiny = "./tiny-1.0-py3-none-any.whl"
        digest = hashlib.sha256((self.tree / self.tiny).read_bytes()).hexdigest()
        for name in ("requirements", "requirements-dev"):
            (self.tree / f"{name}.lock").write_text(f"{self.tiny} --hash=sha256:{digest}\n")
        (self.tree / "requirements.txt").write_text(f"{self.tiny}\n")
        (self.tree / "requirements-dev.txt").write_text("-r requirements.txt\n")
        (self.tree / "train_ddp.py").write_text("import os, sys\nprint(os.getcwd(), sys.argv[1:])\n")

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a script by its path, from another folder."""
        return subprocess.run(
            [str(self.tree / script), *arguments],
            cwd=self.elsewhere,
            env={"PATH": str(self.bin), "HOME": str(self.elsewhere), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def has_tiny(self) -> bool:
        return bool(list((self.tree / ".venv").glob("lib/python*/site-packages/tiny.py")))


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine after its first set-up, which takes seconds; to be copied, not changed."""
    machine = Machine(tmp_path_factory.mktemp("set-up"))
    done = machine.run("setup_venv.sh")
    assert done.returncode == 0, done.stderr
    assert machine.has_tiny()
    return machine


@pytest.fixture
def machine(set_up: Machine, tmp_path: Path) -> Machine:
    """A machine that is set up, to be changed."""
    machine = Machine(tmp_path)
    shutil.copytree(set_up.tree, machine.tree, symlinks=True, dirs_exist_ok=True)
    return machine


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_and_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.slow
def test_set_up_is_done_once_and_again_where_it_must_be(machine: Machine) -> None:
    again = machine.run("setup_venv.sh")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    # The tests need more than training; what they installed is enough for training.
    assert "Installing requirements-dev.lock" in machine.run("setup_venv.sh", "dev").stdout
    assert machine.run("setup_venv.sh", "dev").stdout == machine.run("setup_venv.sh").stdout == ""


@pytest.mark.full
def test_an_install_that_fails_is_not_taken_for_done(machine: Machine) -> None:
    """A changed lock file is installed; the install after one that has failed starts from nothing."""
    # Here it fails because a file is not the one that was locked.
    whole = (machine.tree / "requirements.lock").read_text()
    (machine.tree / "requirements.lock").write_text(f"{machine.tiny} --hash=sha256:{'0' * 64}\n")
    failed = machine.run("setup_venv.sh")
    assert failed.returncode == 2
    assert "Installing requirements.lock" in failed.stdout
    assert "error: could not install requirements.lock" in failed.stderr
    (machine.tree / ".venv/half an install").touch()
    (machine.tree / "requirements.lock").write_text(whole)
    assert machine.run("setup_venv.sh").returncode == 0
    assert machine.has_tiny()
    assert not (machine.tree / ".venv/half an install").exists()

    # Who asks for the newest versions keeps them.
    assert "Installing requirements-dev.txt" in machine.run("setup_venv.sh", "dev", "newest").stdout
    assert machine.run("setup_venv.sh", "dev").stdout == machine.run("setup_venv.sh").stdout == ""
    assert "error: old: unknown" in machine.run("setup_venv.sh", "old").stderr


@pytest.mark.slow
def test_settings_of_pip_do_not_change_what_is_installed_or_where(machine: Machine) -> None:
    subprocess.run([machine.tree / ".venv/bin/python", "-m", "pip", "uninstall", "-qy", "tiny"], check=True)
    assert not machine.has_tiny()
    (machine.tree / ".venv/.installed-requirements.lock").unlink()
    (machine.elsewhere / "pip.conf").write_text("[global]\nuser = true\n[install]\nprefix = /nowhere\n")
    done = machine.run(
        "setup_venv.sh",
        PIP_CONFIG_FILE=str(machine.elsewhere / "pip.conf"),
        PIP_TARGET=str(machine.elsewhere),
        PIP_CONSTRAINT="missing.txt",
    )
    assert done.returncode == 0, done.stderr
    assert machine.has_tiny()


def test_without_the_venv_module_the_message_says_what_to_install(tmp_path: Path) -> None:
    """On Debian, Python comes without ensurepip until python3-venv is installed."""
    machine = Machine(tmp_path)
    (machine.elsewhere / "ensurepip.py").write_text("raise ImportError")
    done = machine.run("run_train.sh", PYTHONPATH=str(machine.elsewhere))
    assert done.returncode == 2
    assert "sudo apt install python3-venv" in done.stderr
    assert not (machine.tree / ".venv").exists()


@pytest.mark.parametrize("found", ["none", "Python 3.9.2"])
def test_without_a_python_that_is_new_enough_the_message_says_so(tmp_path: Path, found: str) -> None:
    machine = Machine(tmp_path, python=False)
    if found != "none":
        # What the script asks of an old Python: to run at all, to be new enough (it is not), and its version.
        old = '#!/bin/sh\ncase "$*" in --version) echo Python 3.9.2;; "-c ") exit 0;; *) exit 1;; esac\n'
        (machine.bin / "python3").write_text(old)
        (machine.bin / "python3").chmod(0o755)
    done = machine.run("setup_venv.sh")
    assert done.returncode == 2
    assert f"Encore needs Python 3.10 to 3.14, found {found}" in done.stderr
    assert "sudo apt install python3 python3-venv" in done.stderr
    assert not (machine.tree / ".venv").exists()


@pytest.mark.slow
def test_arguments_go_to_train_ddp_as_they_are_from_the_folder_of_the_caller(machine: Machine) -> None:
    done = machine.run("run_train.sh", "--dataset_folder", "my pairs", "--run_name", "*")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{machine.elsewhere} ['--dataset_folder', 'my pairs', '--run_name', '*']"


def test_lock_files_hold_what_the_requirements_ask_for_on_every_python() -> None:
    locked = {name: pins(ROOT / f"{name}.lock") for name in ("requirements", "requirements-dev")}
    for name, lock in locked.items():
        asked = [*(ROOT / "requirements.txt").open(), *((ROOT / f"{name}.txt").open())]
        wanted = [Requirement(line.strip()) for line in asked if line.strip() and line[0] not in "#-"]
        assert len(wanted) >= 15
        for minor in range(10, 15):
            place = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1", "sys_platform": "linux"}
            here = {one.name: one for one in lock if one.marker is None or one.marker.evaluate(place)}
            for one in wanted:
                if one.marker is None or one.marker.evaluate(place):
                    (pin,) = here[canonicalize_name(one.name)].specifier
                    assert pin.operator == "==" and one.specifier.contains(pin.version), (one, pin)
    # Setting up for the tests changes nothing for training.
    training, tests = ({(one.name, str(one.specifier)) for one in lock} for lock in locked.values())
    assert training <= tests


def pins(path: Path) -> list[Requirement]:
    """The requirements of a lock file, each of which has hashes; it names no place on the network."""
    text = path.read_text().replace("\\\n", " ")
    assert "://" not in text and "index" not in text
    lines = [line.partition(" --hash=sha256:") for line in text.splitlines()]
    assert all(hashes for _, _, hashes in lines)
    return [Requirement(pin.strip()) for pin, *_ in lines]


class Slurm:
    """A job on a machine: SLURM's variables, and stand-ins for `srun` and `scontrol`, which notes its orders."""

    def __init__(self, machine: Machine, state: str = "RUNNING") -> None:
        self.machine, self.orders = machine, machine.elsewhere / "orders"
        self.script = machine.elsewhere / "spool" / "slurm_script"  # SLURM runs a copy of the script
        self.script.parent.mkdir()
        shutil.copy2(machine.tree / "run_train.sh", self.script)
        job = f"JobId=7\n   JobState={state} Reason=None\n   Command={machine.tree}/run_train.sh --dataset_folder a b\n"
        self.tool("scontrol", f"#!/bin/bash\n[ $1 = show ] && echo '{job}' || echo \"$@\" >> '{self.orders}'\n")
        self.tool(
            "srun",
            f"#!/bin/bash\necho srun \"$@\" >> '{self.orders}'\n"
            + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
        )

    def tool(self, name: str, text: str) -> None:
        (self.machine.bin / name).write_text(text)
        (self.machine.bin / name).chmod(0o755)

    def start(self, *flags: str, nodes: int = 1, restarts: int = 0) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.script, *flags],
            cwd=self.machine.elsewhere,
            env={
                **{"PATH": str(self.machine.bin), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes)},
                **{"SLURM_CPUS_ON_NODE": "4", "SLURM_RESTART_COUNT": str(restarts)},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.mark.slow
def test_sbatch_trains_on_all_machines_of_the_job_and_resumes_after_a_requeue(machine: Machine) -> None:
    slurm = Slurm(machine)
    flags, trained = ("--dataset_folder", "my pairs"), f"{machine.elsewhere} ['--dataset_folder', 'my pairs'"
    for nodes, restarts, expected in (
        (1, 0, trained + "]"),
        (1, 2, trained + ", '--resume', 'auto']"),
        (2, 0, trained.replace("['", "['--nnodes', '2', '") + "]"),
    ):
        output, errors = slurm.start(*flags, nodes=nodes, restarts=restarts).communicate(timeout=60)
        assert output.splitlines()[-1:] == [expected], errors
    (started,) = slurm.orders.read_text().splitlines()
    assert started.startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=4 ")


@pytest.mark.slow
@pytest.mark.parametrize(("state", "orders"), [("RUNNING", "requeue 7\n"), ("CANCELLED", "")])
def test_a_job_that_runs_out_of_time_saves_and_is_put_into_the_queue_again(
    machine: Machine, state: str, orders: str
) -> None:
    (machine.tree / "train_ddp.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\n"
        "print('training', flush=True)\n"
        "signal.pause()\n"
    )
    slurm = Slurm(machine, state)
    slurm.orders.touch()
    job = slurm.start("--dataset_folder", "pairs")
    assert job.stdout is not None and job.stdout.readline() == "training\n"
    job.send_signal(signal.SIGTERM)
    output, errors = job.communicate(timeout=60)
    assert (job.returncode, output) == (143, "saved\n"), errors
    assert slurm.orders.read_text() == orders
