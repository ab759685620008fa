"""The user's cache folder, for what is compiled. Standard library only."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def cache_folder() -> Path:
    """The user's folder for what is compiled for this kind of processor; a home may be shared by several kinds."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")] if cpuinfo.exists() else []
    kind = hashlib.sha256("".join([platform.machine(), *flags[:1]]).encode()).hexdigest()[:8]
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wsjax" / kind
