"""Reading what /proc says."""

import pytest

from aiotimer.evidence import proc


@pytest.mark.parametrize(
    ("text", "machine", "words"),
    [
        ("202 0x7f 0x189", "x86_64", "futex"),
        ("98 0x7f 0x189", "aarch64", "futex"),
        ("230 0x0", "x86_64", "clock_nanosleep"),
        ("9999 0x0", "x86_64", "system call 9999"),
        ("0 0x0", "sparc", "system call 0"),
        ("-1 0x7ffe 0x7f", "x86_64", "no system call"),
        ("running", "x86_64", "running"),
        ("", "x86_64", ""),
        ("²", "x86_64", "²"),
    ],
)
def test_the_name_of_a_system_call(text: str, machine: str, words: str) -> None:
    assert proc.syscall_name(text, machine) == words
