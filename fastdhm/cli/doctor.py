"""``fastdhm doctor``: what this machine has and what fastdhm does with it."""

from fastdhm.cli.parser import Parser


def run(argv: list[str]) -> int:
    """``fastdhm doctor``; returns the exit status."""
    parser = Parser(
        "doctor",
        "Print a page about this machine, to read or to add to a report: processors, memory, GPU, versions, what is "
        "missing and why, where data and caches are, and a test of every op against its reference. The exit status is "
        "1 if an op is wrong here.",
    )
    parser.flag("--data_dir", "Folder of the data sets. (default: ~/.cache/fastdhm)")
    parser.switch("--json", "Print one JSON object instead.")
    values = parser.parse(argv)
    from fastdhm.commands.doctor.report import doctor
    from fastdhm.system.paths import default_data_dir, expanded

    data_dir = expanded(values["data_dir"] or default_data_dir()).absolute()
    return doctor(data_dir, as_json=values["json"])
