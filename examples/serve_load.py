"""Many clients at once, for minutes: is a request lost, does the memory grow, what costs a worker?

    python examples/serve_load.py --clients 50 --minutes 5 --kill-every 60

Starts `hybridiff serve` on a free port, asks it with the `openai` client, and kills its worker now
and then. Prints a line each half minute, then a table; exits 1 if a request was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

import openai
import psutil

COMMAND = "from hybridiff_compile.cli import app; app()"


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        seconds: of each answered request, the queue included.
        errors: by the name of the class and the status.
        kills: workers that were killed.
        megabytes: of the server and its workers, each half minute.
    """

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    megabytes: list[float] = field(default_factory=list)


def started(model: str) -> tuple[psutil.Popen, str]:
    """The server and its address."""
    command = [sys.executable, "-c", COMMAND, "serve", "--port", "0", "--model", model]
    server = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        print(line, end="", flush=True)
        if found := re.search(r"serving \S+ on (http\S+)", line):
            return server, found[1]
    raise SystemExit("the server did not start")


async def ask(url: str, steps: int, until: float, seen: Seen) -> None:
    """One client: the next request as soon as the last one is answered; no tries of its own."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    while time.monotonic() < until:
        begin = time.monotonic()
        try:
            answer = await client.images.generate(
                prompt="a red circle", extra_body={"num_inference_steps": steps}
            )
            assert answer.data
            assert answer.data[0].b64_json
            seen.seconds.append(time.monotonic() - begin)
        except openai.APIError as e:
            seen.errors[f"{type(e).__name__} {getattr(e, 'status_code', '')}"] += 1


async def kill(server: psutil.Popen, every: float, until: float, seen: Seen) -> None:
    """Kill the worker now and then."""
    while every and time.monotonic() + every < until:
        await asyncio.sleep(every)
        for worker in server.children():
            worker.kill()
            seen.kills += 1


async def watch(server: psutil.Popen, until: float, seen: Seen) -> None:
    """A line each half minute."""
    while time.monotonic() < until:
        await asyncio.sleep(30)
        both = (server, *server.children())
        seen.megabytes.append(sum(one.memory_info().rss for one in both) / 1e6)
        said = f"{len(seen.seconds)} answered, {sum(seen.errors.values())} errors"
        print(f"{said}, {seen.kills} workers killed, {seen.megabytes[-1]:.0f} MB", flush=True)


async def load(server: psutil.Popen, url: str, wanted: argparse.Namespace) -> Seen:
    """All clients, until the time is over and each has its last answer."""
    seen, until = Seen(), time.monotonic() + 60 * wanted.minutes
    clients = (ask(url, wanted.steps, until, seen) for _ in range(wanted.clients))
    await asyncio.gather(
        *clients, kill(server, wanted.kill_every, until, seen), watch(server, until, seen)
    )
    return seen


def main() -> None:
    """Start, ask, print."""
    parser = argparse.ArgumentParser(description="Many clients at once, for minutes.")
    parser.add_argument("--model", default="tiny-sd3")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kill-every", type=float, default=60, help="seconds; 0 never")
    wanted = parser.parse_args()
    server, url = started(wanted.model)
    try:
        seen = asyncio.run(load(server, url, wanted))
    finally:
        server.terminate()
        server.wait(60)
    order = sorted(seen.seconds)
    print("\n| clients | minutes | answered | errors | workers killed | median s | slowest s |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {wanted.clients} | {wanted.minutes:g} | {len(order)} | {sum(seen.errors.values())} "
        f"| {seen.kills} | {median(order):.1f} | {order[-1]:.1f} |"
    )
    print(
        f"\nerrors: {dict(seen.errors)}; MB each half minute: {[round(m) for m in seen.megabytes]}"
    )
    sys.exit(bool(seen.errors))


if __name__ == "__main__":
    main()
