"""Stand-ins for servers of Elasticsearch and OpenSearch: the requests of the official clients that the pages make.

They refuse what a server refuses (unknown fields, wrong dimensions, an index that does not exist), show documents
only after a refresh, and like Elasticsearch 9.2 keep vectors out of `_source`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]


class Refused(Exception):
    """A request that a server answers with status 400 or 404."""


class Cluster:
    """Indices with their fields, and their documents before and after a refresh."""

    VECTOR, DIMS, CONTENT = "dense_vector", "dims", "application/vnd.elasticsearch+json; compatible-with=9"

    def __init__(self) -> None:
        self.fields: dict[str, Json] = {}
        self.found: dict[str, dict[str, Json]] = {}
        self.written: dict[str, dict[str, Json]] = {}
        self.scrolls: dict[str, list[Json]] = {}

    def create(self, index: str, body: Json) -> Json:
        if index in self.fields:
            raise Refused(f"{index} exists")
        self.fields[index] = body["mappings"]["properties"]
        for field in self.fields[index].values():
            if field["type"] == self.VECTOR:
                self._check_field(field, body)
            elif field["type"] not in {"keyword", "text", "integer"}:
                raise Refused(f"no handler for type {field['type']}")
        self.found[index], self.written[index] = {}, {}
        return {"acknowledged": True, "shards_acknowledged": True, "index": index}

    def bulk(self, lines: list[Json], refresh: bool) -> Json:
        items = []
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            ((operation, place),) = action.items()
            assert operation == "index"
            self._check_document(place["_index"], document)
            self.written[place["_index"]][place["_id"]] = document
            items.append({"index": {"_index": place["_index"], "_id": place["_id"], "status": 201}})
        if refresh:
            for index, documents in self.written.items():
                self.found[index] |= documents
        return {"errors": False, "took": 1, "items": items}

    def search(self, index: str, body: Json, size: int, scroll: bool) -> Json:
        unknown = set(body) - {"query", "fields", "_source", "sort", "knn", "size"}
        if unknown or index not in self.fields:
            raise Refused(f"unknown key {unknown} or index {index}")
        size = body.get("size", size)
        if "knn" in body:
            return _answer(self._nearest(index, body)[:size])
        assert body["query"] == {"match_all": {}}
        hits = [self._shown(index, key, body, 1.0) for key in self.found[index]]
        if not scroll:
            return _answer(hits[:size])
        self.scrolls["next"] = hits[size:]
        return _answer(hits[:size]) | {"_scroll_id": "next"}

    def scroll(self, key: str) -> Json:
        rest, self.scrolls[key] = self.scrolls[key], []
        return _answer(rest) | {"_scroll_id": key}

    def _check_field(self, field: Json, body: Json) -> None:
        assert set(body) == {"mappings"}
        assert set(field) == {"type", "dims", "similarity"}
        assert isinstance(field["dims"], int)
        assert field["similarity"] in {"cosine", "dot_product", "l2_norm", "max_inner_product"}

    def _nearest(self, index: str, body: Json) -> list[Json]:
        knn = body["knn"]
        assert not set(knn) - {"field", "query_vector", "k", "num_candidates", "filter"}
        if knn["k"] > knn["num_candidates"]:
            raise Refused("num_candidates must be at least k")
        self._check_vector(index, knn["field"], knn["query_vector"])
        wanted = knn.get("filter", {}).get("term", {}).items()
        hits = [
            self._shown(index, key, body, (1 + _cosine(document[knn["field"]], knn["query_vector"])) / 2)
            for key, document in self.found[index].items()
            if all(document[name] == value for name, value in wanted)
        ]
        return sorted(hits, key=lambda hit: -float(hit["_score"]))[: knn["k"]]

    def _shown(self, index: str, key: str, body: Json, score: float) -> Json:
        document, source = self.found[index][key], body.get("_source", True)
        hit: Json = {"_index": index, "_id": key, "_score": score}
        if source is not False:
            vectors = {name for name, field in self.fields[index].items() if field["type"] == self.VECTOR}
            kept = set(document) - vectors if source is True else set(document) & set(source) - vectors
            hit["_source"] = {name: document[name] for name in kept}
        if "fields" in body:
            hit["fields"] = {name: document[name] for name in body["fields"]}
        return hit

    def _check_document(self, index: str, document: Json) -> None:
        if index not in self.fields or set(document) - set(self.fields[index]):
            raise Refused(f"{index}: no such index, or a field without a mapping")
        for name, field in self.fields[index].items():
            if field["type"] == self.VECTOR:
                self._check_vector(index, name, document[name])

    def _check_vector(self, index: str, name: str, vector: list[float]) -> None:
        dims = self.fields[index][name][self.DIMS]
        if len(vector) != dims or not all(isinstance(x, float) and math.isfinite(x) for x in vector) or not any(vector):
            raise Refused(f"{name}: wanted {dims} finite numbers, not all zero")


class OpenSearchCluster(Cluster):
    """The same with the mapping and the query of OpenSearch, which its protobuf types must accept."""

    VECTOR, DIMS, CONTENT = "knn_vector", "dimension", "application/json"

    def search(self, index: str, body: Json, size: int, scroll: bool) -> Json:
        from google.protobuf.json_format import ParseDict
        from opensearch.protobufs.schemas import common_pb2

        ((field, knn),) = body["query"]["knn"].items()  # REST names the field by the key, gRPC in a field of its own
        ParseDict({"query": {"knn": {"field": field} | knn}, "size": body["size"]}, common_pb2.SearchRequestBody())
        found = {"field": field, "query_vector": knn["vector"], "k": knn["k"], "num_candidates": knn["k"]}
        rest = {name: value for name, value in body.items() if name != "query"}
        return super().search(index, rest | {"knn": found}, size, scroll)

    def _check_field(self, field: Json, body: Json) -> None:
        assert body["settings"] == {"index": {"knn": True}}
        assert set(field) == {"type", "dimension", "space_type"}
        assert isinstance(field["dimension"], int)
        assert field["space_type"] in {"cosinesimil", "innerproduct", "l2"}


def _cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def _answer(hits: list[Json]) -> Json:
    shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
    total = {"value": len(hits), "relation": "eq"}
    return {"took": 1, "timed_out": False, "_shards": shards, "hits": {"total": total, "hits": hits}}


@contextmanager
def elasticsearch(kind: type[Cluster] = Cluster) -> Iterator[str]:
    """The address of a new, empty stand-in."""
    cluster = kind()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            given = {name: values[0] for name, values in parse_qs(url.query).items()}
            lines = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode().splitlines()
            try:
                content, status = self.reply(url.path.strip("/").split("/"), given, [*map(json.loads, lines)]), 200
            except Refused as error:
                content, status = {"error": {"type": "illegal_argument_exception", "reason": str(error)}}, 400
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("Content-Type", cluster.CONTENT)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_POST = do_DELETE = answer

        def reply(self, path: list[str], given: dict[str, str], body: list[Json]) -> Json:
            if path == ["_bulk"]:
                return cluster.bulk(body, refresh=given.get("refresh") == "true")
            if path == ["_search", "scroll"]:
                return {"succeeded": True} if self.command == "DELETE" else cluster.scroll(body[0]["scroll_id"])
            if path[-1] == "_search":
                return cluster.search(path[0], body[0], int(given.get("size", 10)), "scroll" in given)
            assert self.command == "PUT"
            assert len(path) == 1
            return cluster.create(path[0], body[0])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
