# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU: the same training as one, and the same decisions."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import nn

from tests.paths import ROOT
from tests.training import two_processes
from tests.training.tiny import arguments, environment, tiny_config, tiny_dataroot, tiny_file, torchrun
from training.run.train_checkpoint import CheckpointFolder
from training.run.training_forward import TrainingForward

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("pair")
    arguments_of_work = (tiny_file(folder, stage=2), free_port(), folder / "pair.pt")
    torch.multiprocessing.spawn(two_processes.work, arguments_of_work, nprocs=2)
    return folder, torch.load(folder / "pair.pt", weights_only=True)


def reference(folder: Path, optimizer_name: str) -> dict[str, dict[str, torch.Tensor]]:
    """One process: each half's loss with the normalisers of both, averaged."""
    config = tiny_config(folder)
    network = two_processes.frozen_network(config)
    initial = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = two_processes.OPTIMIZERS[optimizer_name](network.parameters())
    gradient: dict[str, torch.Tensor] = {}
    for step in range(two_processes.STEPS):
        halves = [two_processes.half_batch(config, step, rank) for rank in range(2)]
        counts: list[torch.Tensor] = []

        def count(values: torch.Tensor, counts: list[torch.Tensor] = counts) -> torch.Tensor:
            counts.append(values)
            return values

        with torch.no_grad():
            for half in halves:
                TrainingForward(network, mean_over_ranks=count).eval()(half)
        assert not torch.equal(*counts)
        mean = sum(counts) / 2
        forward = TrainingForward(network, mean_over_ranks=lambda _, mean=mean: mean).eval()  # type: ignore[misc]
        optimizer.zero_grad()
        (sum(two_processes.total(forward(half)) for half in halves) / 2).backward()  # type: ignore[union-attr]
        if step == 0:
            gradient = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return {
        "gradient": gradient,
        "weights": {name: p.detach() for name, p in network.named_parameters()},
        "initial": initial,
    }


def per_module(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], scale: dict[str, torch.Tensor]
) -> dict[str, float]:
    """|a - b| / |scale| of each of the network's parts."""
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for name in a:
        parts.setdefault(name.split(".")[0], []).append((a[name] - b[name], scale[name]))
    return {
        part: float(
            torch.cat([d.flatten() for d, _ in pairs]).double().norm()
            / torch.cat([s.flatten() for _, s in pairs]).double().norm()
        )
        for part, pairs in parts.items()
    }


def test_gradients_and_sgd_equal_one_process(pair: tuple[Path, dict[str, dict[str, torch.Tensor]]]) -> None:
    folder, found = pair
    expected = reference(folder, "sgd")
    assert found["gradient"].keys() == expected["gradient"].keys() == expected["weights"].keys()
    for part, error in per_module(found["gradient"], expected["gradient"], expected["gradient"]).items():
        assert error < 1e-5, part
    for part, error in per_module(found["sgd"], expected["weights"], expected["weights"]).items():
        assert error < 1e-5, part
    moved = {name: expected["weights"][name] - expected["initial"][name] for name in expected["initial"]}
    nothing = {name: value * 0 for name, value in moved.items()}
    for part, distance in per_module(moved, nothing, expected["initial"]).items():
        assert distance > 5e-5, f"{part} hardly moved: equal weights would show nothing"


def test_adamw_equals_one_process(pair: tuple[Path, dict[str, dict[str, torch.Tensor]]]) -> None:
    folder, found = pair
    expected = reference(folder, "adamw")
    moved = {name: expected["weights"][name] - expected["initial"][name] for name in expected["initial"]}
    for part, error in per_module(found["adamw"], expected["weights"], moved).items():
        assert error < 1e-2, part


BAD_ON_ONE_RANK = """
import os, sys
sys.path.insert(0, {root!r})
import torch
from training import train as script
from training.run.training_forward import TrainingForward
original, calls = TrainingForward.forward, []
def forward(self, batch):
    calls.append(1)
    losses = original(self, batch)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        losses["loss_depth"] = losses["loss_depth"] * torch.nan
    return losses
TrainingForward.forward = forward
sys.exit(script.main(sys.argv[1:]))
"""


def test_a_non_finite_loss_on_one_of_two_ranks_skips_the_step_on_both(tmp_path: Path) -> None:
    tiny_dataroot(tmp_path)
    program = tmp_path / "bad.py"
    program.write_text(BAD_ON_ONE_RANK.format(root=str(ROOT)))
    command = torchrun(2, str(program), *arguments(tmp_path, "run", "--batch", "1", "--max-steps", "4"))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    log = (tmp_path / "run" / "log.txt").read_text()
    skipped = re.findall(r"step (\d+) skipped: non-finite loss, samples (.*)", log)
    assert len(skipped) == 1 and skipped[0][0] == "2" and skipped[0][1].count("sample") == 1  # that rank's alone
    state = CheckpointFolder(tmp_path / "run").newest()
    assert state is not None and state[1]["skipped"] == 1 and state[1]["step"] == 4
    assert state[1]["optimizer"]["state"][0]["step"] == 3 and state[1]["ema"]["updates"] == 10563
    assert len(state[1]["random"]) == 2


def test_a_killed_worker_is_restarted_and_the_run_ends(tmp_path: Path) -> None:
    """kill -9 of one of two workers in mid-epoch, under torchrun --max-restarts."""
    tiny_dataroot(tmp_path)
    options = ["--batch", "1", "--checkpoint-every", "1", "--set", "training.epochs=4"]
    command = torchrun(2, str(ROOT / "training" / "train.py"), *arguments(tmp_path, "run", *options), restarts=2)
    with (tmp_path / "out").open("w") as out:
        job = subprocess.Popen(command, env=environment(), stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        folder = CheckpointFolder(tmp_path / "run")
        while not any("step_00000006" in path.name for path in folder.paths()):
            assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()[-3000:]
            time.sleep(0.05)
        workers = [
            int(pid)
            for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        assert job.wait(timeout=240) == 0, (tmp_path / "out").read_text()[-3000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    log = (tmp_path / "run" / "log.txt").read_text()
    continued = re.findall(r"continuing at step (\d+)", log)
    assert len(continued) == 1 and int(continued[0]) >= 6
    assert "training ended" in log
    newest = folder.newest()
    assert newest is not None and newest[1]["step"] == 16
    assert (tmp_path / "run" / "epoch_4_ema.safetensors").is_file()
