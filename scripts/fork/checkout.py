"""The checkout `transformers/`: what it holds, whose edits are in it, and how it moves.

Its state is in its own refs:

    refs/fork/base, applied, inputs     the pin's commit, the last commit of the series, the recipe's listing
    refs/fork/next/base, applied, inputs   the journal: where the checkout is being moved to
    refs/fork/rescue/<n>                what somebody had written into a checkout that was half moved
    refs/heads/masks                    the branch that is checked out, for a researcher's own commits
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fork.derive import ABSENT, diff
from fork.errors import ForkError
from fork.git import Git, GitDiedError
from fork.project import SUBMODULE, Project
from fork.source import git_dir


BRANCH = "refs/heads/masks"
STATE = ("base", "applied", "inputs")

# What Python and pip leave beside the sources; an sdist brings no .gitignore.
IGNORED = "__pycache__/\n*.py[cod]\n*.egg-info/\n"

# Git's own locks, which a killed git leaves behind.
LOCKS = ("index", "HEAD", "config", "packed-refs", "shallow", "ORIG_HEAD")
# What git writes into the lock of a worktree that it is still making.
UNFINISHED = ("", "initializing")

BUSY = {
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
}


@dataclass(frozen=True)
class State:
    """Where a checkout is, or is being moved to."""

    base: str
    applied: str
    inputs: str


@dataclass(frozen=True)
class Edits:
    """What a researcher has done since the series was applied."""

    commits: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Untracked files stay where they are whatever happens, so they do not count."""
        return bool(self.commits or self.changed)

    def __str__(self) -> str:
        return "\n".join(f"  {line}" for line in (*self.commits, *self.changed))


@dataclass(frozen=True)
class Checkout:
    """A checkout: the project's, or one that is being built to become it."""

    project: Project
    folder: Path

    @classmethod
    def of(cls, project: Project) -> Checkout:
        """The one in its place."""
        return cls(project, project.checkout)

    @property
    def git(self) -> Git:
        """Git in the checkout, and never by mistake in the project around it."""
        return Git(self.folder, {"GIT_CEILING_DIRECTORIES": str(self.folder.parent)})

    def exists(self) -> bool:
        """Whether it is there; something else in its place is an error."""
        folder = self.folder
        if (folder / ".git").exists() and self.git.run("rev-parse", "--git-dir", check=False).returncode == 0:
            return True
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise ForkError(
                f"{folder} is no git repository, expected a whole checkout, an empty folder or nothing",
                next=f"mv '{folder}' '{folder}.old', then make apply",
            )
        return False

    def state(self, prefix: str = "refs/fork") -> State | None:
        """The recorded state, or None if any part of it is missing."""
        found = self._refs(prefix)
        return State(**found) if len(found) == len(STATE) else None

    def inputs(self) -> str:
        """The listing of the recipe that is applied."""
        state = self.state()
        return self.git.run("cat-file", "blob", state.inputs).stdout if state else ""

    def _refs(self, prefix: str) -> dict[str, str]:
        """What the refs of a state name, as far as they are there."""
        names = [f"{prefix}/{name}" for name in STATE]
        told = self.git.out("for-each-ref", "--format=%(refname) %(objectname)", *names)
        found = dict(line.split() for line in told.splitlines())
        return {name.rpartition("/")[2]: found[name] for name in names if name in found}

    def _ref(self, name: str) -> str | None:
        return self.git.run("rev-parse", "--verify", "--quiet", name, check=False).stdout.strip() or None

    def head(self) -> str:
        """The commit that is checked out."""
        head = self.git.commit("HEAD")
        if head is None:
            raise ForkError(
                f"{self.folder} has no commit checked out, expected the pin or the series",
                next=f"git submodule update --init {SUBMODULE}, or mv '{SUBMODULE}' aside; then make apply",
            )
        return head

    def on_branch(self) -> bool:
        """Whether HEAD is the branch of the series."""
        return self.git.run("symbolic-ref", "--quiet", "HEAD", check=False).stdout.strip() == BRANCH

    def require_calm(self) -> None:
        """Refuse while a rebase or a merge is going on."""
        folder = git_dir(self.git)
        for name, what in BUSY.items():
            if (folder / name).exists():
                raise ForkError(
                    f"a {what} is going on in {SUBMODULE}/, expected it to be over",
                    next=f"git -C {SUBMODULE} {what} --continue (or --abort)",
                )

    def stands_on(self, commit: str) -> bool:
        """Whether what is checked out is this commit or has it below."""
        return self._above("HEAD", commit)

    def edits(self, state: State | None) -> Edits:
        """Commits on HEAD or on the branch that the series does not have, and files that differ from HEAD."""
        known = [f"^{commit}" for commit in (state and state.applied, state and state.base) if commit]
        tips = [tip for tip in (self.head(), self.git.commit(BRANCH)) if tip]
        bases = self.git.out("for-each-ref", "--format=^%(objectname)", "refs/fork/bases").split()
        commits = self.git.out("log", "--format=%h %s", "--no-show-signature", *tips, *known, *bases)
        changed = self.changed()
        untracked = self.git.lines("ls-files", "-z", "--others", "--exclude-standard")
        return Edits(tuple(commits.splitlines()), tuple(changed), tuple(untracked))

    def changed(self) -> list[str]:
        """The tracked files that differ from HEAD, in the index or on disk."""
        told = self.git.lines("status", "--porcelain", "-z", "--no-renames", "--untracked-files=no")
        return [line[3:] for line in told]

    def require_free(self, target: str) -> None:
        """Refuse to move onto untracked files that hold something else."""
        new = [entry for entry in diff(self.git, "HEAD", target) if entry.old == ABSENT]
        taken = [entry.path for entry in new if not self._holds(entry.path, (None, entry.new))]
        if taken:
            raise ForkError(
                "these files in transformers/ are yours, and the series has files of the same names:\n"
                + "\n".join(f"  {path}" for path in taken),
                next=f"mv them aside in {SUBMODULE}/, then make apply",
            )
        for entry in new:  # the same content: git would still refuse to replace them
            (self.folder / entry.path).unlink(missing_ok=True)

    def _holds(self, path: str, blobs: Iterable[str | None]) -> bool:
        """Whether a path holds one of these blobs; None stands for nothing there."""
        file = self.folder / path
        if not file.is_symlink() and not file.exists():
            return None in blobs
        if file.is_symlink() or not file.is_file():
            return False
        return self.git.out("hash-object", "--no-filters", "--", str(file.absolute())) in blobs

    def move(self, to: State) -> None:
        """Put the checkout on another commit, in one journaled step. There are no edits in it."""
        self.require_free(to.applied)
        self._journal(to)
        try:
            self.git.run("checkout", "--quiet", "--no-overwrite-ignore", "-B", "masks", to.applied, "--")
        except ForkError as error:
            if isinstance(error, GitDiedError):
                tidy(self.project)
            self._step_back(to)
            raise
        self._settle(to)

    def _step_back(self, to: State) -> None:
        """Undo a move that failed, by a full disk for example. If that fails too, the journal stays."""
        for entry in diff(self.git, "HEAD", to.applied):
            if entry.old == ABSENT:
                (self.folder / entry.path).unlink(missing_ok=True)
        if self.git.run("reset", "--quiet", "--hard", "HEAD", check=False).returncode == 0:
            self._close_journal()

    def adopt(self, to: State) -> None:
        """Take the files as they are for a commit that holds exactly them."""
        self._journal(to)
        self.git.run("update-ref", "--no-deref", BRANCH, to.applied)
        self.git.run("symbolic-ref", "HEAD", BRANCH)
        self.git.run("read-tree", to.applied)
        self.git.run("update-index", "-q", "--refresh", check=False)
        self._settle(to)

    def _journal(self, to: State) -> None:
        self.refs(*(f"update refs/fork/next/{name} {getattr(to, name)}" for name in STATE))

    def _settle(self, to: State) -> None:
        """The move is done: record it, and close the journal."""
        self.record(to)
        self._close_journal()

    def _close_journal(self) -> None:
        self.refs(*(f"delete refs/fork/next/{name}" for name in self._refs("refs/fork/next")))

    def record(self, state: State) -> None:
        """Write the state of a checkout that is being built."""
        self.refs(*(f"update refs/fork/{name} {getattr(state, name)}" for name in STATE))

    def refs(self, *commands: str) -> None:
        """Change refs in one transaction."""
        if commands:
            self.git.run("update-ref", "--stdin", input="".join(f"{command}\n" for command in commands))

    def recover(self) -> None:
        """Finish a move that was cut short. What somebody wrote into it meanwhile goes to a rescue ref."""
        to, was = self.state("refs/fork/next"), self.state()
        if to is None:
            self._close_journal()
            return
        head = self.head()
        if head != to.applied and self._above(head, to.applied):
            self._settle(to)  # moved, and then committed to
            return
        before = was.applied if was else to.base
        strange = self._strange_files(before, to.applied)
        if strange or self._own_commits(before, to):
            self._rescue(head, strange)
        self.git.run("checkout", "--quiet", "--force", "-B", "masks", to.applied, "--")
        self._settle(to)
        print(f"finished a move of {SUBMODULE}/ that had been cut short")

    def _above(self, commit: str, ancestor: str) -> bool:
        return self.git.run("merge-base", "--is-ancestor", ancestor, commit, check=False).returncode == 0

    def _own_commits(self, before: str, to: State) -> bool:
        """Whether HEAD or the branch holds commits of the researcher's."""
        tips = [tip for tip in (self.head(), self.git.commit(BRANCH)) if tip]
        bases = self.git.out("for-each-ref", "--format=^%(objectname)", "refs/fork/bases").split()
        return bool(self.git.out("rev-list", *tips, f"^{before}", f"^{to.applied}", f"^{to.base}", *bases))

    def _strange_files(self, before: str, after: str) -> list[str]:
        """Files whose content neither commit has, nor git half-way through writing one."""
        entries = {entry.path: (entry.old, entry.new) for entry in diff(self.git, before, after)}
        strange = []
        dirty = self.git.lines("diff-index", "-z", "--name-only", "--no-renames", before, "--")
        for path in sorted({*entries, *dirty}):
            blobs = entries.get(path) or (self._blob(before, path),) * 2
            known = [None if blob in (None, ABSENT) else blob for blob in blobs]
            if not self._holds(path, (None, *known)) and not self._half_written(path, known):
                strange.append(path)
        return strange

    def _blob(self, commit: str, path: str) -> str | None:
        return self._ref(f"{commit}:{path}")

    def _half_written(self, path: str, blobs: Iterable[str | None]) -> bool:
        """Whether the file is the beginning of one of these blobs: git was killed while it wrote."""
        file = self.folder / path
        if not file.is_file() or file.is_symlink():
            return False
        held = file.read_bytes()
        return any(self.git.run_bytes("cat-file", "blob", blob).stdout.startswith(held) for blob in blobs if blob)

    def _rescue(self, head: str, files: list[str]) -> None:
        """Keep files and commits under a ref of their own, and say so."""
        with self.project.scratch() as scratch:
            index = self.git.having(GIT_INDEX_FILE=scratch / "rescue-index")
            index.run("read-tree", head)
            index.run("add", "--force", "--", *files) if files else None
            tree = index.out("write-tree")
        dates = {f"GIT_{who}_DATE": "946684800 +0000" for who in ("AUTHOR", "COMMITTER")}
        author = self.git.having(GIT_AUTHOR_NAME="rescue", GIT_AUTHOR_EMAIL="rescue@mask-patterns.invalid", **dates)
        commit = author.out("commit-tree", "-p", head, "-m", "Rescued from a move that was cut short", tree)
        number = len(self.git.out("for-each-ref", "refs/fork/rescue").splitlines()) + 1
        parents = [tip for tip in (self.git.commit(BRANCH),) if tip and tip != head]
        for offset, kept in enumerate([commit, *parents]):
            ref = f"refs/fork/rescue/{number + offset}"
            self.git.run("update-ref", ref, kept)
            print(f"rescued: {', '.join(files) or 'commits'} -> {ref} (git -C {SUBMODULE} show {ref})")


def tidy(project: Project) -> None:
    """Remove the locks that a killed run's git left. The caller knows that it was killed."""
    if not is_gitlink_hidden(project):  # it may have been killed while it did that
        (git_dir(project.git) / "index.lock").unlink(missing_ok=True)
    checkout = Checkout.of(project)
    if not checkout.exists():
        return
    folder = git_dir(checkout.git)
    left = [folder / f"{name}.lock" for name in LOCKS]
    left += folder.glob("worktrees/*/*.lock")  # that of a rebase
    left += [lock for lock in folder.glob("worktrees/*/locked") if lock.read_text().strip() in UNFINISHED]
    left += [*(folder / "refs" / "fork").rglob("*.lock"), folder / "refs" / "heads" / "masks.lock"]
    for lock in left:
        lock.unlink(missing_ok=True)


def hide_gitlink(project: Project) -> None:
    """Keep the patched commit out of the project's own commits (DESIGN 4.1, rule 8).

    `ignore = all` hides it from `git status` only; with this bit `git add -A` and `git commit -a` do not
    look at the submodule either.
    """
    if not is_gitlink_hidden(project):
        project.git.run("update-index", "--skip-worktree", SUBMODULE)


def is_gitlink_hidden(project: Project) -> bool:
    """Whether that is done, or there is no gitlink to hide."""
    return not project.git.out("ls-files", "-v", "--", SUBMODULE).startswith("H")


def prepare(repository: Git) -> None:
    """Settings that the user's own git needs in the checkout to leave its files as they are."""
    for key, value in (("core.autocrlf", "false"), ("core.fileMode", "true"), ("core.symlinks", "true")):
        if repository.run("config", "--local", key, check=False).stdout.strip() != value:
            repository.run("config", "--local", key, value)
    exclude = git_dir(repository) / "info" / "exclude"
    if not exclude.exists():
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text(IGNORED)
