"""Checksums of JSON, tensor files and folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from csaligner.checks import InputError
from csaligner.files import write_json
from csaligner.integrity import (
    ErrorContext,
    check_checksums,
    load_tensors,
    open_seal,
    read_checksums,
    read_sealed,
    save_tensors,
    write_checksums,
    write_sealed,
)

OWNER = ErrorContext("thing", "make it again")
VALUE: dict[str, Any] = {"a": 1.5, "b": ["x", None], "c": {"d": (1, 2)}}


def read(path: Path) -> dict[str, Any]:
    return open_seal(path, json.loads(path.read_text(encoding="utf-8")), OWNER)


def test_sealed_json_comes_back_and_tells_of_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    assert read(path) == {"a": 1.5, "b": ["x", None], "c": {"d": [1, 2]}}
    write_sealed(path, read(path))  # it can be written again
    assert read(path)["c"] == {"d": [1, 2]}
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(InputError, match=r"^thing: .*a\.json.*make it again$"):
        read(path)


def test_json_without_a_seal_is_read_and_no_mapping_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert read(tmp_path / "a.json") == {"a": 1}
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(InputError, match="SHA-256"):
        read(tmp_path / "a.json")


def test_sealed_json_is_parsed_and_every_fault_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    def parse(value: dict[str, Any]) -> int:
        return int(value["a"])

    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"^thing: .*a\.json"):
        read_sealed(path, OWNER, parse, made_by="make")
    write_sealed(path, {"format_version": 1, "a": "7"})
    assert read_sealed(path, OWNER, parse, version=1) == 7
    with pytest.raises(InputError, match=r"^thing: .*a\.json.*format.*1.*2.*make it again$"):
        read_sealed(path, OWNER, parse, version=2)
    for text, why in (("{", "Expecting"), ("[]", "got a list"), ('{"b": 1}', "'a' is missing"), ('{"a": "x"}', "x")):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"^thing: .*a\.json.*{why}.*make it again$"):
            read_sealed(path, OWNER, parse)


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "turned": torch.randn(4, 3).T,
        "empty": torch.empty(0, 5),
        "number": torch.tensor(2),
        "yes": torch.tensor([True, False]),
    }
    save_tensors(tensors, tmp_path / "t.safetensors")
    found = load_tensors(tmp_path / "t.safetensors", OWNER)
    assert set(found) == set(tensors)
    assert all(found[name].equal(tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize("change", [{"a": torch.zeros(2)}, {"b": torch.ones(2)}, {"a": torch.ones(1, 2)}])
def test_other_values_names_and_shapes_are_told(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors({"a": torch.ones(2)}, path)
    header = path.read_bytes()
    digest = header[header.index(b'"sha256":"') + 10 :][:64].decode()
    save_file(change, path, metadata={"sha256": digest})
    with pytest.raises(InputError, match="SHA-256"):
        load_tensors(path, OWNER)


def test_tensors_without_a_digest_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert load_tensors(tmp_path / "t.safetensors", OWNER)["a"].equal(torch.ones(2))
    save_tensors({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert load_file(tmp_path / "t.safetensors")["a"].equal(torch.ones(2))  # world-readable


def test_checksums_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    small, large = tmp_path / "in" / "small", tmp_path / "large"
    small.write_bytes(b"12")
    large.write_bytes(b"1234")
    assert read_checksums(tmp_path, OWNER) is None
    check_checksums(tmp_path, OWNER)
    write_checksums(tmp_path, version=[1, 2])
    found = read_checksums(tmp_path, OWNER)
    assert found is not None
    assert (sorted(found["files"]), found["version"]) == (["in/small", "large"], [1, 2])
    check_checksums(tmp_path, OWNER)
    large.write_bytes(b"1235")
    check_checksums(tmp_path, OWNER, up_to=3)  # larger files by size only
    with pytest.raises(InputError, match="large"):
        check_checksums(tmp_path, OWNER, above=3)
    large.write_bytes(b"123")
    with pytest.raises(InputError, match=r"large.*3.*4.*make it again"):
        check_checksums(tmp_path, OWNER, up_to=3)
    small.unlink()
    with pytest.raises(InputError, match="small"):
        check_checksums(tmp_path, OWNER)
    (tmp_path / "checksums.json").write_text("{}")
    with pytest.raises(InputError, match=r"checksums\.json"):
        check_checksums(tmp_path, OWNER)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_tensors_may_be_read_by_whom_other_new_files_may(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "plain").write_text("x", encoding="utf-8")
        save_tensors({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
