"""Two hosts: network namespaces with nothing in common but a cable, and a folder of its own for each."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest

from tests.inputs import ROOT, without
from tests.small_run import in_processes
from tests.test_scale import FULL, check_same_losses, run_script

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORTS = itertools.count(29560)


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def hosts():
    """Two namespaces that reach each other by eth0. They take root, iproute2 and a kernel that allows them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("no root, or no ip (Debian: iproute2): no namespaces can be made here")
    names = [f"gpt2-{os.getpid()}-{letter}" for letter in "ab"]
    try:
        for name in names:
            if (made := ip("netns", "add", name)).returncode:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
        cable = ("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        if (made := ip(*cable)).returncode:
            pytest.skip(f"no veth can be made here: {made.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            for command in (f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                assert ip("-n", name, *command.split()).returncode == 0, command
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def on_both(hosts, folders, script):
    """torchrun on every host, in a folder each: [(exit code, stdout, stderr)]."""
    port, running = next(PORTS), []
    for rank, (host, folder) in enumerate(zip(hosts, folders, strict=True)):
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc_per_node", "1", "--local_addr", ADDRESSES[rank]]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:{port}", "--rdzv_id", "1"]
        command += ["--rdzv_conf", f"is_host={rank == 0}"]  # which it tells by the name of the host: here both have one
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([*command, *script], cwd=folder, env=environment, **pipes))
    try:
        told = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(running, told, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"]], ids=["whole", "sharded"])
def test_two_hosts_train_like_one_process_and_the_first_keeps_the_run(hosts, sonnet_flags, tmp_path, more):
    flags = [*without(sonnet_flags, "--score_seeds"), "--score_seeds", "1", "--max_new_tokens", "1", *FULL]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        for file in ("train.txt", "prompts.txt", "gold.txt"):
            shutil.copy(tmp_path / file, folder)
    assert in_processes(1, run_script, "sonnet_generation", [*flags, "--batch_size", "8", "--run_dir", "one"]) == [0]
    script = [f"{ROOT}/sonnet_generation.py", *flags, "--batch_size", "4", "--run_dir", "two", *more]
    (code, out, err), (other_code, other_out, other_err) = on_both(hosts, folders, script)
    assert code == other_code == 0, err[-1500:] + other_err[-1500:]
    assert "2 process(es)" in out and other_out == ""
    check_same_losses([tmp_path / "one", tmp_path / "a/two"], steps=4)
    assert (tmp_path / "a/out/sonnets.txt").exists() and not (tmp_path / "b/two").exists()


@pytest.mark.slow
def test_hosts_with_other_data_are_one_line(hosts, sonnet_flags, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        for file in ("train.txt", "prompts.txt", "gold.txt"):
            shutil.copy(tmp_path / file, folder)
    text = (tmp_path / "train.txt").read_text()
    (tmp_path / "b/train.txt").write_text(text.replace("yes", "no", 1))
    results = on_both(hosts, folders, [f"{ROOT}/sonnet_generation.py", *sonnet_flags, "--run_dir", "two"])
    for code, _, err in results:
        assert code != 0
        assert err.count("error: process 1 has other training sonnets than the first: give every host the same") == 1
    assert not (tmp_path / "a/two").exists()
