"""``fastdhm doctor``: what this machine has and what fastdhm does with it."""

from fastdhm.cli.parser import Parser


def run(argv: list[str]) -> int:
    """``fastdhm doctor``; returns the exit status."""
    parser = Parser(
        "doctor",
        "One page about this machine, to read or to paste into a report: processors, memory, GPU, versions, what is "
        "missing and why, where data and caches lie, and a test of every op against its reference. Exit status 1: an "
        "op is wrong here.",
    )
    parser.add_argument("--data_dir", type=str | None, default=None, help="folder of the data sets, to look at")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    values = parser.parse(argv)
    from fastdhm.commands.doctor.report import doctor
    from fastdhm.system.paths import default_data_dir, expanded

    data_dir = expanded(values["data_dir"] or default_data_dir()).absolute()
    return doctor(data_dir, as_json=values["json"])
