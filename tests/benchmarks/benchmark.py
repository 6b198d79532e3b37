"""What FedGH costs, side by side with a bare PyTorch loop: ``python tests/benchmarks/benchmark.py [section ...]``.

Every ratio comes from pairs measured alternately in one run; medians are printed. On a machine that others use too,
``--clock process`` counts processor time instead of seconds.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import torch
import torchvision
from aggregation import aggregation, growth, memory
from allocator import allocator
from cell import cell
from client_states import client_states
from dashboards import dashboard
from observatory import observatory
from PIL import Image
from ray_workers import ray_workers
from start_up import start_up
from sweeps import sweeps
from torchvision.transforms import v2
from workloads import EXECUTORS, WORKLOADS, BareLoop, build, rounds

from fedgh.core.allocator import keep_freed_memory
from fedgh.dataset.augmentation import Augmentation
from fedgh.federation.round import initial_state

Row = tuple[str, str, str]


class Bench:
    """The clock, the device, how often to measure; the size of matrices relative to real ones, where to draw."""

    def __init__(
        self,
        clock: Callable[[], float],
        device: torch.device,
        pairs: int,
        scale: float = 1.0,
        figure: Path | None = None,
    ) -> None:
        self.clock, self.device, self.pairs, self.scale, self.figure = clock, device, pairs, scale, figure

    def seconds(self, function: Callable[[], object], times: int = 1) -> float:
        """Return the seconds of one call, over ``times`` calls in a row."""
        self._wait()
        started = self.clock()
        for _ in repeat(None, times):
            function()
        self._wait()
        return (self.clock() - started) / times

    def pair(self, ours: Callable[[], object], other: Callable[[], object], times: int = 1) -> tuple[float, float]:
        """Return median seconds of ``ours``, and the median of ours / other over alternate measurements."""
        ours(), other()  # warm up
        mine, ratios = [], []
        for _ in range(self.pairs):
            before = self.seconds(other, times)
            mine.append(self.seconds(ours, times))
            ratios.append(2 * mine[-1] / (before + self.seconds(other, times)))
        return statistics.median(mine), statistics.median(ratios)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def workload(bench: Bench, name: str) -> Iterator[Row]:
    """Both executors against the bare loop."""
    bare = BareLoop(WORKLOADS[name], bench.device)
    times = 20 if name == "W3" else 1
    for executor in EXECUTORS:
        seconds, ratio = bench.pair(rounds(build(WORKLOADS[name], executor, bench.device)), bare, times)
        yield f"{name}, {executor}", f"{seconds:.4f} s a round", f"{ratio:.3f} of the bare loop"


def fits(bench: Bench) -> Iterator[Row]:
    """The price of a fit and of a step; memory and open files over 1,000 fits."""
    alone = {executor: _one_client(bench, executor, 1) for executor in EXECUTORS}
    for executor, (play, bare) in alone.items():
        seconds, ratio = bench.pair(play, bare, 20)
        yield f"one fit of one step, {executor}", f"{1e3 * seconds:.2f} ms", f"{ratio:.1f} of the bare step"
    for executor, (play, bare) in alone.items():
        short = statistics.median(bench.seconds(play, 20) - bench.seconds(bare, 20) for _ in range(bench.pairs))
        play, bare = _one_client(bench, executor, 200)
        long = statistics.median(bench.seconds(play) - bench.seconds(bare) for _ in range(4 * bench.pairs))
        extra = 1e6 * (long - short) / 199
        yield f"a step beyond the bare step, {executor}", f"{extra:.0f} microseconds", "uint8 to float included"
    for executor, (play, _) in alone.items():
        gc.collect()
        memory, files = _resident(), len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            play()
        gc.collect()
        grown, opened = _resident() - memory, len(os.listdir("/proc/self/fd")) - files
        yield f"1,000 fits, {executor}", f"{grown / 2**20:+.1f} MiB", f"{opened:+d} open files"


def _one_client(bench: Bench, executor: str, steps: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return local training of one client, ours and bare, on logistic regression with batches of 10; warm."""
    workload = replace(WORKLOADS["W3"], num_clients=1, clients_per_round=1, num_examples=10 * steps)
    federation, bare = build(workload, executor, bench.device), BareLoop(workload, bench.device)
    server = initial_state(federation.model)
    ours, other = partial(federation.executor, [0], server), partial(bare.local_training, 0)
    for _ in range(3):
        ours(), other()
    return ours, other


def population(bench: Bench) -> Iterator[Row]:
    """20 of 10,000 clients a round against 20 of 100."""
    few = replace(WORKLOADS["W3"], num_clients=100)
    many = replace(few, num_clients=10_000)
    for executor in EXECUTORS:
        ours, other = (rounds(build(w, executor, bench.device)) for w in (many, few))
        seconds, ratio = bench.pair(ours, other, 10)
        yield f"20 of 10,000 clients, {executor}", f"{seconds:.4f} s a round", f"{ratio:.3f} of 20 of 100"


def augmentation(bench: Bench) -> Iterator[Row]:
    """Crop, flip and AutoAugment of 32x32 images, batched here and one by one in torchvision."""
    count = 2048
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    resident, generator = images.to(bench.device), torch.Generator().manual_seed(0)
    batched = Augmentation(crop_padding=4, flip=True, auto_augment=True)
    policy = v2.AutoAugmentPolicy.CIFAR10
    single = v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.AutoAugment(policy)])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[:256]]
    seconds, ratio = bench.pair(lambda: batched(resident, generator), lambda: [single(picture) for picture in pictures])
    yield (
        "augmentation",
        f"{count / seconds:,.0f} images a second",
        f"{count / 256 / ratio:.1f} times torchvision {torchvision.__version__} (per image, one core)",
    )


FIRST_ROUND = """
import sys; sys.path.insert(0, {folder!r})
import torch, warnings; warnings.simplefilter("ignore")
from workloads import WORKLOADS, build, rounds
rounds(build(WORKLOADS["W3"], {executor!r}, torch.device({device!r})))()
"""


def startup(bench: Bench) -> Iterator[Row]:
    """From starting Python to the end of the first round of W3; the fastest of several, so warm."""
    folder = str(Path(__file__).parent)
    for executor in EXECUTORS:
        code = FIRST_ROUND.format(folder=folder, executor=executor, device=str(bench.device))
        found = []
        for _ in range(bench.pairs):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            found.append(time.perf_counter() - started)
        yield f"import to first round, {executor}", f"{min(found):.1f} s", f"median {statistics.median(found):.1f} s"


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def machine(device: torch.device) -> str:
    """Describe where the numbers come from."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no accelerator"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{cpu}, {cores} cores, {torch.get_num_threads()} threads; {name}; Python {platform.python_version()}, "
        f"torch {torch.__version__}; load before the run {load}"
    )


OTHERS = (
    *(
        fits,
        population,
        aggregation,
        growth,
        memory,
        observatory,
        augmentation,
        allocator,
        cell,
        startup,
        client_states,
        ray_workers,
        start_up,
        sweeps,
    ),
    dashboard,
)
SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    **{name: partial(workload, name=name) for name in WORKLOADS},
    **{section.__name__: section for section in OTHERS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of which the median is taken")
    parser.add_argument("--figure", type=Path, help="where the section `growth` draws, as PNG")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="of matrices of updates, of the observed clients and of the number of client states; 0.01 to try it out",
    )
    options = parser.parse_args()
    if options.figure and options.sections and "growth" not in options.sections:
        parser.error("--figure is drawn by the section growth, which is not among those asked for")
    keep_freed_memory()  # as every command does; a bare loop has it as well
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    device = torch.device(options.device)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    bench = Bench(clock, device, options.pairs, options.scale, options.figure)
    sys.stdout.write(f"{machine(device)}; {options.clock} clock, medians of {options.pairs}\n\n")
    sys.stdout.write(f"| {'what':<38} | {'cost':<40} | compared |\n| {'-' * 38} | {'-' * 40} | {'-' * 8} |\n")
    for name in options.sections or SECTIONS:
        for what, cost, compared in SECTIONS[name](bench):
            sys.stdout.write(f"| {what:<38} | {cost:<40} | {compared} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
