"""Docker Compose, whichever is installed."""

from __future__ import annotations

import shutil
import subprocess


def compose_command() -> list[str] | None:
    """`docker compose`, else `docker-compose`; None if neither is installed."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    return None
