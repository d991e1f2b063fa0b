"""LangChainEmbeddings and LlamaIndexEmbedding: queries are mapped, vectors of the index stay as they are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csaligner import integrations
from csaligner.checks import InputError

WORDS = ["red", "green", "blue"]


class Words:
    """A model of three words with the method names of AlignedEmbeddings."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [[self.scale * (word in text) for word in WORDS] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    get_query_embedding = embed_query
    get_text_embedding_batch = embed_documents


class Pictures(Words):
    def embed_image(self, uris: Sequence[Path | str]) -> list[list[float]]:
        return self.embed_documents([Path(uri).stem for uri in uris])


def onto_index(rows: Any) -> Any:
    """Rows (N, 3) of the queries' model to (N, 2)."""
    return rows @ np.array([[1, 0], [0, 1], [1, 1]])


def test_langchain_finds_in_an_index_that_stays_as_it_is() -> None:
    vectorstores = pytest.importorskip("langchain_core.vectorstores")
    embeddings = pytest.importorskip("langchain_core.embeddings")
    from csaligner.integrations import LangChainEmbeddings

    found = LangChainEmbeddings(Words(1.0), onto_index)
    assert isinstance(found, embeddings.Embeddings)
    assert found.embed_query("blue") == [1, 1]
    assert found.embed_documents(["red", "blue"]) == [[1, 0], [1, 1]]
    assert found.embed_documents([]) == []
    assert asyncio.run(found.aembed_query("red")) == [1, 0]
    store = vectorstores.InMemoryVectorStore(found)
    for name, vector in (("r", [2.0, 0.0]), ("g", [0.0, 2.0]), ("b", [3.0, 3.0])):
        store.store[name] = {"id": name, "vector": vector, "text": name, "metadata": {}}
    assert [store.similarity_search(word, k=1)[0].id for word in WORDS] == ["r", "g", "b"]
    with pytest.raises(InputError, match="image"):
        found.embed_image(["red.png"])


def test_langchain_documents_are_embedded_by_the_model_of_the_index() -> None:
    pytest.importorskip("langchain_core")
    from csaligner.integrations import LangChainEmbeddings

    found = LangChainEmbeddings(Words(1.0), lambda rows: 10 * rows, documents=Pictures(3.0))
    assert found.embed_documents(["red"]) == [[3, 0, 0]]
    assert found.embed_image(["photos/green.png"]) == [[0, 3, 0]]
    assert found.embed_query("red") == [10, 0, 0]
    assert LangChainEmbeddings(Words(2.0)).embed_query("red") == [2, 0, 0]  # no transform


def test_llama_index_finds_in_an_index_that_stays_as_it_is() -> None:
    core = pytest.importorskip("llama_index.core")
    schema = pytest.importorskip("llama_index.core.schema")
    from csaligner.integrations import LlamaIndexEmbedding

    found = LlamaIndexEmbedding(Words(1.0), onto_index, embed_batch_size=2)
    assert found.get_query_embedding("blue") == [1, 1]
    assert asyncio.run(found.aget_query_embedding("red")) == [1, 0]
    assert found.get_text_embedding("red") == [1, 0]
    assert found.get_text_embedding_batch(WORDS) == [[1, 0], [0, 1], [1, 1]]
    rows = zip(("r", "g"), ([2.0, 0.0], [0.0, 2.0]), strict=True)
    nodes = [schema.TextNode(id_=name, text=name, embedding=vector) for name, vector in rows]
    index = core.VectorStoreIndex(nodes, embed_model=found)
    index.insert_nodes([schema.TextNode(id_="b", text="blue")])  # a new text, mapped like a query
    retriever = index.as_retriever(similarity_top_k=1)
    assert [retriever.retrieve(word)[0].node_id for word in WORDS] == ["r", "g", "b"]


def test_llama_index_documents_are_embedded_by_the_model_of_the_index() -> None:
    core = pytest.importorskip("llama_index.core")
    from csaligner.integrations import LlamaIndexEmbedding

    model, old = core.MockEmbedding(embed_dim=3), core.MockEmbedding(embed_dim=2)
    found = LlamaIndexEmbedding(model, lambda rows: 4 * rows, documents=old)
    assert found.get_query_embedding("a") == [2, 2, 2]  # the mock's numbers are 0.5
    assert asyncio.run(found.aget_query_embedding("a")) == [2, 2, 2]
    assert found.get_text_embedding_batch(["a", "b"]) == [[0.5, 0.5]] * 2


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("LangChainEmbeddings", "langchain_core", "langchain"), ("LlamaIndexEmbedding", "llama_index", "llama-index")],
)
def test_a_missing_package_is_one_line_with_the_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in list(sys.modules):
        if loaded.startswith((f"{module}.", "csaligner.integrations.")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(integrations, name, raising=False)  # of an earlier test
    with pytest.raises(InputError, match=rf"\[{extra}\]") as caught:
        getattr(integrations, name)
    assert "\n" not in str(caught.value)
