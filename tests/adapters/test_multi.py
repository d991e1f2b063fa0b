"""MultiAligner: projection of several modalities into one space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.multi import MultiAligner, fit_joint_start
from csaligner.adapters.start import Affine, fit_starts
from csaligner.checks import InputError
from csaligner.config import AdapterConfig, StartConfig
from csaligner.types import PairedFeatures


def views(n: int = 400, noise: float = 0.3) -> dict[str, Tensor]:
    """Return three noisy linear views, of different dimensions, of the same 3-d points."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, 3, generator=g)
    return {
        name: z @ torch.randn(3, d, generator=g) + noise * torch.randn(n, d, generator=g) + 1
        for name, d in (("image", 7), ("english", 6), ("german", 5))
    }


def apply(start: Affine, x: Tensor) -> Tensor:
    assert start.map is not None
    return (normalize(x, dim=1) - start.mean) @ start.map + start.offset


def test_two_modalities_start_as_the_projection_of_two() -> None:
    x = views()
    pair = PairedFeatures(x["image"], x["english"], torch.arange(400), tuple(map(str, range(400))))
    wanted = fit_starts(pair, StartConfig(kind="projection"), dim=4)
    found = fit_joint_start({"image": x["image"], "english": x["english"]}, dim=4)
    for start, name in zip(wanted, ("image", "english"), strict=True):
        a, b = apply(start, x[name]), apply(found[name], x[name])
        torch.testing.assert_close(a @ a.T, b @ b.T, rtol=1e-3, atol=1e-4)  # unique up to rotation or sign


def test_it_finds_what_three_views_share() -> None:
    x = views(noise=0.05)
    starts = fit_joint_start({name: rows[:300] for name, rows in x.items()}, dim=3)
    image, english, german = (normalize(apply(starts[name], x[name][300:]), dim=1) for name in x)
    for a, b in ((image, english), (image, german), (english, german)):
        cosines = a @ b.T
        assert float((cosines > cosines.diag()[:, None]).sum(dim=1).float().mean()) < 8  # by chance: 49.5
        assert float(cosines.diag().mean()) > 0.85


def test_rows_are_matched_by_id_and_several_rows_count_once() -> None:
    x, n = views(50), torch.arange(50)
    wanted = fit_joint_start({name: rows[5:] for name, rows in x.items()}, dim=3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = {"image": x["image"], "english": x["english"][order], "german": torch.cat([x["german"], x["german"]])}
    ids = {"image": torch.where(n < 5, -1, n), "english": n[order], "german": torch.cat([n, n])}
    found = fit_joint_start(shuffled, ids, dim=3)
    for name in x:
        a, b = apply(found[name], x[name]), apply(wanted[name], x[name])
        torch.testing.assert_close(a @ a.T, b @ b.T, rtol=1e-3, atol=1e-4)


def test_the_aligner_starts_there_and_every_parameter_of_use_learns() -> None:
    x = views()
    model = MultiAligner.fit_start(x, dim=20)
    out = model(x)
    starts = fit_joint_start(x, dim=20)
    for name, rows in out.items():
        assert rows.shape == (400, 20)
        torch.testing.assert_close(rows, normalize(apply(starts[name], x[name]), dim=1), rtol=1e-4, atol=1e-5)
    assert float(model.logit_scale.detach()) == pytest.approx(1 / 0.07)
    (out["image"] * out["german"]).sum().backward()
    assert model.get_parameter("adapters.image.blocks.0.3.weight").grad is not None


def test_bad_input_is_one_line() -> None:
    x = views(10)
    with pytest.raises(InputError, match=r"^ids"):
        fit_joint_start({**x, "german": x["german"][:4]})
    with pytest.raises(InputError, match="english"):
        fit_joint_start(x, {name: torch.arange(10) + 10 * k for k, name in enumerate(x)})
    with pytest.raises(InputError, match="1"):
        fit_joint_start({"image": x["image"]})
    with pytest.raises(InputError, match="word"):
        MultiAligner({"a.b": Affine.identity(3)})


@pytest.mark.parametrize("name", ["mlp", "linear", "identity"])
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    x = views() if name != "identity" else {k: v[:, :5] for k, v in views().items()}
    config = AdapterConfig(name=name, hidden=8)
    model = MultiAligner.fit_start(x, dim=5, config=config, encoders={"image": "0123abcd"})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.rand_like(parameter)
    model.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    again = MultiAligner.load(tmp_path / "saved")
    assert again.config == model.config
    assert again.config.encoders == {"image": "0123abcd"}
    assert torch.equal(again.logit_scale, model.logit_scale)
    wanted = model(x)
    assert all(torch.equal(rows, wanted[key]) for key, rows in again(x).items())
    assert MultiAligner.from_pretrained(tmp_path / "saved").config == model.config


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    model = MultiAligner.fit_start(views(), dim=4)
    model.save(tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    whole = weights.read_bytes()
    for content, message in ((whole[:-1] + b"x", "its SHA-256 differs"), (whole[: len(whole) // 2], "model")):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            MultiAligner.load(tmp_path / "m")
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        MultiAligner.load(tmp_path / "m")
    with pytest.raises(InputError, match=r"config\.json"):
        MultiAligner.load(tmp_path)
    with pytest.raises(InputError, match=r"'imgae'.*'image'"):
        MultiAligner.fit_start(views(), dim=4, encoders={"imgae": "x"})
    model.save(tmp_path / "again")
    with pytest.raises(InputError):
        Aligner.load(tmp_path / "again")
