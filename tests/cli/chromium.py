"""A headless browser, for tests of pages. It is Debian's package `chromium`; others of its family work too."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FOUND = next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)

needs_chromium = pytest.mark.skipif(
    _FOUND is None, reason=f"no headless browser is installed ({', '.join(_NAMES)}); Debian: apt install chromium"
)


def rendered(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Shows a page, and returns its document after its scripts have run, and what they complained about on the console.

    Args:
      page: path of the page.
      profile: a directory for the browser.
    """
    assert _FOUND is not None
    # The browser's sandbox does not work for root.
    unprotected = ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [
            *(_FOUND, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", *unprotected),
            *(f"--user-data-dir={profile}", "--window-size=1280,1600", "--virtual-time-budget=10000"),
            *("--enable-logging=stderr", "--dump-dom", page.as_uri()),
        ],
        env={**os.environ, "HOME": str(profile)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=True,
    )
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)
