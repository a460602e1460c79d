"""The ``tilesmith`` command. It alone needs typer and rich, which come with ``pip install 'tilesmith[cli]'``."""

from __future__ import annotations

import sys
import warnings
import zlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

# What the library raises for a user's mistake or a broken file; everything else is a fault of ours and shows where.
_MISTAKES = (ValueError, OSError, KeyError, ImportError, EOFError, zlib.error, MemoryError, FloatingPointError)


def main() -> None:
    """What the console script runs."""
    try:
        import rich
        import typer  # noqa: F401
    except ImportError:
        sys.exit("error: the tilesmith command needs typer and rich: pip install 'tilesmith[cli]'")
    rich.reconfigure(stderr=True)  # where progress bars go; what a command finds out is printed to stdout
    try:
        make_app()()
    except KeyboardInterrupt:  # while torch is imported
        sys.exit(130)


def make_app() -> typer.Typer:
    """All commands. What the library refuses becomes a line on stderr and exit code 1, wrong usage is 2, Ctrl-C 130."""
    import typer
    from typer.core import TyperGroup

    from ..autotune.resolve import mode
    from . import cache, doctor, tune, word2vec

    class Commands(TyperGroup):
        def invoke(self, ctx: Any) -> Any:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning  # type: ignore[assignment]
                try:
                    with mode("lookup"):  # whatever the environment says: commands tune what they are told to
                        return super().invoke(ctx)
                except BrokenPipeError:  # who read our output has seen enough: typer ends quietly
                    raise
                except KeyboardInterrupt:
                    print("interrupted", file=sys.stderr)
                    raise typer.Exit(130) from None
                except _MISTAKES as error:
                    print(f"error: {_line_of(error)}", file=sys.stderr)
                    raise typer.Exit(1) from None

    app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    app.add_typer(word2vec.app, name="word2vec")
    app.command()(doctor.doctor)
    commands: list[Any] = [tune.plan, tune.tune, cache.explain, cache.coverage, cache.verify, cache.diff, cache.merge]
    for command in (*commands, cache.compact, cache.export, cache.clear):
        app.command(rich_help_panel="Autotuner")(command)
    app.command("record", rich_help_panel="Autotuner", context_settings={"ignore_unknown_options": True})(tune.record_)

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"tilesmith {version('tilesmith')}")
            raise typer.Exit

    @app.callback()
    def tilesmith(
        show: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        """Kernels and models of tilesmith, from the command line."""

    return app


def _line_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # its own text is in quotes
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _show_warning(message: Any, category: Any, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
