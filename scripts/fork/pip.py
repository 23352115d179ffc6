"""pip, and where it takes packages from. Standard library only: it runs before the tool's environment exists.

By default pip's own configuration decides: index, proxies, certificates, find-links. WHEELHOUSE=folder
overrides it: everything comes from that folder and the network is never asked. It has to hold, as wheels
(or, for transformers, also as the pinned sdist), what is not yet installed of:

- scripts/requirements.txt, and for `make test` and `make lint` the requirements files beside it;
- setuptools (70.1 or newer) and wheel, which build the editable install;
- torch, accelerate, tokenizers, safetensors, huggingface_hub and what these and transformers require;
- for SOURCE=sdist the pin's sdist; for `make uninstall` the stock transformers wheel.

`pip download -d folder ...` with the same Python fills it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fork.errors import ForkError


# Settings that would send packages somewhere else than into the environment named. Empty: pip ignores the
# configuration file's value too.
ELSEWHERE = ("PIP_PREFIX", "PIP_PYTHON", "PIP_ROOT", "PIP_TARGET")
# The caller's Python settings; the launcher's own PYTHONPATH is among them.
PYTHON_SETTINGS = ("PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__")


def wheelhouse() -> Path | None:
    """The folder that WHEELHOUSE names, if it names one."""
    named = os.environ.get("WHEELHOUSE", "")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise ForkError(
            f"WHEELHOUSE is {named!r}, which is no folder; expected one that holds wheels to install from",
            next="pip download -d FOLDER PACKAGE..., then the command again with WHEELHOUSE=FOLDER",
        )
    return folder


def clean_environment() -> dict[str, str]:
    """The caller's environment, without what would change which modules another Python finds."""
    return {name: value for name, value in os.environ.items() if name not in PYTHON_SETTINGS}


def pip_environment() -> dict[str, str]:
    """The environment in which pip runs: the user's configuration, or WHEELHOUSE alone."""
    settings = dict.fromkeys(ELSEWHERE, "") | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_USER": "0",
    }
    folder = wheelhouse()
    if folder:
        # As a URL: pip splits a plain value at spaces.
        settings |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder.as_uri()}
    return clean_environment() | settings


def own_pip(python: Path) -> list[str]:
    """The pip that lies in an environment."""
    return [str(python), "-m", "pip"]


def pip_upon(python: Path) -> list[str]:
    """This interpreter's pip, at work on another environment, which needs none and may have an old one."""
    return [*own_pip(Path(sys.executable)), "--python", str(python)]


def pip_install(pip: Sequence[str], words: Sequence[str], log: Path) -> int:
    """Run `pip install`; the exit status. The log says what the terminal does not."""
    log.unlink(missing_ok=True)
    command = [*pip, "install", "--log", str(log), *words]
    # The lock's descriptor goes along (see fork.lock): while pip works, no second run may start.
    process = subprocess.Popen(command, env=pip_environment(), stdin=subprocess.DEVNULL, close_fds=False)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # pip was interrupted too, and now puts back what it had begun to replace
        raise
