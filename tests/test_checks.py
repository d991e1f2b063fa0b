"""Arrays that users bring: what is read as features, what is refused and what is warned of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from csaligner import CSAligner
from csaligner.checks import InputError, as_features
from csaligner.paired_features import pair_features

X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False
RECORDS = np.zeros(9, dtype=[("tag", "u1"), ("x", "f4", 4)])  # strides that are no multiple of four
RECORDS["x"] = X
ARRAYS: dict[str, Any] = {
    "negative strides": X[::-1].copy()[::-1],
    "other byte order": X.astype(X.dtype.newbyteorder()),
    "object rows": pd.DataFrame({"v": list(X)})["v"].to_numpy(),
    "series of rows": pd.DataFrame({"v": list(X)})["v"],
    "nullable": pd.DataFrame(X).astype("Float32"),
    "data frame": pd.DataFrame(X),
    "longdouble": X.astype(np.longdouble),
    "read-only": READ_ONLY,
    "records": RECORDS["x"],
    "lists": X.tolist(),
    "memoryview": memoryview(X),  # type: ignore[arg-type]
    "Fortran order": np.asfortranarray(X),
    "matrix": X.view(np.matrix),
    "tensors": list(torch.from_numpy(X)),
    "tensors with gradients": list(torch.from_numpy(X).requires_grad_()),
    "data frame with one column of rows": pd.DataFrame({"v": list(X)}),
    "arrow numbers of pandas": pd.DataFrame(X).convert_dtypes(dtype_backend="pyarrow"),
    "arrow lists of pandas": pd.Series(
        pa.array(X.tolist(), pa.list_(pa.float32())), dtype=pd.ArrowDtype(pa.list_(pa.float32()))
    ),
    "arrow table": pa.table({str(i): X[:, i] for i in range(4)}),
    "arrow lists": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4),
    "arrow chunks": pa.chunked_array([pa.array(X[:6].tolist()), pa.array(X[6:].tolist())]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_are_read_without_a_warning(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = as_features("x", ARRAYS[kind])
    assert torch.equal(found.float(), torch.from_numpy(X))


def test_numbers_of_few_bits() -> None:
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float16):
        x = torch.from_numpy(X).to(dtype)
        assert torch.equal(as_features("x", x).float(), x.float())
        if dtype != torch.float8_e4m3fn:
            assert torch.equal(as_features("x", list(x)).float(), x.float())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.ma.masked_array(X, mask=np.eye(9, 4) > 0), "4 of 9 rows contain NaN"),
        (RECORDS, "void"),
        (np.zeros((3, 2), "M8[s]"), "datetime64"),
        (X.astype(str), "wanted numbers"),
        (X.astype(complex), "complex"),
        ([torch.zeros(3), torch.zeros(2)], "row 1 has 2 numbers, row 0 has 3"),
        (pd.DataFrame({"v": ["a", "b"]}), "numbers"),
        (pd.Series([*X[:5], None]), "row 5 is None"),
        (pd.DataFrame(np.arange(6).reshape(3, 2)).astype("Int64").mask(np.eye(3, 2) > 0), "2 of 3 rows"),
        (None, "shape"),
        ([], "shape"),
        (3.0, "shape"),
        (X[None], r"\(1, 9, 4\)"),
        ({"a": 1}, "numbers"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        as_features("x", value)


def test_polars() -> None:
    pl = pytest.importorskip("polars")
    for value in (pl.DataFrame(X), pl.Series(X.tolist()), pl.DataFrame({"v": X.tolist()})):
        assert torch.equal(as_features("x", value).float(), torch.from_numpy(X))
    with pytest.raises(InputError, match="row 2"):
        as_features("x", pl.Series([*X[:2].tolist(), None]))


def test_reversed_rows_and_a_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert torch.equal(as_features("x", X[::-1]), torch.from_numpy(X[::-1].copy()))
    mapped = as_features("x", np.load(tmp_path / "x.npy", mmap_mode="r"))
    mapped += 1  # a copy: writing to the map of a file that is open for reading ends the process
    assert torch.equal(mapped, torch.from_numpy(X) + 1)


def test_the_estimator_takes_columns_of_vectors() -> None:
    aligner = CSAligner(epochs=0).fit(ARRAYS["series of rows"], ARRAYS["nullable"])
    rows = aligner.transform_image(ARRAYS["series of rows"])
    assert np.array_equal(rows, aligner.transform_image(X))
    assert np.array_equal(aligner.transform_text(pd.Series(X[0])), aligner.transform_text(X[0]))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*X.tolist(), [1.0]], "row 9 has 1"),
        (pd.Series([X[0], None, X[1]]), "row 1 is None"),
        (pd.DataFrame(X).astype("Float32").mask(pd.DataFrame(X) == X[2, 1]), "row 2"),
        ([["a", "b"]], "numbers"),
    ],
)
def test_rows_that_are_no_numbers_are_named(rows: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_features("x", rows)


def test_zero_rows_and_packed_bits_are_warned_of() -> None:
    zero = X.copy()
    zero[[3, 5]] = 0
    with pytest.warns(UserWarning, match="2 of 9 rows are zero .*row 3"):
        pair_features(zero, X)
    bits = np.random.default_rng(1).integers(0, 256, size=(200, 16), dtype=np.uint8)
    with pytest.warns(UserWarning, match="unpackbits"):
        pair_features(bits, np.unpackbits(bits, axis=1))


def test_quantised_embeddings_are_no_packed_bits() -> None:
    """int8 embeddings fill their range as well, but few of them lie at its ends."""
    x = np.random.default_rng(2).normal(size=(2000, 16))
    quantised = ((x - x.min(0)) / (x.max(0) - x.min(0)) * 255 - 128).astype(np.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair_features(quantised, x)
