"""Serves an interactive page on this machine: drop a song, and listen to how a model continues it."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from encore.commands.demo import PRETRAINED_TEMPERATURE
from encore.config import cli
from encore.config.knobs import knob, problems_of
from encore.config.schema import PRECISIONS
from encore.errors import EncoreError
from encore.models.model_folder import PRETRAINED, is_model
from encore.models.precision import AUTO

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from encore.inference.live import Limits
    from encore.models.loading import Generator

HOST = "127.0.0.1"  # nobody else on the network can reach it
NO_NETWORK = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # read when Gradio is imported


@dataclass(frozen=True)
class AppConfig:
    """All settings of the interactive page."""

    checkpoint: Path | None = knob(
        None,
        "checkpoint of a training run, or a folder that encore export wrote; default: the model that Encore comes with",
        common=True,
    )
    against: Path | None = knob(None, "another one, whose continuations stand beside the first's", common=True)
    port: int = knob(7860, "port on this machine; 0: any free one", minimum=0, maximum=65535, common=True)
    max_megabytes: int = knob(200, "largest file that can be dropped, in MB", minimum=1, maximum=10_000, common=True)
    max_minutes: float = knob(30.0, "longest song, in minutes", minimum=0.1, maximum=1440.0, common=True)
    max_seconds: float = knob(60.0, "longest continuation, in seconds", minimum=1, maximum=600, common=True)
    codec_repository: Path | None = knob(None, "folder with the pretrained codecs' files", common=True)
    device: str | None = knob(None, "cpu or cuda; default: a GPU if there is one", common=True)
    precision: str = knob(
        AUTO, "of the transformer's products; auto: bf16 if this device is faster with it", choices=PRECISIONS
    )

    @property
    def paths(self) -> dict[str, Path]:
        """The models, by the flags that name them."""
        models = {"checkpoint": self.checkpoint or PRETRAINED}
        return models if self.against is None else {**models, "against": self.against}

    def check(self) -> None:
        """Raises EncoreError with everything that is wrong with the settings, one line each."""
        problems = [
            f"--{flag} {path}: no such file; training writes CHECKPOINT_DIR/best_model.pt"
            for flag, path in self.paths.items()
            if not is_model(path)
        ]
        if importlib.util.find_spec("gradio") is None:
            problems.append(
                "encore app needs Gradio: pip install 'encore[app]', or pip install -r requirements-app.txt"
            )
        problems += problems_of(self)
        if problems:
            raise EncoreError("\n".join(problems))


def main(config: AppConfig) -> None:
    """Serve a page on which songs are dropped, continued and listened to while they are generated.

    Only this machine can reach it, and neither the page nor the server loads anything from elsewhere. Ctrl-C ends it.
    """
    config.check()
    os.environ.update(NO_NETWORK)
    console = Console(highlight=False)
    console.print("loading …")
    from encore.inference.live import Limits

    models = load_models(config)
    limits = Limits(config.max_minutes, config.max_seconds)
    temperature = 1.0 if config.checkpoint else PRETRAINED_TEMPERATURE
    with tempfile.TemporaryDirectory(prefix="encore_app_") as folder, listening(config.port) as listener:
        os.environ["GRADIO_TEMP_DIR"] = folder  # where it keeps what is dropped
        application = application_of(models, limits, config.max_megabytes, temperature)
        console.print(f"open http://{HOST}:{listener.getsockname()[1]} in a browser; Ctrl-C ends it", soft_wrap=True)
        serve(application, listener)


def load_models(config: AppConfig) -> dict[str, Generator]:
    """The models by the names of their columns.

    Raises:
        EncoreError: a checkpoint cannot be loaded.
    """
    from encore.inference.threads import use_one_thread
    from encore.models.loading import choose_device, load_generator

    use_one_thread()
    device, models = choose_device(config.device), {}
    for flag, path in config.paths.items():
        name = "the model that Encore comes with" if path == PRETRAINED else "/".join(path.resolve().parts[-2:])
        name = name if name not in models else f"{name} (--{flag})"
        models[name] = load_generator(path, device, config.codec_repository, config.precision)
    return models


def listening(port: int) -> socket.socket:
    """A socket of this machine.

    Raises:
        EncoreError: the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise EncoreError(f"--port {port}: cannot be opened ({error.strerror}); name another one, or 0") from error
    return listener


def application_of(
    models: dict[str, Generator], limits: Limits, max_megabytes: int, temperature: float = 1.0
) -> ASGIApp:
    """The server's application: the page, on which `temperature` is set at first, and the sounds that it plays."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from encore.inference.interactive import CSS, build
    from encore.inference.live_audio import LiveSounds

    server, store = FastAPI(openapi_url=None), LiveSounds()
    # Pages of other sites reach a server on this machine by a name that resolves to it; this one is not known by any.
    server.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    server.add_api_route("/live/{name}.wav", store.respond)
    return gr.mount_gradio_app(
        server,
        build(models, limits, store, temperature),
        path="/",
        server_name=HOST,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        max_file_size=f"{max_megabytes}mb",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


def serve(application: ASGIApp, listener: socket.socket) -> None:
    """Serves until Ctrl-C."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])


app = cli.new_app()
cli.add_command(app, AppConfig, main)

if __name__ == "__main__":
    cli.run(app)
