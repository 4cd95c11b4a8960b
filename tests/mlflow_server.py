"""A real MLflow server that is stopped and started again; as a program, a process that runs one in a fork of itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


class Server:
    """MLflow's server on a port of this machine, stopped at first: `mlflow server` without its command line.

    What it imports, nearly all that it costs, is imported once. It dies without notice, as in a power cut.
    """

    def __init__(self, folder: Path, store: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{port}"
        variables = {
            "_MLFLOW_SERVER_FILE_STORE": store,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(folder / "artifacts"),
            "_MLFLOW_SGI_NAME": "uvicorn",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, port],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> None:
        """Returns when it answers."""
        assert self.tell("start") == "started"

    def stop(self) -> None:
        """Kills it."""
        assert self.tell("stop") == "stopped"

    def tell(self, what: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """Ends the process, and the server with it."""
        self.process.communicate()


def main(port: int) -> None:
    import uvicorn
    from mlflow.server.fastapi_app import app

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print("started", flush=True)

    child = 0
    for line in sys.stdin:
        if line.strip() == "start":
            child = os.fork()
            if not child:
                Announced(uvicorn.Config(app, port=port, log_level="critical")).run()
                os._exit(0)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
            print("stopped", flush=True)
    if child:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
