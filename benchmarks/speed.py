"""The time of a UNet step and of a VAE decode at Stable Diffusion 1.5's size, each way to speed it up beside diffusers.

Each row is a process that lives through the run and does one measurement at a time, so that rows take turns round by
round and a busy machine is busy for all of them; ratios are medians of the rounds' own. As many rows as memory holds are
alive at once, and the first row of each side always is. Writes JSON, a Markdown table and a chart into
benchmarks/results/.

    python benchmarks/speed.py [--device cpu] [--rounds 5] [--rows PART ...] [--side 512] [--quick] [--name speed-cpu]
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import speed_floor
import speed_report
from bench import HERE, MODELS, ROOT, SHAPES, machine, sd15_unet
from memory import stable_diffusion
from speed_rows import DIFFUSERS, OURS, Row, Table, tables

COMMANDS = {
    OURS: [str(ROOT / "target/release/examples/bench_speed")],
    DIFFUSERS: [sys.executable, str(HERE / "speed_diffusers.py")],
}
# What the machine keeps for itself, and for what a row takes beyond its estimate.
RESERVE_GIB = 1.5


class Unprepared(Exception):
    """A row's process failed, or took too long, before its first measurement."""


class Process:
    """A row's process: a line goes in, a line of JSON comes out."""

    def __init__(self, table: Table, row: Row, device: str, limit: float) -> None:
        self.row = row
        arguments = (table.model, table.folder, row.dtype, device, table.latent, table.batch, row.modes)
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        # A second run finds what torch.compile made in the first.
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(MODELS / "inductor"))
        if row.side == OURS and "compile-max-autotune" in row.modes:
            environment["TCH_DIFFUSERS_CACHE"] = str(packages(table, row, device, environment))
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*COMMANDS[row.side], *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        # Second by second: one in which everything was stopped counts once.
        if not any(select.select([self.process.stdout], [], [], 1)[0] for _ in range(int(limit))):
            self.finish()
            raise Unprepared(f"not prepared within {limit:.0f} s")
        try:
            self.prepared = json.loads(self.process.stdout.readline())
        except json.JSONDecodeError:
            self.finish()
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines() or ["it said nothing"]
            raise Unprepared(lines[-1][:300]) from None

    def ask(self, request: str) -> dict:
        print(request, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.row.key}: {request}: {self.errors.read()[-2000:]}")
        return json.loads(line)

    def finish(self) -> None:
        """Ends it and what it started, such as torch.compile's own workers."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def packages(table: Table, row: Row, device: str, environment: dict[str, str]) -> Path:
    """A cache with an AOTInductor package for the table's UNet and its size, made by Python where there is none yet."""
    cache = MODELS / "compiled" / f"{table.folder.name}-{device}-{row.dtype}-{table.batch}x{table.latent}"
    if not list(cache.glob("aoti/*.pt2")):
        exporter = ROOT / "python/tch_diffusers/export_aoti.py"
        side, options = str(table.latent * 8), ["--batch", str(table.batch), "--dtype", row.dtype, "--device", device]
        command = [sys.executable, str(exporter), str(table.folder), "--height", side, "--width", side, *options]
        environment = environment | {"TCH_DIFFUSERS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        made = subprocess.run(command, env=environment, capture_output=True, text=True)
        if made.returncode != 0:
            raise Unprepared((made.stderr.strip().splitlines() or ["the package was not made"])[-1][:300])
    return cache


def sizes(device: str) -> list[dict]:
    """How often each mode compiles for a sequence of sizes; the packages are those of the table of the bundled model."""
    worker = ROOT / "target/release/examples/bench_sizes"
    if device != "cpu" or not worker.is_file():
        return []
    command = [str(worker), str(SHAPES / "unet"), str(dynamic_package())]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        say(f"sizes: {(made.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return [json.loads(line) for line in made.stdout.splitlines() if line.startswith("{")]


def dynamic_package() -> Path:
    """A cache with a package of the bundled model's UNet for all sizes, made by Python where there is none yet."""
    cache = MODELS / "compiled" / "shapes-dynamic"
    if not list(cache.glob("aoti/*.pt2")):
        exporter = ROOT / "python/tch_diffusers/export_aoti.py"
        command = [sys.executable, str(exporter), str(SHAPES), "--component", "unet", "--dynamic"]
        made = subprocess.run(command, env=os.environ | {"TCH_DIFFUSERS_CACHE": str(cache)}, capture_output=True, text=True)
        if made.returncode != 0:
            say(f"sizes: {(made.stderr.strip().splitlines() or ['the package was not made'])[-1]}")
    return cache


def available_gib(device: str) -> float:
    """Memory that a process could take now."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info()[0] / 2**30
    with open("/proc/meminfo") as meminfo:
        return int(next(line for line in meminfo if line.startswith("MemAvailable")).split()[1]) / 2**20


def output(process: Process, folder: str):
    """What the last run made."""
    from safetensors.torch import load_file

    path = Path(folder, "output.safetensors")
    process.ask(f"save {path}")
    made = load_file(path)["output"].clone()
    path.unlink()
    return made


class Pauses(threading.Thread):
    """Notices when everything was stopped for a while, by a laptop's lid or a signal."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.start()

    def run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(0.1)
            now = time.monotonic()
            self.count += now - last > 3
            last = now


PAUSES = Pauses()


def undisturbed(process: Process) -> dict:
    """A run during which nothing was stopped."""
    while True:
        before = PAUSES.count
        run = process.ask("run")
        # The thread needs its turn to see what just ended.
        time.sleep(0.2)
        if PAUSES.count == before:
            return run
        say(f"{process.row.key}: everything was stopped meanwhile: once more")


class Measurement:
    """A table on its way."""

    def __init__(self, table: Table, chosen: list[str], options: argparse.Namespace) -> None:
        references = table.references()
        self.table, self.options = table, options
        self.rest = [row for row in table.rows if row not in references and is_chosen(table, row, chosen)]
        try:
            self.references = [self.start(row) for row in references]
        except Unprepared as reason:
            raise SystemExit(f"{table.name}: a row that all others are compared with failed: {reason}") from None
        self.entries = {row.key: {"rounds": {}} for row in [*references, *self.rest]}
        self.outputs = {}
        self.rounds = 0

    def start(self, row: Row) -> Process:
        start = time.perf_counter()
        process = Process(self.table, row, self.options.device, self.options.prepare_limit)
        say(f"{self.table.name}: {row.key} is prepared after {time.perf_counter() - start:.0f} s")
        return process

    def run(self) -> Iterator[dict]:
        """Batches of as many rows as fit; what is known after each of them."""
        profiles = {process.row.side: process.ask("profile") for process in self.references}
        while True:
            batch = self.next_batch()
            self.measure([*self.references, *batch])
            for process in batch:
                process.finish()
            yield {"name": self.table.name, "title": self.table.title, "rows": self.rows(), "profiles": profiles}
            if not self.rest:
                break
        for process in self.references:
            process.finish()

    def next_batch(self) -> list[Process]:
        batch = []
        while self.rest:
            row = self.rest[0]
            if batch and available_gib(self.options.device) < row.gib + RESERVE_GIB:
                break
            self.rest.pop(0)
            try:
                batch.append(self.start(row))
            except Unprepared as reason:
                say(f"{self.table.name}: {row.key}: {reason}")
                self.entries[row.key]["note"] = str(reason)
        return batch

    def measure(self, processes: list[Process]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(self.options.rounds):
                # There and back again: no row is always behind the same other.
                for process in processes if number % 2 == 0 else reversed(processes):
                    key = process.row.key
                    run = undisturbed(process)
                    self.entries[key]["rounds"][self.rounds] = run["seconds"]
                    self.entries[key]["peak_bytes"] = run["peak_bytes"]
                    self.entries[key]["prepared"] = process.prepared
                    if key not in self.outputs:
                        self.outputs[key] = output(process, folder)
                    say(f"{self.table.name}: {key}: {run['seconds']:.3f} s")
                self.rounds += 1

    def rows(self) -> list[dict]:
        eager = {process.row.side: self.entries[process.row.key]["rounds"] for process in self.references}
        expected = {process.row.side: self.outputs[process.row.key] for process in self.references}
        rows = []
        for row in self.table.rows:
            entry = self.entries.get(row.key)
            if entry is None:
                continue
            result = {"side": row.side, "name": row.name, "dtype": row.dtype, "modes": row.modes}
            seconds = entry["rounds"]
            if seconds:
                result |= {
                    "seconds": median(seconds.values()),
                    "range": [min(seconds.values()), max(seconds.values())],
                    "rounds": seconds,
                    "to_ours": speed_report.ratio(seconds, eager[OURS]),
                    "to_diffusers": speed_report.ratio(seconds, eager[DIFFUSERS]),
                    "peak_bytes": entry["peak_bytes"],
                    "difference": (self.outputs[row.key] - expected[OURS]).abs().max().item(),
                    "largest_value": expected[OURS].abs().max().item(),
                    **entry["prepared"],
                }
            rows.append(result | ({"note": entry["note"]} if "note" in entry else {}))
        return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def is_chosen(table: Table, row: Row, chosen: list[str]) -> bool:
    return not chosen or any(part in f"{table.name}: {row.key}" for part in chosen)


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it: without them it is a hundred times slower than float32."""
    with open("/proc/cpuinfo") as cpuinfo:
        flags = next((line.split() for line in cpuinfo if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each row; medians count")
    parser.add_argument("--rows", nargs="*", default=[], help="parts of `table: side: row`, such as `vae` or `traced`")
    parser.add_argument("--prepare-limit", type=float, default=1800, help="seconds a row may take to prepare")
    parser.add_argument("--quick", action="store_true", help="128 pixels, two rounds, results into target/bench")
    parser.add_argument("--name", help="the results' file name")
    options = parser.parse_args()
    if options.quick:
        options.side, options.rounds = 128, 2
    device, name = options.device, options.name or f"speed-{options.device}"
    unet, vae, tiny = sd15_unet("float32"), stable_diffusion() / "vae", SHAPES / "unet"
    wanted = [
        table
        for table in tables(device, options.side, device == "cpu" and multiplies_bfloat16(), unet, vae, tiny)
        if any(is_chosen(table, row, options.rows) for row in table.rows)
    ]

    slow = set() if device != "cpu" or multiplies_bfloat16() else {"bfloat16"}
    dtypes = {row.dtype for table in wanted for row in table.rows} - slow
    place = (MODELS if options.quick else HERE / "results") / name
    about = machine() | ({"gpu": speed_report.gpu()} if device != "cpu" else {})
    rates, measured = speed_floor.rates(dtypes, device), {}
    in_turn = sizes(device)
    # The short ones first; what is known is written each time.
    for table in reversed(wanted):
        work = speed_floor.work(table.model, table.folder, table.latent, table.batch)
        for known in Measurement(table, options.rows, options).run():
            measured[table.name] = known | {"work": work}
            rates = speed_floor.faster(rates, speed_floor.rates(dtypes, device))
            found = [measured[table.name] for table in wanted if table.name in measured]
            results = {"machine": about, "side": options.side, "rates": rates, "tables": found, "sizes": in_turn}
            write(results, device, place)
    print(place.with_suffix(".md").read_text())


def write(results: dict, device: str, place: Path) -> None:
    """What was measured so far: a later table that fails takes nothing away."""
    for table in results["tables"]:
        for row in table["rows"]:
            row["floor_seconds"] = speed_floor.floor(table["work"], results["rates"], row["dtype"])
    results["bars"] = speed_report.bars(results["tables"], device)
    place.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    place.with_suffix(".md").write_text(speed_report.markdown(results))
    speed_report.chart(results, place.with_suffix(".png"))


if __name__ == "__main__":
    main()
