"""What lands in a rank's log file and what reaches the console, seen from outside a process."""

import subprocess
import sys
import textwrap

import pytest

from megatron_ngpt.monitor.logs import log_path


def run(tmp_path, block: str, before: str = "", after: str = "") -> tuple[subprocess.CompletedProcess, str]:
    """Run `block` inside configure_logging of rank 3; the finished process and the log file's text."""
    script = "\n".join(
        [
            "import logging, os, sys, warnings",
            "from pathlib import Path",
            "from megatron_ngpt.monitor.logs import configure_logging",
            before,
            f"with configure_logging(Path({str(tmp_path)!r}), 3) as console:",
            textwrap.indent(textwrap.dedent(block), "    "),
            after,
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done, log_path(tmp_path, 3).read_text()


def test_everything_goes_to_the_file_but_the_console_stream(tmp_path):
    done, text = run(
        tmp_path,
        """
        print("a print")
        print("an error print", file=sys.stderr)
        os.system("echo from below Python")
        logging.getLogger("somewhere").info("an info message")
        warnings.warn("a warning")
        print("for the person", file=console)
        """,
        after="print('after the run')",
    )
    assert done.stdout == "for the person\nafter the run\n"
    assert done.stderr == ""
    for part in ["a print", "an error print", "below Python", "INFO somewhere: an info message", "a warning", "rank 3 on "]:
        assert part in text
    assert "for the person" not in text and "after the run" not in text


@pytest.mark.parametrize("imported", ["before", "block"])
def test_deepspeeds_logger_goes_to_the_file_whenever_it_was_imported(tmp_path, imported):
    say = "logger.warning('a word from DeepSpeed')"
    parts = {"before": "", "block": say}
    parts[imported] = "from deepspeed.utils.logging import logger\n" + parts[imported]
    done, text = run(tmp_path, **parts)
    assert "a word from DeepSpeed" in text
    assert "a word from DeepSpeed" not in done.stdout + done.stderr


def test_an_exception_is_logged_with_its_traceback_and_goes_on(tmp_path):
    done, text = run(tmp_path, "raise ValueError('the reason')")
    assert done.returncode == 1
    assert "Traceback" in text and "ValueError: the reason" in text and "rank 3 failed" in text
    assert "ValueError: the reason" in done.stderr


def test_a_second_start_appends(tmp_path):
    run(tmp_path, "print('first')")
    _, text = run(tmp_path, "print('second')")
    assert text.index("first") < text.index("second")


def test_a_full_disk_is_no_reason_to_fail(tmp_path):
    done, text = run(
        tmp_path,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        for number in range(100):
            logging.getLogger("somewhere").info("message %d", number)
        print("for the person", file=console)
        """,
        after="print('after the run')",
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stdout.splitlines() == ["for the person", "after the run"]
    assert len(text) <= 2000
