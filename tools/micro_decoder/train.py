"""Train the layout decoder: embeddings on the fly, x-prediction flow, stopped by the clock.

    PYTHONPATH=src python tools/micro_decoder/train.py --data FOLDER --weights EFFICIENTNET.pth --out OUT --minutes 7

FOLDER: what collect.py wrote. Runs on a GPU where there is one, else (slowly) on the CPU; needs torch, numpy, Pillow,
safetensors, resvg_py and efficientnet_lite_pytorch. First it fits the embedding's projection (or reads --projection).
Then a bank of pairs (embedding, 64 px image) grows by one augmented round of all drawings after the other while
training goes on. Every --save-every seconds, and at the end, OUT holds the averaged weights (decoder.safetensors,
half precision), the log (log.json) and validation emoji drawn from their true embeddings (grid.png). Settings are
judged on validation emoji alone; test emoji are not in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Drawings, augment, load_drawings, load_network, shrink
from fit_embedding import fit, save
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csaligner.decoders.layout_net import LayoutNet, LayoutSizes, sample
from csaligner.encoders.layout_features import PARTS, Features, Projection, features

CELL, GRID = 96, 24
SAMPLINGS = ((1, 1.0), (4, 1.0), (12, 1.0), (12, 1.5), (20, 1.5), (12, 2.0))  # steps and guidance that are compared


@dataclass(frozen=True)
class Settings:
    """What loss and optimiser are made of. at_noise: share of times at t = 1; drop_all, drop_layout: shares of
    embeddings made zero, whole or but for the pooled part; noisy: share with noise along the distribution of
    embeddings, its standard deviation up to most_noise; white: of noise on every number; plain: share of drawings as
    they are."""

    batch: int = 256
    lr: float = 1e-3
    warmup: int = 300
    decays: tuple[float, ...] = (0.998, 0.9995)
    at_noise: float = 0.3
    drop_all: float = 0.1
    drop_layout: float = 0.1
    noisy: float = 0.5
    most_noise: float = 0.6
    white: float = 0.02
    edges: float = 0.5
    colour: float = 1.0
    plain: float = 0.25
    rounds: int = 24
    seed: int = 0


class Embedder:
    """(B, 3, 224, 224) uint8 -> features or embeddings, `chunk` images at a time."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self.net, self.device, self.chunk = net, device, 256 if device.type == "cuda" else 4

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Features:
        found = [features(self.net, part.to(self.device)) for part in torch.split(pixels, self.chunk)]
        return Features(*(torch.cat([getattr(f, name) for f in found]) for name in PARTS))

    @torch.no_grad()
    def rows(self, pixels: Tensor, projection: Projection) -> Tensor:
        return torch.cat([projection(features(self.net, p.to(self.device))) for p in torch.split(pixels, self.chunk)])


class Bank:
    """Rounds of all drawings on the device; the first as they are, the others augmented."""

    def __init__(self, drawings: Drawings, embedder: Embedder, projection: Projection, side: int, s: Settings) -> None:
        self._drawings, self._embedder, self._projection, self._settings = drawings, embedder, projection, s
        self._n, self.rounds = len(drawings.sets), 0
        device, dim = embedder.device, sum(projection.dims.values())
        self._weights = drawings.weights.to(device)
        self._rows = torch.zeros(s.rounds * self._n, dim, dtype=torch.half, device=device)
        self._images = torch.zeros(s.rounds * self._n, 3, side, side, dtype=torch.uint8, device=device)
        self._generator = torch.Generator(device).manual_seed(s.seed)

    def add_round(self) -> float:
        """Seconds that it took; 0 where the bank is full."""
        if self.rounds == self._settings.rounds:
            return 0.0
        begun, start = time.monotonic(), self.rounds * self._n
        for part in torch.split(self._drawings.pixels, self._embedder.chunk):
            plain, end = part.to(self._embedder.device), start + len(part)
            shown = augment(plain, self._generator) if self.rounds else plain
            self._rows[start:end] = self._embedder.rows(shown, self._projection).half()
            self._images[start:end] = shrink(shown, self._images.shape[-1])
            start = end
        self.rounds += 1
        if self._rows.is_cuda:
            torch.cuda.synchronize()
        return time.monotonic() - begun

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """(count, dim) float32 and (count, 3, side, side) in -1..1."""
        g, device = self._generator, self._rows.device
        which = torch.multinomial(self._weights, count, replacement=True, generator=g)
        if self.rounds > 1:
            later = torch.randint(1, self.rounds, (count,), generator=g, device=device)
            plain = torch.rand(count, generator=g, device=device) < self._settings.plain
            which = which + torch.where(plain, 0, later) * self._n
        return self._rows[which].float(), self._images[which].float() / 127.5 - 1

    def spread(self, of: LayoutNet) -> Tensor:
        """Root mean square of each layout channel over the first round."""
        kept = self._rows[: min(self._n, 4096)].float()
        return of.layout(kept)[0].square().mean((0, 2, 3)).sqrt().clamp_min(1e-3)


def loss_of(found: Tensor, x: Tensor, t: Tensor, s: Settings) -> Tensor:
    """Mean of (L1 + edges * L1 of differences + colour * L1 of what differs from grey) / max(t, .25)."""
    weight = 1 / t.clamp_min(0.25)[:, None, None, None]
    off = (found - x) * weight
    edges = off.diff(dim=2).abs().mean() + off.diff(dim=3).abs().mean()
    tint = off - off.mean(dim=1, keepdim=True)
    return off.abs().mean() + s.edges * edges + s.colour * tint.abs().mean()


def train_step(net: nn.Module, bank: Bank, s: Settings, pooled: int) -> Tensor:
    """The loss of one batch."""
    rows, x = bank.draw(s.batch)
    rand = torch.rand(5, len(x), device=x.device)
    t = torch.where(rand[0] < s.at_noise, torch.ones_like(rand[1]), rand[1])
    level = torch.where(rand[2] < s.noisy, rand[3] * s.most_noise, torch.zeros_like(rand[3]))
    along = (rows.roll(1, 0) - rows.roll(2, 0)) / math.sqrt(2)  # has the covariance of the embeddings
    rows = rows + level[:, None] * along + s.white * torch.randn_like(rows) * rows.square().mean().sqrt()
    kept = torch.ones_like(rows)
    kept[:, pooled:] = (rand[4] >= s.drop_all + s.drop_layout).float()[:, None]
    kept[:, :pooled] = (rand[4] >= s.drop_all).float()[:, None]
    level = torch.where(rand[4] < s.drop_all, torch.zeros_like(level), level)
    noisy = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * torch.randn_like(x)
    return loss_of(net(noisy, t, rows * kept, level), x, t, s)


class Validation:
    """Held-out emoji, their embeddings, and fixed noise."""

    def __init__(self, pixels: Tensor, rows: Tensor, side: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images, self.rows = shrink(pixels, side).to(rows.device).float() / 127.5 - 1, rows
        self.noise = torch.randn(self.images.shape, generator=generator).to(rows.device)
        self.times = torch.linspace(0.05, 1, 8)

    @torch.no_grad()
    def loss(self, net: LayoutNet, s: Settings) -> float:
        """Mean over fixed times."""
        found, zero = 0.0, torch.zeros(len(self.rows), device=self.rows.device)
        for now in self.times.tolist():
            t = torch.full_like(zero, now)
            noisy = (1 - now) * self.images + now * self.noise
            found += float(loss_of(net(noisy, t, self.rows, zero), self.images, t, s)) / len(self.times)
        return found

    @torch.no_grad()
    def drawn(self, net: LayoutNet, steps: int, guidance: float) -> Tensor:
        return sample(net, self.rows, self.noise, steps, guidance)

    def r2(self, drawn: Tensor) -> float:
        """1 - squared error / squared distance to the mean image."""
        off = self.images - self.images.mean(dim=0)
        return 1 - float((drawn - self.images).square().sum() / off.square().sum())

    def grid(self, net: LayoutNet, path: Path) -> None:
        """GRID emoji in two bands: the image, its draft, one step, 12 steps, 12 steps with guidance 1.5."""
        n = len(self.rows)
        index = torch.tensor([i * n // min(GRID, n) for i in range(min(GRID, n))], device=self.rows.device)
        with torch.no_grad():
            draft = net.layout(self.rows)[1]
        bands = [self.images, draft, *(self.drawn(net, *how) for how in ((1, 1.0), (12, 1.0), (12, 1.5)))]
        save_grid([band[index] for band in bands], path)


def save_grid(bands: Sequence[Tensor], path: Path) -> None:
    half = (len(bands[0]) + 1) // 2
    rows = [band[start : start + half] for start in (0, half) for band in bands]
    sheet = Image.new("RGB", (half * CELL, len(rows) * CELL), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate((row.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()):
            sheet.paste(Image.fromarray(np.ascontiguousarray(image)).resize((CELL, CELL)), (x * CELL, y * CELL))
    sheet.save(path)


class Averages:
    """Exponential moving averages of the weights, one for each decay."""

    def __init__(self, net: nn.Module, decays: Sequence[float]) -> None:
        self._live = list(net.parameters())
        self.kept = {decay: [p.detach().clone() for p in self._live] for decay in decays}

    @torch.no_grad()
    def update(self, step: int) -> None:
        for decay, kept in self.kept.items():
            torch._foreach_lerp_(kept, [p.detach() for p in self._live], 1 - min(decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self, decay: float) -> None:
        """Exchange the net's weights and the averages; a second call undoes it."""
        for live, kept in zip(self._live, self.kept[decay], strict=True):
            old = live.clone()
            live.copy_(kept)
            kept.copy_(old)


class Training:
    """net, optimiser and clock; begun: when the budget began."""

    def __init__(self, net: LayoutNet, bank: Bank, val: Validation, out: Path, s: Settings) -> None:
        self.net, self.bank, self.val, self.out, self.settings = net, bank, val, out, s
        self.averages = Averages(net, s.decays)
        fused = next(net.parameters()).is_cuda
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=s.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=fused)
        self.log: list[dict[str, float]] = []
        self.step, self.lowest = 0, math.inf

    def run(self, begun: float, budget: float, save_every: float, most_steps: int | None) -> None:
        """Until `budget` seconds after `begun`, or for most_steps."""
        start = saved = rounded = time.monotonic()
        length = max(1e-9, budget - (start - begun))
        cost, losses = 0.0, torch.zeros((), device=next(self.net.parameters()).device)
        counted = 0
        while True:
            now = time.monotonic()
            progress = (now - start) / length if most_steps is None else self.step / most_steps
            if progress >= 1 or now - begun >= budget:
                break
            losses += self._update(
                min(1.0, (self.step + 1) / self.settings.warmup) * (1 + math.cos(math.pi * progress)) / 2
            )
            counted += 1
            if self.step % 50 == 0 and self.step:
                mean, counted = float(losses) / counted, 0  # waits for the device, so that the clock is right
                losses.zero_()
                self.log.append({"step": self.step, "seconds": round(time.monotonic() - begun, 1), "loss": mean})
                if time.monotonic() - rounded > 4 * cost and progress < 0.9:
                    cost, rounded = self.bank.add_round(), time.monotonic()
                    rounded += 0.0 if cost else 1e9
                if time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _update(self, rate: float) -> Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * rate
        loss = train_step(self.net, self.bank, self.settings, self.net.pooled)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.averages.update(self.step)
        self.step += 1
        return loss.detach()

    def save(self) -> None:
        """The log; and, where the validation loss is the lowest so far, weights of the better average and the grid."""
        losses = {}
        for decay in self.settings.decays:
            self.averages.swap(decay)
            losses[decay] = self.val.loss(self.net, self.settings)
            self.averages.swap(decay)
        best = min(losses, key=lambda decay: losses[decay])
        better, self.lowest = losses[best] < self.lowest, min(self.lowest, losses[best])
        self.averages.swap(best)
        drawn = {f"r2/{n}/{g}": self.val.r2(self.val.drawn(self.net, n, g)) for n, g in SAMPLINGS}
        found = {f"val/{decay}": loss for decay, loss in losses.items()} | drawn
        self.log.append({"step": self.step, "rounds": self.bank.rounds, "kept": float(better)} | found)
        print(json.dumps(self.log[-2:]), flush=True)
        if better:
            self._write()
        self.averages.swap(best)
        whole = {"settings": asdict(self.settings), "sizes": asdict(self.net.sizes), "log": self.log}
        _replace(self.out / "log.json", lambda p: p.write_text(json.dumps(whole)))

    def _write(self) -> None:
        state = {name: t.half().cpu().contiguous() for name, t in self.net.state_dict().items()}
        sizes = json.dumps(asdict(self.net.sizes))
        _replace(self.out / "decoder.safetensors", lambda p: save_file(state, p, metadata={"sizes": sizes}))
        self.val.grid(self.net, self.out / "grid.png")


def _replace(path: Path, write: Any) -> None:
    write(path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def projection_of(args: argparse.Namespace, drawings: Drawings, embedder: Embedder) -> Projection:
    """Read, or fitted on the drawings as they are and once augmented."""
    if args.projection is not None:
        with safe_open(args.projection, "pt") as file:
            return Projection({name: file.get_tensor(name) for name in file.keys()}).to(embedder.device)  # noqa: SIM118
    generator = torch.Generator(embedder.device).manual_seed(7)
    plain = embedder.features(drawings.pixels)
    moved = [
        embedder.features(augment(p.to(embedder.device), generator)) for p in drawings.pixels.split(embedder.chunk)
    ]
    both = Features(*(torch.cat([getattr(f, name) for f in (plain, *moved)]) for name in PARTS))
    projection = fit(both, drawings.weights.to(embedder.device).repeat(2))
    save(projection, args.out / "projection.safetensors", {"base": args.base, "base_fingerprint": args.fingerprint})
    return projection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="state dictionary of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="from the start of the program to its end")
    parser.add_argument("--projection", type=Path)
    parser.add_argument("--start", type=Path, help="decoder.safetensors to start from; wants its --projection")
    parser.add_argument("--base", default="bundled:efficientnet-lite0", help="the encoder of --weights")
    parser.add_argument("--fingerprint", default="", help="of that encoder, kept in projection.safetensors")
    parser.add_argument("--limit", type=int, help="drawings of each set")
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--save-every", type=float, default=90.0)
    for name, value in (("batch", 256), ("rounds", 24)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    begun, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    budget = args.minutes * 60 - (12 if device.type == "cuda" else 60)  # the rest is for the last save
    args.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(batch=args.batch, rounds=args.rounds)
    torch.manual_seed(settings.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # features as on a CPU
    drawings = load_drawings(args.data, "train", args.workers, args.limit)
    held_out = load_drawings(args.data, "val", args.workers, args.limit)
    tell(begun, f"{len(drawings.sets)} drawings, {len(held_out.sets)} validation emoji, {device}")
    if device.type == "cuda":
        drawings = Drawings(drawings.pixels.to(device), drawings.sets, drawings.ids)
    embedder = Embedder(load_network(args.weights, device), device)
    projection = projection_of(args, drawings, embedder)
    tell(begun, f"projection {projection.dims}")
    sizes = LayoutSizes()
    bank = Bank(drawings, embedder, projection, sizes.side, settings)
    seconds = [bank.add_round() for _ in range(min(2, settings.rounds))]
    tell(begun, f"{bank.rounds} rounds, {seconds[-1]:.1f} s each")
    net = LayoutNet(sizes, projection.to(torch.device("cpu"))).to(device)
    if args.start is None:
        net.layout_scale.copy_(bank.spread(net))
    else:
        net.load_state_dict(load_file(args.start))
    val = Validation(held_out.pixels, embedder.rows(held_out.pixels, projection), sizes.side)
    tell(begun, f"{sum(p.numel() for p in net.parameters()):,} weights; draft R2 {val.r2(net.layout(val.rows)[1]):.3f}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    Training(net, bank, val, args.out, settings).run(begun, budget, args.save_every, args.steps)
    tell(begun, "done")


def tell(begun: float, words: str) -> None:
    print(f"{time.monotonic() - begun:.1f} s: {words}", flush=True)


if __name__ == "__main__":
    main()
