"""Tables of the page on the paper."""

from __future__ import annotations

from typing import Any

from table_text import RESULTS, load, table

from csaligner.cost import cost_table
from csaligner.recipes import load_recipe


def token_term_table() -> str:
    content = load("token_term")
    rows = [
        [
            {"auto": "closed form", "random": "random weights"}[r["start"]],
            f"{r['weight']:g}",
            f"{r['val']:.1f}",
            f"{r['test']:.1f}",
            f"{r['minus_without']:+.1f} ({r['interval'][0]:+.1f} to {r['interval'][1]:+.1f})" if r["weight"] else "",
            f"{r['seconds']:.0f}",
        ]
        for r in content["records"]
    ]
    head = ["start", "weight of the term", "score, validation", "score, test", "difference to no term", "CPU s"]
    return _about(content) + table(head, rows)


def prior_tokens_table() -> str:
    content = load("prior_tokens")
    rows = [
        [
            r["arm"],
            f"{r['frechet']:.3f}",
            f"{100 * r['recall@1']:.1f}",
            f"{100 * r['recall@10']:.1f}",
            f"{r['score']:.1f}",
            f"{r['minus_mlp']:+.1f} ({r['interval'][0]:+.1f} to {r['interval'][1]:+.1f})" if n else "",
            f"{r['seconds']:.0f}",
        ]
        for n, r in enumerate(content["records"])
    ]
    head = ["text adapter", "Frechet, 32 dims", "text-to-image R@1 %", "R@10 %", "score", "minus MLP", "CPU s"]
    return _about(content) + table(head, rows)


def cost_of_recipe() -> str:
    recipe = load_recipe(RESULTS.parents[1] / "recipes" / "retrieval" / "clip_l14_llama3_cc3m.yaml")
    assert recipe.cost is not None
    return cost_table(recipe.cost, recipe.config).rstrip()


def _about(content: dict[str, Any]) -> str:
    train, test = content["images_captions"]["train"], content["images_captions"]["test"]
    settings = content["settings"]
    return (
        f"{train[0]} training images with {train[1]} captions, {test[0]} test images; {settings['seeds']} seed(s), "
        f"{settings['epochs']} epochs.\n\n"
    )


TABLES = {"token_term": token_term_table, "prior_tokens": prior_tokens_table, "cost": cost_of_recipe}
