"""What is installed here, as JSON. Run by the research environment's own Python.

It imports none of the packages there. The tool passes this file's text with `python -c`: run as a file,
its folder would be searched for modules.
"""

import json
import os
import platform
import sys
from importlib.metadata import PathDistribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def markers() -> dict[str, str]:
    """The variables of environment markers (PEP 508)."""
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": platform.python_version(),
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }


def distribution(folder: Path) -> dict[str, Any]:
    """One installed distribution. Its name is that of the folder where the metadata is missing."""
    found = PathDistribution(folder)
    metadata: Any = found.metadata or {}
    direct = found.read_text("direct_url.json")
    return {
        "folder": str(folder),
        "name": metadata.get("Name", folder.name.split("-")[0]),
        "version": metadata.get("Version"),
        "requires": (found.requires if metadata else None) or [],
        "direct_url": json.loads(direct) if direct else None,
    }


def main() -> None:
    """Print it."""
    places = [Path(place) for place in dict.fromkeys(sys.path) if place and Path(place).is_dir()]
    entries = [entry for place in places for entry in sorted(place.iterdir())]
    found = find_spec("transformers")
    print(json.dumps({
        "markers": markers(),
        "prefix": sys.prefix,
        "distributions": [distribution(entry) for entry in entries
                          if entry.suffix in (".dist-info", ".egg-info") and not entry.name.startswith("~")],
        "leftovers": [str(entry) for entry in entries if entry.name.startswith("~")],
        "transformers": found.origin if found else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
