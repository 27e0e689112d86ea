"""Fine-tuning in processes of its own: two that do what one does, and runs that are killed and go on. `make train`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("many.py")
ONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
SHARDED, FULL = 'fsdp="SHARDED_STATE_DICT"', 'fsdp="FULL_STATE_DICT"'
LOSSES = ("lr=0.01", "repulsion=0.1", "smoothness=0.1", "distillation=1.0")


def start(launcher: tuple[str, ...], out: Path, *options: str) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[1] / "helpers")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    command = [*launcher, str(SCRIPT), str(out), *options]
    with said(out).open("wb") as stream:
        return subprocess.Popen(command, env=environment, start_new_session=True, stdout=stream, stderr=subprocess.STDOUT)


def run(launcher: tuple[str, ...], out: Path, *options: str) -> Path:
    process = start(launcher, out, *options)
    assert process.wait(timeout=300) == 0, said(out).read_text()
    return out


def said(out: Path) -> Path:
    return out.with_suffix(".txt")


def difference(a: Path, b: Path) -> float:
    first, second = (load_file(out / "model.safetensors") for out in (a, b))
    assert first.keys() == second.keys()
    return max(float((t - second[n]).abs().max()) for n, t in first.items())


def test_accelerate_launch(tmp_path: Path) -> None:
    """One process: with several on CPUs it wants MPI, which torchrun doesn't."""
    assert difference(run(ONE, tmp_path / "plain", *LOSSES), run(ACCELERATE, tmp_path / "launched", *LOSSES)) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run in one process, made once for the same options."""

    @cache
    def made(*options: str) -> Path:
        return run(ONE, tmp_path_factory.mktemp("alone"), *options)

    return made


@pytest.mark.parametrize("states", ["", SHARDED, FULL])
@pytest.mark.parametrize(
    "options",
    [("accumulate=2", "steps=40", "clip_norm=0.1"), ("weights_from=5",), ("epochs=4", "patience=1", "lr=0.6")],
    ids=lambda o: o[0],
)
def test_two_processes_do_what_one_does(
    states: str, options: tuple[str, ...], alone: Callable[..., Path], tmp_path: Path
) -> None:
    """In double precision; 20 steps of the same global batches. The last case ends by early stopping, with the best weights."""
    one = alone(*LOSSES, *options)
    two = run(TWO, tmp_path / "two", *LOSSES, *options, *filter(None, [states]))
    assert f'"2, {"FSDP" if states else "MULTI_CPU"}"' in (two / "run.json").read_text()
    assert difference(one, two) <= 1e-5
    assert len((one / "log.csv").read_text().splitlines()) == len((two / "log.csv").read_text().splitlines()) >= 21


def test_compiled_in_two_processes(alone: Callable[..., Path], tmp_path: Path) -> None:
    two = run(TWO, tmp_path / "two", *LOSSES, "compile=true")
    assert difference(alone(*LOSSES), two) <= 1e-5


@pytest.mark.parametrize(
    ("launcher", "states"), [(ONE, ""), (TWO, ""), (TWO, SHARDED), (TWO, FULL)], ids=["one", "DDP", "FSDP2", "FSDP2-full"]
)
def test_a_killed_run_goes_on_to_the_same_losses(launcher: tuple[str, ...], states: str, tmp_path: Path) -> None:
    """``kill -9`` in the middle of the second epoch; what the log and the checkpoint hold then is enough."""
    options = (*LOSSES, "epochs=2", "checkpoint_every=7", "weights_from=21", *filter(None, [states]))
    whole = run(launcher, tmp_path / "whole", *options)
    out = tmp_path / "parts"
    process = start(launcher, out, *options, "halt=26")
    log = out / "log.csv"
    deadline = time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < 26:
        assert process.poll() is None, said(out).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pid in workers_of(out):  # torchrun starts them in sessions of their own
        os.kill(pid, signal.SIGKILL)
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint-00000021", "log.csv", "run.json"]
    run(launcher, out, *options, "resume=true")
    assert log.read_bytes() == (whole / "log.csv").read_bytes()
    assert difference(whole, out) == 0


def workers_of(out: Path) -> list[int]:
    """Processes whose command line names the script and this run's folder."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(SCRIPT).encode() in arguments and str(out).encode() in arguments:
            found.append(int(directory.name))
    return found
