"""`python -m fork <command>`: the commands behind the Makefile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fork import branch as branch_module
from fork import changes as changes_module
from fork import clean as clean_module
from fork import develop, edit, pin_tests, series, upstream_tests
from fork import export as export_module
from fork import install as install_module
from fork import prove as prove_module
from fork import rebase as rebase_module
from fork import releases as releases_module
from fork import status as status_module
from fork import verify as verify_module
from fork import wheel as wheel_module
from fork.errors import ForkError, refused
from fork.git import require_version
from fork.lock import exclusive
from fork.project import find_root
from fork.source import Source


INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A command: its function, its arguments, whether it changes anything (then it holds the lock), and
    what goes on in a project after an interruption, if not itself.
    """

    name: str
    help: str
    run: Callable[[Path, argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    alone: bool = True
    resume: Callable[[Path], str] | None = None


def source_argument(parser: argparse.ArgumentParser) -> None:
    """`--source git|sdist|auto` and `--upstream`."""
    parser.add_argument("--source", type=Source, choices=list(Source), default=Source.AUTO, metavar="git|sdist|auto")
    parser.add_argument("--upstream", default="", metavar="VERSION", help="a release in patches/ (default: as it is)")


def apply(root: Path, arguments: argparse.Namespace) -> None:
    """The `apply` command."""
    series.apply(root, arguments.source, arguments.upstream)


def export(root: Path, arguments: argparse.Namespace) -> None:
    """The `export` command."""
    export_module.export(root)


def status(root: Path, arguments: argparse.Namespace) -> None:
    """The `status` command."""
    status_module.status(root)


def verify(root: Path, arguments: argparse.Namespace) -> None:
    """The `verify` command."""
    verify_module.verify(root)


def prove(root: Path, arguments: argparse.Namespace) -> None:
    """The `prove` command."""
    prove_module.prove(root, arguments.patch, arguments.source, arguments.upstream)


def prove_arguments(parser: argparse.ArgumentParser) -> None:
    """`--patch`, and what `apply` takes."""
    source_argument(parser)
    parser.add_argument("--patch", metavar="N", help="only this one: its number, or how its name begins")


def changes(root: Path, arguments: argparse.Namespace) -> None:
    """The `changes` command."""
    changes_module.write(root)


def new_patch(root: Path, arguments: argparse.Namespace) -> None:
    """The `new-patch` command."""
    edit.new_patch(root, arguments.message)


def edit_patch(root: Path, arguments: argparse.Namespace) -> None:
    """The `edit-patch` command."""
    edit.edit_patch(root, arguments.patch, arguments.message)


def drop_patch(root: Path, arguments: argparse.Namespace) -> None:
    """The `drop-patch` command."""
    edit.drop_patch(root, arguments.patch)


def message_argument(parser: argparse.ArgumentParser) -> None:
    """`--message`."""
    parser.add_argument("--message", default="", metavar="FILE", help="the patch's message (default: your editor)")


def number_argument(parser: argparse.ArgumentParser) -> None:
    """`--patch`."""
    parser.add_argument("--patch", default="", metavar="N", help="its number")


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    """`--patch` and `--message`."""
    number_argument(parser)
    message_argument(parser)


def rebase(root: Path, arguments: argparse.Namespace) -> None:
    """The `rebase` command."""
    rebase_module.start(root, arguments.to, arguments.source, arguments.upstream)


def rebase_arguments(parser: argparse.ArgumentParser) -> None:
    """`--to`, and what `apply` takes: here `--upstream` is the release to start from."""
    source_argument(parser)
    parser.add_argument("--to", default="", metavar="VERSION", help="the release to go to")


def rebase_continue(root: Path, arguments: argparse.Namespace) -> None:
    """The `rebase-continue` command."""
    rebase_module.proceed(root, arguments.drop, arguments.accept)


def rebase_continue_arguments(parser: argparse.ArgumentParser) -> None:
    """`--drop` and `--accept`."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--drop", default="", metavar="N", help="go on without this patch")
    choice.add_argument("--accept", default="", metavar="N", help="this patch belongs where it landed")


def rebase_abort(root: Path, arguments: argparse.Namespace) -> None:
    """The `rebase-abort` command."""
    rebase_module.abort(root)


def releases(root: Path, arguments: argparse.Namespace) -> None:
    """The `releases` command."""
    releases_module.releases(root, arguments.only)


def releases_arguments(parser: argparse.ArgumentParser) -> None:
    """The releases to try."""
    parser.add_argument("only", nargs="*", metavar="VERSION", help="these alone (default: all that are not known)")


def branch(root: Path, arguments: argparse.Namespace) -> None:
    """The `branch` command."""
    branch_module.branch(root, arguments.source, arguments.upstream)


def wheel(root: Path, arguments: argparse.Namespace) -> None:
    """The `wheel` command."""
    wheel_module.wheel(root, arguments.source, arguments.upstream)


def clean(root: Path, arguments: argparse.Namespace) -> None:
    """The `clean` command."""
    clean_module.clean(root)


def install(root: Path, arguments: argparse.Namespace) -> None:
    """The `install` command."""
    install_module.install(root, arguments.source, arguments.upstream)


def uninstall(root: Path, arguments: argparse.Namespace) -> None:
    """The `uninstall` command."""
    install_module.uninstall(root)


def test(root: Path, arguments: argparse.Namespace) -> None:
    """The `test` command."""
    develop.test(root, arguments.source, arguments.upstream, arguments.words)


def test_arguments(parser: argparse.ArgumentParser) -> None:
    """What `install` takes, and after `--` what is for pytest."""
    source_argument(parser)
    parser.add_argument("words", nargs="*", metavar="-- pytest's arguments")


def test_upstream(root: Path, arguments: argparse.Namespace) -> None:
    """The `test-upstream` command."""
    upstream_tests.test_upstream(root, arguments.source, arguments.upstream, arguments.jobs, arguments.words)


def test_upstream_arguments(parser: argparse.ArgumentParser) -> None:
    """What `test` takes, and `--jobs`."""
    test_arguments(parser)
    parser.add_argument("--jobs", type=int, default=develop.workers(), help="processes (default: one a core)")


def test_pins(root: Path, arguments: argparse.Namespace) -> None:
    """The `test-pins` command."""
    pin_tests.test_pins(root, arguments.source, arguments.upstream, arguments.part, arguments.words)


def test_pins_arguments(parser: argparse.ArgumentParser) -> None:
    """What `test` takes, and `--part`."""
    test_arguments(parser)
    parser.add_argument("--part", default="", metavar="K/N", help="only this part (default: all)")


def bench(root: Path, arguments: argparse.Namespace) -> None:
    """The `bench` command."""
    develop.bench(root, arguments.source, arguments.upstream, arguments.words)


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """What `install` takes, and after `--` what is for the benchmark."""
    source_argument(parser)
    parser.add_argument("words", nargs="*", metavar="-- the benchmark's arguments")


def lint(root: Path, arguments: argparse.Namespace) -> None:
    """The `lint` command."""
    develop.lint(root, arguments.source, arguments.upstream)


def demo(root: Path, arguments: argparse.Namespace) -> None:
    """The `demo` command."""
    develop.demo(root, arguments.source, arguments.upstream, arguments.model)


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """What `install` takes, and `--model`."""
    source_argument(parser)
    parser.add_argument("--model", default="", help="a hub id or a folder (default: the small one shipped here)")


COMMANDS = (
    Command("install", "into the research environment, editable", install, source_argument),
    Command("uninstall", "put the stock release back", uninstall),
    Command("test", "install, then pytest", test, test_arguments, alone=False),
    Command("test-pins", "pytest on the other pins", test_pins, test_pins_arguments, alone=False),
    Command("test-upstream", "upstream's tests, on the pin and patched", test_upstream, test_upstream_arguments),
    Command("lint", "ruff and mypy", lint, source_argument, alone=False),
    Command("demo", "install, then the demo", demo, demo_arguments, alone=False),
    Command("bench", "install, then the benchmark of attention", bench, bench_arguments, alone=False),
    Command("apply", "project -> checkout: upstream's source, overlay and patches", apply, source_argument),
    Command("export", "checkout -> project: overlay and patches", export),
    Command("status", "what is applied, edited, drifted", status, alone=False),
    Command("verify", "every pin applies and comes back byte for byte", verify),
    Command("prove", "without each patch, the test it names fails", prove, prove_arguments),
    Command("new-patch", "a patch of what you edited in transformers/", new_patch, message_argument),
    Command("edit-patch", "what you edited, into a patch that is there", edit_patch, edit_arguments),
    Command("drop-patch", "a patch, out of the series", drop_patch, number_argument),
    Command("rebase", "the series, carried to another release", rebase, rebase_arguments, resume=rebase_module.resume),
    Command("rebase-continue", "go on where a rebase stopped", rebase_continue, rebase_continue_arguments),
    Command("rebase-abort", "forget a rebase", rebase_abort),
    Command("releases", "the nearest series on every release", releases, releases_arguments),
    Command("changes", "docs/what_the_fork_changes.md, from the patches", changes),
    Command("branch", "the applied series as a plain git branch", branch, source_argument),
    Command("wheel", "wheel and sdist of the fork", wheel, source_argument),
    Command("clean", "remove what is derived", clean),
)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="fork", description=__doc__)
    parser.add_argument("--root", type=Path, help="the project (default: found from the current folder)")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        added = commands.add_parser(command.name, help=command.help)
        command.arguments(added)
        added.set_defaults(command=command)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = parse(words)
    command: Command = arguments.command
    try:
        require_version()
        root = arguments.root.resolve() if arguments.root else find_root(Path.cwd())
        with exclusive(root) if command.alone else nullcontext():
            command.run(root, arguments)
    except ForkError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        other = ForkError(f"{error}; nothing is lost", next=f"see to that, then make {command.name}")
        print(refused(str(error), arguments.root or Path.cwd()) or other, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = command.resume(arguments.root or Path.cwd()) if command.resume else command.name
        print(f"interrupted; nothing is lost\nnext:  make {again}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
