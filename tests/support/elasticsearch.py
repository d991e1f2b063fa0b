"""Stand-in for an Elasticsearch server: the requests of the official client that docs/bring_your_vectors.md makes.

It refuses what a server refuses (unknown fields, wrong dimensions, an index that does not exist), shows documents only
after a refresh, and like version 9.2 keeps vectors out of `_source`.
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
            if field["type"] == "dense_vector":
                assert isinstance(field["dims"], int)
                assert field["similarity"] in {"cosine", "dot_product", "l2_norm", "max_inner_product"}
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
            vectors = {name for name, field in self.fields[index].items() if field["type"] == "dense_vector"}
            kept = set(document) - vectors if source is True else set(document) & set(source) - vectors
            hit["_source"] = {name: document[name] for name in kept}
        if "fields" in body:
            hit["fields"] = {name: document[name] for name in body["fields"]}
        return hit

    def _check_document(self, index: str, document: Json) -> None:
        if index not in self.fields or set(document) - set(self.fields[index]):
            raise Refused(f"{index}: no such index, or a field without a mapping")
        for name, field in self.fields[index].items():
            if field["type"] == "dense_vector":
                self._check_vector(index, name, document[name])

    def _check_vector(self, index: str, name: str, vector: list[float]) -> None:
        dims = self.fields[index][name]["dims"]
        if len(vector) != dims or not all(isinstance(x, float) and math.isfinite(x) for x in vector) or not any(vector):
            raise Refused(f"{name}: wanted {dims} finite numbers, not all zero")


def _cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def _answer(hits: list[Json]) -> Json:
    shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
    total = {"value": len(hits), "relation": "eq"}
    return {"took": 1, "timed_out": False, "_shards": shards, "hits": {"total": total, "hits": hits}}


@contextmanager
def elasticsearch() -> Iterator[str]:
    """The address of a new, empty stand-in."""
    cluster = Cluster()

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
            self.send_header("Content-Type", "application/vnd.elasticsearch+json; compatible-with=9")
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
