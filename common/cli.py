"""What every script shares: how it reads flags, reports errors and exits.

Exit codes: 0 done, 1 an error that the user can fix (one line on stderr, no traceback), 2 wrong
usage, 3 done but some inputs were skipped, 130 stopped by Ctrl-C, SIGTERM or SIGHUP (a closed
terminal). The first of these signals stops the script, the second changes nothing, and the third
ends it at once.
"""

from __future__ import annotations

import errno
import inspect
import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from sdd_fiqa import __version__
from sdd_fiqa.errors import Stalled, UserError
from sdd_fiqa.files import scratch_name
from sdd_fiqa.names import printable
from sdd_fiqa.number import plain_number, whole_number
from sdd_fiqa.streams import open_streams

EXIT_DONE = 0
EXIT_USER_ERROR = 1
EXIT_USAGE = 2
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # only writing fails with these


def run_script(main: Callable[..., int]) -> None:
    """Parses the command line into `main`'s arguments, runs it and exits with its exit code.

    `--version` prints the version instead.

    Args:
        main: typed function; its docstring's Args section becomes `--help`. Returns an exit code.
    """
    if "WORLD_SIZE" not in os.environ:  # torchrun stops its processes itself
        _signals.take(signal.SIGTERM, signal.SIGHUP)
    _signals.take(signal.SIGINT)
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    show_messages()
    # Else tyro keeps some of the docstring's line breaks in the middle of a sentence.
    main.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", inspect.cleandoc(main.__doc__ or ""))
    module = getattr(sys.modules["__main__"], "__spec__", None)
    prog = None if module is None else f"python -m {module.name}"
    try:
        import tyro

        if "--version" in sys.argv[1:]:
            print(f"sdd-fiqa {__version__}")
            code = EXIT_DONE
        else:
            code = tyro.cli(main, prog=prog, registry=_flag_types())
        sys.stdout.flush()
    except Stalled as error:
        code = fail(str(error))
        sys.stdout.flush()
        os._exit(code)  # sys.exit would wait for the thread
    except UserError as error:
        code = fail(str(error))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        code = fail("this needs torch, which is not installed: pip install -r requirements.txt")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class, without importing torch
            raise
        reason = str(error).partition(". ")[0]
        code = fail(
            f"{reason}: use a smaller --batch-size where there is one, a GPU with more memory, or "
            "--device cpu"
        )
    except MemoryError:
        code = fail("this machine's memory is too small for what was asked; ask for less")
    except BrokenPipeError:  # `script | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_DONE
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for buffered text
        code = fail(f"an output cannot be written ({error.strerror})")
    except KeyboardInterrupt:
        code = fail("interrupted", EXIT_INTERRUPTED)
    _signals.end = code
    sys.exit(code)


def _flag_types() -> Any:
    """Reads numbers of flags as those of files; tyro would take 1_000."""
    from tyro import constructors

    registry = constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(flag: Any) -> Any:
        if flag.type not in (int, float):
            return None
        read = whole_number if flag.type is int else plain_number
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=flag.type.__name__.upper(),
            instance_from_str=lambda texts: read(texts[0]),
            is_instance=lambda value: isinstance(value, (int, flag.type)),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def check_seed(seed: int) -> None:
    """Raises UserError if a seed is not in the range that random generators take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: must be 0 or more" + (", below 2^63" if seed > 0 else ""))


def check_at_least(least: int, flags: Mapping[str, int | None]) -> None:
    """Raises UserError on a flag with a smaller number; None is no number."""
    for flag, value in flags.items():
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: must be {least} or more")


def is_count(text: str) -> bool:
    """Whether a text is a whole number, 0 or more, that fits into 64 bits."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def fail(message: str, code: int = EXIT_USER_ERROR) -> int:
    """Prints one `error:` line on stderr, below any progress bar, and returns the exit code."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):  # an exception left them open
            bar.close()
    line = " ".join(part.strip() for part in message.splitlines())
    print(f"error: {printable(line)}", file=sys.stderr)
    first_to_report()
    return code


def first_to_report() -> bool:
    """Whether no process of this torchrun on this machine has reported an error before."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        os.close(os.open(scratch_name(f"sdd-fiqa-error-{start}", os.getppid()), _NEW))
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


def note(message: str) -> None:
    """Prints one line on stderr, above the progress bar if there is one."""
    if "tqdm" not in sys.modules:  # so there is no bar; the import takes .05 s
        print(printable(message), file=sys.stderr)
        return
    from tqdm import tqdm

    tqdm.write(printable(message), file=sys.stderr)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def show_messages() -> None:
    """Shows the messages of sdd_fiqa as notes."""
    logger = logging.getLogger("sdd_fiqa")
    logger.handlers = [_Notes()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Signals:
    """Ctrl-C, SIGTERM and SIGHUP: counted, and the first one raised as KeyboardInterrupt.

    Attributes:
        count: how many came.
        held: the first one is not raised either.
        end: the exit code of a script that has done its work.
    """

    def __init__(self) -> None:
        self.count, self.held = 0, False
        self.end: int | None = None
        self._last = 0.0

    def take(self, *numbers: signal.Signals) -> None:
        """Handles these signals from now on, but not those that the caller ignores (nohup, &)."""
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if "WORLD_SIZE" in os.environ and self._last - before < 0.5:
            return  # torchrun repeats the terminal's Ctrl-C
        self.count += 1
        if self.end is not None:
            os._exit(self.end)
        if self.count > 2:
            os._exit(EXIT_INTERRUPTED)
        if self.count == 1 and not self.held:
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(2, b"\nstopping; a third Ctrl-C stops at once\n" if self.count == 2 else b"")


_signals = _Signals()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets the block end before the first Ctrl-C, SIGTERM or SIGHUP stops the script."""
    held, count = _signals.held, _signals.count
    _signals.held = True
    try:
        yield
    finally:
        _signals.held = held
    if not held and _signals.count > count == 0:
        raise KeyboardInterrupt


class StopRequest:
    """From now on Ctrl-C, SIGTERM and SIGHUP only set `asked`; a third one ends the script."""

    def __init__(self) -> None:
        _signals.held = True
        _signals.take(signal.SIGTERM, signal.SIGHUP)  # under torchrun too
        signal.signal(signal.SIGINT, _signals._arrived)  # also in a shell's background

    @property
    def asked(self) -> bool:
        """Whether the script must stop."""
        return _signals.count > 0
