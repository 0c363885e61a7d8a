"""The result of a run as a table for people and as one JSON document for programs."""

import math

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drust.bench.machine_facts import MachineFacts
from drust.bench.rows import Aim, Row
from drust.bench.stats import Summary
from drust.units import format_bytes, format_seconds

WIDTH_MIN = 120  # a table cut to a pipe's 80 columns would lose what it is for

_SHORT_KINDS = {
    "read_requests": "read",
    "write_requests": "write",
    "free_messages": "free",
    "submit_messages": "submit",
    "complete_messages": "complete",
    "replica_messages": "replicate",
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `drust bench micro`. Times are in seconds."""

    machine: MachineFacts
    quick: bool
    seconds: float
    rows: list[Row]


def to_json(report: Report) -> str:
    """One JSON document; each row has its aim's verdict as `met` beside its fields."""
    plain = msgspec.to_builtins(report)
    for fields, row in zip(plain["rows"], report.rows, strict=True):
        fields["met"] = row.met
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def show(report: Report, console: Console) -> None:
    """Prints the machine, the table, the notes and how to read it."""
    facts = report.machine
    console.print(
        f"{facts.processor}, {facts.cores} cores, {format_bytes(facts.memory_available_bytes)} available; "
        f"Linux {facts.kernel}, Python {facts.python}, numpy {facts.numpy}",
        highlight=False,
    )
    commit = f", commit {facts.commit}" if facts.commit else ""
    mode = ", quick: expect wider spreads" if report.quick else ""
    if facts.load > facts.cores / 2:
        mode += f"; load {facts.load:.1f} when it began: others were busy here"
    console.print(f"{facts.date}{commit}, {format_seconds(report.seconds)}{mode}", highlight=False)
    console.print(_table(report.rows))
    for row in report.rows:
        for note in row.notes:
            console.print(Text(f"{row.name}: {note}", style="dim"), highlight=False)
    console.print(
        "Times are medians for one operation, +- the median deviation, x the repetitions; ratios are\n"
        "medians over pairs of samples taken in turns, with p10..p90. Messages: requests for one operation.",
        style="dim",
        highlight=False,
    )


def console_for(console: Console | None = None) -> Console:
    """A console wide enough for the table, also where the output goes to a file."""
    console = console or Console()
    if not console.is_terminal and console.width < WIDTH_MIN:
        return Console(width=WIDTH_MIN)
    return console


def _table(rows: list[Row]) -> Table:
    table = Table(show_lines=False, padding=(0, 1), pad_edge=False)
    table.add_column("operation", overflow="fold", min_width=40)
    table.add_column("drust", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("aim", no_wrap=True)
    table.add_column("met", no_wrap=True)
    table.add_column("messages", no_wrap=True)
    for row in rows:
        if row.skipped:
            table.add_row(
                _operation(row),
                Text(f"not run: {row.skipped}", style="yellow"),
                "",
                "",
                aim_text(row),
                "",
                "",
            )
            continue
        table.add_row(
            _operation(row),
            summary_text(row, row.ours),
            summary_text(row, row.limit),
            ratio_text(row),
            aim_text(row),
            verdict(row),
            messages_text(row.messages),
        )
    return table


def _operation(row: Row) -> Text:
    text = Text(row.operation)
    if row.limit_name:
        text.append(f"\n  / {row.limit_name}", style="dim")
    text.append(f"\n  {row.name}", style="dim italic")
    return text


def summary_text(row: Row, summary: Summary | None) -> str:
    """`12.3 us`, `+-4% x31`, and the bandwidth where the row has a payload; empty for no summary."""
    if summary is None:
        return ""
    text = f"{format_seconds(summary.median)}\n+-{_spread(summary)} x{summary.repetitions}"
    if row.bytes and summary.median > 0:
        text += f"\n{format_bytes(int(row.bytes / summary.median))}/s"
    return text


def _spread(summary: Summary) -> str:
    """The deviation in per cent of the median."""
    return f"{100 * summary.mad / summary.median:.2g}%" if summary.median else "0%"


def ratio_text(row: Row) -> str:
    """The ratio and its p10 to p90; of bandwidths where the aim is one."""
    ratio = row.ratio
    if ratio is None:
        return ""
    values = [ratio.median, ratio.p10, ratio.p90]
    if row.aim is not None and row.aim.kind == "bandwidth":
        values = [1 / ratio.median, 1 / ratio.p90, 1 / ratio.p10]
    middle, low, high = (_number(value) for value in values)
    return f"{middle}x\n{low}..{high}"


def _number(value: float) -> str:
    """Three or four significant digits, more near 1 where a per cent matters."""
    if 0.9 <= value < 1.1:
        return f"{value:.3f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def aim_text(row: Row) -> str:
    """`<= 1.5x`, `>= 0.85x bandwidth`, `<= 100 us`; empty without an aim."""
    aim: Aim | None = row.aim
    if aim is None:
        return ""
    if aim.kind == "seconds":
        return f"<= {format_seconds(aim.bound)}"
    if aim.kind == "bandwidth":
        return f">= {aim.bound:g}x\nbandwidth"
    return f"<= {aim.bound:g}x"


def verdict(row: Row) -> Text:
    """Whether the aim was met, as a word."""
    if row.met is None:
        return Text("")
    return Text("yes", style="green") if row.met else Text("no", style="red")


def messages_text(messages: dict[str, float] | None) -> str:
    """`1 read, 0.02 free`; 0 for none; empty where nobody counted."""
    if messages is None:
        return ""
    if not messages:
        return "0"
    return "\n".join(f"{count:.2g} {_SHORT_KINDS.get(kind, kind)}" for kind, count in messages.items())
