"""What is installed beside the package."""

from fastdhm.commands.doctor import software


def test_a_machine_without_a_compiler_is_told_how_to_get_one(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "apt-get install g++" in software._compiler().advice
