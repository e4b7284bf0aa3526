"""The README's Python lines run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line, arms, edits, dictionaries = re.findall(
        r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL
    )
    names: dict = {}
    exec(compile(line, "README.md", "exec"), names)
    assert names["report"].verdict.primary in ("NOT_REMOVED", "SUPPRESSED", "INCONCLUSIVE")
    assert (tmp_path / "runs/line/report.html").stat().st_size > 10_000
    capsys.readouterr()
    exec(compile(arms, "README.md", "exec"), names)
    assert (tmp_path / "runs/ft_m/arm.json").is_file()
    assert "grad_diff" in capsys.readouterr().out
    exec(compile(edits, "README.md", "exec"), names)
    assert names["log"].calls == [1] and names["log"].changed[0] > 0
    printed = capsys.readouterr().out
    assert all(s in printed for s in ("tpp", "random_forget", "forward passes"))
    exec(compile(dictionaries, "README.md", "exec"), names)
    assert {name for _, name in names["saes"]} == {"small", "wide"}
    assert "FVU" in capsys.readouterr().out


def test_every_command_of_the_readme_is_known_to_the_command_line():
    from workbench.cli import parsed

    blocks = re.findall(r"```sh\n(workbench .*?)```", README.read_text(), re.DOTALL)
    text = "".join(blocks).replace("gold-*", "gold-0 g1 g2")
    text = re.sub(r"torchrun .* -m workbench\.cli", "workbench", text)
    lines = text.strip().splitlines()
    assert len(lines) >= 14
    for line in lines:
        words = shlex.split(line)[1:]
        wanted = "verify" if words[:2] == ["audit", "verify"] else words[0]
        assert parsed(words).command == wanted
