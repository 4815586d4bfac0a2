"""A conversation with the probe of one host: over ssh, a question and an answer a line, each with a time limit."""

import asyncio
import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress

from megatron_ngpt.errors import NgptError

CONNECT_SECONDS = 10
START_SECONDS = 60  # to an answer of Python there
SSH_FAILED = 255
CLOSE_SECONDS = 20
LONGEST_ANSWER = 1 << 24
KEY = "no login with this user's key"
REASONS = {  # what ssh says: what it means and what to do
    "Permission denied": f"{KEY}; put your public key into its ~/.ssh/authorized_keys (ssh-copy-id)",
    "Host key verification failed": "ssh does not know its host key; log in once by hand, or add it to ~/.ssh/known_hosts (ssh-keyscan)",
    "Could not resolve": "its name is not known here; correct the hostfile, or add it to /etc/hosts",
    "Connection refused": "no ssh server answers there; start sshd",
    "No route to host": "nothing answers at its address; is it on, and its network?",
    "timed out": "nothing answers at its address; is it on, and its network?",
}


class Conversation:
    """With the probe of `host`, in `directory`, by this Python, with the variables that the launcher passes on."""

    def __init__(self, host: str, directory: str, variables: Mapping[str, str]):
        self.host = host
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in variables.items() if name.isidentifier())
        self._command = f"{exports}cd {shlex.quote(directory)} && exec {shlex.quote(sys.executable)} -u -m megatron_ngpt.cluster.probe"
        self._told: asyncio.Task | None = None

    async def open(self) -> None:
        """Start the probe. Raises NgptError with what is in the way."""
        options = ["BatchMode=yes", f"ConnectTimeout={CONNECT_SECONDS}", "ServerAliveInterval=5", "ServerAliveCountMax=2"]
        self._ssh = await asyncio.create_subprocess_exec(
            "ssh", *(word for option in options for word in ("-o", option)), self.host, self._command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=LONGEST_ANSWER,
        )  # fmt: skip
        self._told = asyncio.create_task(self._ssh.stderr.read())
        await self.ask(START_SECONDS, "hello")

    async def ask(self, seconds: float, question: str, **details) -> dict:
        """The answer. Raises NgptError if none comes in time, or the probe could not find one."""
        with suppress(ConnectionError):
            self._ssh.stdin.write(json.dumps({"ask": question, **details}).encode() + b"\n")
            await self._ssh.stdin.drain()
        try:
            line = await asyncio.wait_for(self._ssh.stdout.readline(), seconds)
        except asyncio.TimeoutError:
            raise NgptError(f"no answer to {question!r} in {seconds:g} seconds; is it overloaded, or its network cut?") from None
        if not line:
            raise NgptError(await self._reason())
        answer = json.loads(line)
        if "failed" in answer:
            raise NgptError(answer["failed"])
        return answer

    async def close(self) -> None:
        """Say good-bye: the probe takes away what it wrote."""
        if self._told is None:
            return
        self._ssh.stdin.close()
        try:
            await asyncio.wait_for(self._ssh.wait(), CLOSE_SECONDS)
        except asyncio.TimeoutError:
            self._ssh.kill()
            await self._ssh.wait()
        self._told.cancel()

    async def _reason(self) -> str:
        """Why the probe ended."""
        status = await self._ssh.wait()
        told = (await self._told).decode(errors="replace").strip().splitlines()
        last = told[-1] if told else f"exit status {status}"
        if status == SSH_FAILED:
            known = next((remedy for sign, remedy in REASONS.items() if any(sign in line for line in told)), None)
            return f"{known} ({last})" if known else f"ssh failed: {last}"
        return f"the probe did not run: {last}; the same directory and Python must be on all hosts, under the same paths"
