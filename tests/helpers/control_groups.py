"""Control groups as real machines and containers show them."""

from pathlib import Path

V2 = "1 1 0:1 {top} {at} rw - cgroup2 cgroup rw"
V1 = "1 1 0:1 {top} {at} rw - cgroup cgroup rw,{controllers}"


def machine(root: Path, groups: str, mounts: str, files: dict[str, str | dict[str, str]]) -> Path:
    """A tree of the files that tell: what the process is in, what is mounted where, and the groups' own files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n" + mounts)
    for folder, values in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in ({"cpu.max": values} if isinstance(values, str) else values).items():
            (root / folder / name).write_text(text)
    return root
