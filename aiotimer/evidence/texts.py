"""A formatter of stacks and tasks, for people.

Its texts lie beside a record as ``stacks.txt`` and ``tasks.txt``.

The law of this file: whatever a worker wrote, what is not printable is escaped.
"""

from __future__ import annotations

from typing import Any


def stacks_text(stacks: list[dict[str, Any]], raw: str) -> str:
    """Return the stacks of threads, the innermost frame last.

    Args:
        stacks: of a record.
        raw: what the worker itself wrote; shown if it could not be read.
    """
    if not stacks:
        return _printable(raw)
    return "\n".join(_stack(one) for one in stacks)


def tasks_text(tasks: list[dict[str, Any]], left_out: int = 0) -> str:
    """Return what tasks wait for, the innermost frame last.

    Args:
        tasks: of a record.
        left_out: how many further tasks there was no room or no time for in the answers of the loops.
    """
    blocks = [_task(task) for task in tasks]
    if left_out:
        blocks.append(f"and {left_out} tasks more: there was no room, or no time, for them\n")
    return "\n".join(blocks)


def _stack(one: dict[str, Any]) -> str:
    notes = [
        one["state"],
        "holds the GIL" if one["gil"] else "",
        f"in {one['syscall']}" if one["syscall"] else "",
    ]
    known = ", ".join(note for note in notes if note)
    number = f"tid {one['tid']}" if one["tid"] else f"0x{one['ident']:x}"
    title = f"Thread {one['thread'] or '?'} ({number}){': ' + known if known else ''}"
    native = [f"  {name}" for name in one["native"]]
    return _lines([title, *_frames(one["frames"]), *native])


def _task(task: dict[str, Any]) -> str:
    many = f" and {task['count'] - 1} more like it" if task["count"] > 1 else ""
    own = " (of the timer's block)" if task["own"] else ""
    title = f"Task {task['name']}{many}{own}, {task['loop']} in thread {task['thread']}"
    waits = f"  waits for {task['waits_for']}" if task["waits_for"] else "  runs, or is about to"
    return _lines([title, *_frames(task["frames"]), waits])


def _frames(frames: list[list[Any]]) -> list[str]:
    return [f'  File "{file}", line {line}, in {function}' for file, line, function in frames]


def _lines(lines: list[str]) -> str:
    return "".join(_printable(line.replace("\n", "\\n")) + "\n" for line in lines)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    keep = "\n"
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
