"""The directories that a program runs in: a working directory, its parent and a home, all of them with precious files."""

import os
from pathlib import Path

PRECIOUS = "precious: "


class Ground:
    """A throwaway directory with everything that a program could harm, and how it has to look afterwards.

    Attributes:
      base: everything is below it.
      work: the working directory of the program.
      home: its home directory.
      elsewhere: a directory for checkpoints with absolute paths.
      prefix: what checkpoints are called, as the program gives it.
      directory: the absolute directory that they are in.
    """

    def __init__(self, base: Path, where: str, *, occupied: bool = False, made: bool = False) -> None:
        """Makes the directories.

        Args:
          base: an empty directory.
          where: the prefix of the checkpoints; relative ones are in the working directory, "{elsewhere}" stands for a directory outside.
          occupied: a directory called ``checkpoint``, like the state file, is in the working directory.
          made: another process, or an earlier program, has made them.
        """
        self.base = base
        self.work = base / "parent" / "work"
        self.home = base / "home"
        self.elsewhere = base / "elsewhere"
        if not made:
            self._make(occupied)
        self.prefix = where.format(elsewhere=self.elsewhere)
        self.directory = Path(os.path.normpath(os.path.dirname(os.path.join(self.work, self.prefix))))
        self._identity = _identity(self.work)
        self._before = self._look()

    def _make(self, occupied: bool) -> None:
        for folder in (
            self.work / "data" / "below",
            self.home / "photos",
            self.elsewhere,
            self.base / "parent" / "checkpoint",
        ):
            folder.mkdir(parents=True)
        if occupied:
            (self.work / "checkpoint").mkdir()
        for folder in [path for path in self.base.rglob("*") if path.is_dir()]:
            if folder != self.elsewhere:
                (folder / "file").write_text(PRECIOUS + folder.name)

    def enter(self) -> None:
        """Makes it the working directory and home of this process."""
        os.chdir(self.work)
        os.environ["HOME"] = str(self.home)

    def harm(self) -> list[str]:
        """Returns what is not as it was, and what is somewhere where no checkpoint belongs."""
        found = []
        try:
            if os.getcwd() != str(self.work) or _identity(self.work) != self._identity:
                found.append("the working directory is another one")
        except OSError as error:
            found.append(f"the working directory is gone: {error}")
        now = self._look()
        for name, content in self._before.items():
            if name not in now:
                found.append(f"{name} was deleted")
            elif now[name] != content:
                found.append(f"{name} was changed")
        found += [f"{name} was created" for name in now if name not in self._before]
        return found

    def entries(self) -> list[str]:
        """Names in the directory of the checkpoints, without what was there before."""
        ours = set(os.listdir(self.directory)) if self.directory.is_dir() else set()
        below = self.directory.relative_to(self.base)
        return sorted(ours - {Path(name).name for name in self._before if Path(name).parent == below})

    def _look(self) -> dict[str, str]:
        """Everything but what is in the directory of the checkpoints and was not there at the beginning."""
        found: dict[str, str] = {}
        known = getattr(self, "_before", None)
        pending = [self.base]
        while pending:
            folder = pending.pop()
            for entry in os.scandir(folder):
                name = str(Path(entry.path).relative_to(self.base))
                if known is not None and folder == self.directory and name not in known:
                    continue
                if Path(entry.path) == self.directory and folder in (self.work, self.base):
                    # It may be made by the first save.
                    pending.append(self.directory)
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found[name] = "directory"
                    pending.append(Path(entry.path))
                else:
                    found[name] = Path(entry.path).read_text(errors="replace")
        return found


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
