"""`python -m transformers.mask_patterns`: pictures from a shell, and errors without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from transformers.mask_patterns.__main__ import main


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_it_prints_the_canonical_text_and_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sink( 1)|sliding_window(width = 2)", "--length", "4"]) == 0
    assert lines(capsys) == [
        "sink(1) | sliding_window(2)",
        "",
        "q\\k 0 1 2 3",
        "  0 ■ ⬚ ⬚ ⬚",
        "  1 ■ ■ ⬚ ⬚",
        "  2 ■ ■ ■ ⬚",
        "  3 ■ ⬚ ■ ■",
    ]


def test_data_per_token_comes_in_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["causal & document", "--input", "document_ids=0,0/0,1"]) == 0
    rows = [["row 0", "q\\k 0 1", "  0 ■ ⬚", "  1 ■ ■"], ["row 1", "q\\k 0 1", "  0 ■ ⬚", "  1 ⬚ ■"]]
    assert lines(capsys)[2:] == [*rows[0], "", *rows[1]]


def test_data_per_row_is_one_number_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefix_lm", "--length", "2", "--input", "prefix_lengths=0/2"]) == 0
    assert [line for line in lines(capsys) if line.startswith("  0")] == ["  0 ■ ⬚", "  0 ■ ◆"]


def test_a_tree_of_one_node_is_a_line_of_one_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tree", "--length", "2", "--input", "tree_prefix=1", "--input", "tree_parents=-1"]) == 0
    assert lines(capsys)[2:] == ["q\\k 0 1", "  0 ■ ⬚", "  1 ■ ■"]


def test_data_of_one_token_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["document", "--input", "document_ids=7"]) == 0
    assert lines(capsys)[2:] == ["q\\k 0", "  0 ■"]


def test_tokens_say_the_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["causal", "--tokens", "ab  c"]) == 0
    assert lines(capsys)[2:] == ["    a", "q\\k b c", " ab ■ ⬚", "  c ■ ■"]


def test_heads_are_those_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["causal", "--length", "1", "--heads", "2"]) == 0
    assert "head" not in "".join(lines(capsys))  # they look alike


def test_a_mapping_by_layers_is_read_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['{"0-1": "causal", "default": "sliding_window(1)"}', "--length", "2"]) == 0
    assert [line for line in lines(capsys) if line.startswith(("layers", "default", "  1"))] == [
        "layers 0-1: causal",
        "  1 ■ ■",
        "default: sliding_window(1)",
        "  1 ⬚ ■",
    ]


def test_files_are_written(tmp_path: Path) -> None:
    files = tmp_path / "a.svg", tmp_path / "b.png"
    assert main(["causal", "--svg", str(files[0]), "--png", str(files[1])]) == 0
    assert files[0].read_text(encoding="utf-8").startswith("<svg")
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_a_syntax_error_has_its_caret_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["causal & dokument"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.splitlines()[:3] == ["this is not a mask pattern:", "  causal & dokument", "           ^"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["native"], "`pattern`: got native"),
        (['{"0": "causal"'], "this is not a JSON object"),
        (["document"], "`document_ids`: got nothing"),
        (["causal", "--input", "document_ids=0,1"], "`mask_inputs`: got ['document_ids']"),
        (["document", "--input", "document_ids=0", "--input", "document_ids=1"], "`--input`: got document_ids more"),
        (["causal", "--length", "0"], "`length`: got 0"),
        (["causal", "--length", "3", "--tokens", "a b"], "`tokens`: got 2 of them"),
        (["causal", "--svg", "mask.txt"], "`path`: got 'mask.txt'"),
    ],
)
def test_what_is_wrong_is_said(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(message)


@pytest.mark.parametrize("data", ["document_ids", "document_ids=", "document_ids=0,x", "document_ids=0,1/0"])
def test_data_that_is_no_numbers_is_refused(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["document", "--input", data])
    assert "expected NAME=1,2,3" in capsys.readouterr().err


def test_it_runs_as_a_module_and_loads_no_models() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['causal', '--length', '1']\n"
        "try: runpy.run_module('transformers.mask_patterns', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'transformers.modeling_utils', 'transformers.models.qwen3'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "  0 ■"
