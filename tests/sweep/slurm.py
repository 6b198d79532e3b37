"""A SLURM of this machine's own, from Debian's package ``slurm-wlm``: one controller and one node on loopback.

``python tests/slurm.py`` starts one and leaves it up until Ctrl-C, to try commands by hand.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

CONFIG = """
ClusterName=fedgh
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters={parameters}
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} CoresPerSocket={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=off
"""
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")


def missing() -> list[str]:
    """Return the programs that are not there; SLURM's daemons lie in sbin."""
    return [name for name in NEEDED if find(name) is None]


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def slurm(folder: Path, cpus: int = 1, grace: int = 30, parameters: str = "preempt_send_user_signal"):
    """Run a controller and a node as long as the context lives; yields the environment that finds them.

    Args:
        folder: For configuration, state and logs.
        cpus: Of the node; its partitions are ``low`` (preempted, requeued) and ``high``.
        grace: Seconds that a preempted job has.
    """
    host = socket.gethostname().partition(".")[0]
    (folder / "spool").mkdir(parents=True)
    (folder / "state").mkdir()
    controller, node = free_ports(2)
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    text = CONFIG.format(**locals())
    (folder / "slurm.conf").write_text(text)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        for command in (["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            process = subprocess.Popen(
                [find(command[0]), *command[1:]], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(stop, process)
        wait_until_idle(environment, folder)
        stack.callback(subprocess.run, ["scancel", "--state=PENDING"], env=environment, check=False)
        stack.callback(subprocess.run, ["scancel", "--state=RUNNING", "--signal=KILL"], env=environment, check=False)
        yield environment


def wait_until_idle(environment, folder, seconds=30):
    for _ in range(10 * seconds):
        answer = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if "idle" in answer.stdout:
            return
        time.sleep(0.1)
    logs = "\n".join((folder / f"{name}.out").read_text()[-2000:] for name in ("slurmctld", "slurmd"))
    raise RuntimeError(f"SLURM did not come up in {seconds} s: {answer.stdout}{answer.stderr}\n{logs}")


def stop(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


if __name__ == "__main__":
    with TemporaryDirectory() as folder, slurm(Path(folder) / "slurm") as found:
        sys.stdout.write(f"export SLURM_CONF={found['SLURM_CONF']}\n")
        sys.stdout.flush()
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            pass
