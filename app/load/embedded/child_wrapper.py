"""Wrapper process between the gateway and vLLM, which ends vLLM when the gateway ends. Standard library only.

    child_wrapper.py LOG_FILE LOG_BYTES GRACE_SECONDS MEMORY_BYTES -- COMMAND …

vLLM is a family of processes (server, core, worker), and its core outlives a killed server. The wrapper runs the family
in its own session and writes the family's output to a bounded log. When the gateway ends, even by kill -9, the
gateway's end of the wrapper's standard input closes, and the wrapper ends the whole family: SIGTERM, GRACE_SECONDS,
SIGKILL. It exits with the server's status, or 128 + signal. If the wrapper itself is killed, the kernel kills the
server (PR_SET_PDEATHSIG), and the gateway's next start kills the remaining processes by session
(app/load/embedded/supervisor.py).

The wrapper also limits the family to MEMORY_BYTES: it measures the memory of all processes together ten times a second,
and above the limit kills all of them at once and exits with the status OVER_MEMORY. It does not use RLIMIT_DATA or
RLIMIT_AS, which count mapped memory (checkpoints, CUDA's address space) and make one allocation somewhere fail, nor a
cgroup, which few users may create. If memory grows faster than it is measured, the kernel still kills the family first,
by its oom_score_adj, and no other process of the machine.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CHUNK = 1 << 16  # bytes read from the engine's output at once
TICK_S = 0.1  # seconds between checks of processes that were asked to end
KEPT_LOGS = 2  # older log files kept beside the current one
LOOK_S = 0.1  # seconds between measurements of the family's memory: a process can fill some 100 MiB in that time
FAMILY_S = 2.0  # seconds between listings of the family's processes, which read all of /proc
OVER_MEMORY = 79  # exit status: the family exceeded its memory limit; Python and shells do not use this status
OOM_SCORE = "500"  # of 1000: if the machine's memory runs out, the kernel kills the family first


class Log:
    """Log file that is rotated when it has `limit` bytes, so that the engine cannot fill the disk."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit, self.size = path, limit, 0
        self.file = self._fresh()

    def _fresh(self) -> int:
        for number in range(KEPT_LOGS, 0, -1):
            older = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                older.replace(self.path.with_name(f"{self.path.name}.{number}"))
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    def write(self, data: bytes) -> None:
        """Append `data`; a full disk, or a failure to create the next file, must not stop the engine."""
        with contextlib.suppress(OSError):
            if self.size + len(data) > self.limit:
                fresh = self._fresh()
                os.close(self.file)
                self.file, self.size = fresh, 0
            self.size += os.write(self.file, data)


def family(session: int) -> list[int]:
    """Return every process of `session` except its leader, and every orphan that the leader adopted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == session:
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, parent, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and session in (int(parent), int(sid)):
                found.append(int(entry.name))
    return found


def memory(pids: list[int]) -> int:
    """Return the bytes that these processes hold and no file backs; of shared memory, the largest share counts once."""
    private, shared = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss", "VmSwap"))}
            private += kib.get("RssAnon", 0) + kib.get("VmSwap", 0)
            shared = max(shared, kib.get("RssShmem", 0))
    return (private + shared) << 10


class Watch:
    """Memory watch over the family."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._pids: list[int] = []
        self._found = -FAMILY_S

    def over(self) -> bool:
        """Return True while the family holds more than the limit."""
        now = time.monotonic()
        if now - self._found >= FAMILY_S:
            self._pids, self._found = family(os.getpid()), now
        self.used = memory(self._pids)
        return self.used > self.limit


def end(server: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Ask the server to stop, wait, then kill the rest of its family."""
    if server.poll() is None:
        server.terminate()
        deadline = time.monotonic() + grace_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(TICK_S)
    while left := family(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(TICK_S)
    server.wait()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # adopted orphans: leave no zombies, in case process 1 reaps none
            pass


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start the server so that it dies with this process."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=prepare,  # noqa: PLW1509 - no threads here
    )


def main(log_file: str, log_bytes: str, grace_s: str, memory_bytes: str, command: list[str]) -> int:
    """Run the engine until it or the gateway ends; return the exit status."""
    log = Log(Path(log_file), int(log_bytes))
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    server = start(command)
    assert server.stdout is not None
    output = server.stdout.fileno()
    watch, over = Watch(int(memory_bytes)), False
    with selectors.DefaultSelector() as selector:
        for source in (sys.stdin.fileno(), woken, output):
            selector.register(source, selectors.EVENT_READ)
        while server.poll() is None and not (over := watch.over()):
            ready = {key.fd for key, _ in selector.select(LOOK_S)}
            if output in ready:
                data = os.read(output, CHUNK)
                log.write(data)
                if not data:
                    selector.unregister(output)
            signals = os.read(woken, CHUNK) if woken in ready else b""
            if sys.stdin.fileno() in ready or set(signals) - {signal.SIGCHLD}:
                break
    end(server, 0.0 if over else float(grace_s))
    os.set_blocking(output, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(output, CHUNK):
            log.write(data)
    if over:
        held = f"its processes hold {watch.used >> 20} MiB, the limit is {watch.limit >> 20} MiB"
        log.write(f"Error: the engine was ended: {held} (GATEWAY_ENGINE_MEMORY_MIB)\n".encode())
        return OVER_MEMORY
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    _, log_file, log_bytes, grace_s, memory_bytes, _, *command = sys.argv
    sys.exit(main(log_file, log_bytes, grace_s, memory_bytes, command))
