"""The model card that is written beside exported weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(name: str, config: Mapping[str, Any]) -> str:
    """Say in Markdown what the weights expect, what they were trained on and how to load them.

    Args:
        name: Name of the model.
        config: The `config.json` beside the card.

    Returns:
        The text of `README.md`, with the front matter that model hubs read.
    """
    own, args = config["geomim"], config["model_args"]
    contract = own["contract"]
    what, order = "A vision transformer", f"(B, 1 + patches, {config['num_features']}): class token first"
    deep, heads = args.get("depth"), args["num_heads"]
    if "depths" in args:
        deep, heads = ("-".join(map(str, args[key])) for key in ("depths", "num_heads"))
        what, order = "A hierarchical Swin V2", f"(B, rows, columns, {config['num_features']})"
    trained = f"`{own['recipe']}`, {own['step']} steps" if own.get("recipe") and "step" in own else own["source"]
    return f"""---
library_name: timm
tags: [image-feature-extraction, timm, remote-sensing, geomim]
---
# {name}

{what} ({args["embed_dim"]} wide, {deep} deep, {heads} heads) for images of
{args["img_size"]} px in patches of {args["patch_size"]} px. Trained with {trained}.

## Bands

{_bands(config)}

## Load it

Nothing but timm is needed:

```python
import timm

model = timm.create_model("local-dir:/path/to/{name}", pretrained=True).eval()
features = model(images)                  # (B, {config["num_features"]}): mean of the patch tokens
tokens = model.forward_features(images)   # {order}
```

`images` are `(B, {args["in_chans"]}, H, W)`: the bands above in that order, as `(stored number - mean) / std`.
{_transform(config["pretrained_cfg"])}

## Licences and attributions

{_rights(contract)}
"""


def _transform(cfg: Mapping[str, Any]) -> str:
    """Whether timm's own transforms make such images."""
    start = f"`pretrained_cfg` holds {cfg['description']}"
    if "255" in cfg["description"]:
        return f"{start}: `timm.data.create_transform` prepares pictures of these bands."
    return f"{start}. Do not use `timm.data.create_transform`: it divides by 255 first."


def _bands(config: Mapping[str, Any]) -> str:
    contract, cfg = config["geomim"]["contract"], config["pretrained_cfg"]
    if contract is None:
        scaled = ([255 * value for value in cfg[key]] for key in ("mean", "std"))
        rows = zip(("red", "green", "blue"), *scaled, strict=False)
        lines = [f"| {name} | {mean:.6g} | {std:.6g} |" for name, mean, std in rows]
        note = "The weights state no bands; published files of this kind are trained on 8-bit RGB (0 to 255)."
        return "\n".join([note, "", "| band | mean | std |", "|---|---|---|", *lines])
    sensor = contract["sensor"]
    note = f"Sensor `{sensor['name']}`: {sensor['unit']} = stored number * {sensor['scale']:g} + {sensor['offset']:g}."
    lines = [
        f"| {number} | {band['name']} | {band['alias'] or ''} | {band['wavelength'] or ''} | {band['bandwidth'] or ''} "
        f"| {band['gsd'] or ''} | {mean:.6g} | {std:.6g} |"
        for number, (band, mean, std) in enumerate(
            zip(sensor["bands"], contract["mean"], contract["std"], strict=True), start=1
        )
    ]
    head = "| channel | band | alias | wavelength (nm) | bandwidth (nm) | GSD (m) | mean | std |"
    return "\n".join([note, "", head, "|" + "---|" * 8, *lines])


def _rights(contract: Mapping[str, Any] | None) -> str:
    if contract is None:
        return "The weights state none; see where they were published."
    licences = ", ".join(contract["licences"]) or "none stated"
    attributions = "; ".join(contract["attributions"]) or "none stated"
    rights = f"Imagery it was trained on: {licences}. Attributions: {attributions}."
    corpora = [f"- {line}" for line in contract.get("corpora", ())]
    return "\n".join(
        [rights, *(["", "Corpora, with the checksums (xxh3) of lock and audit:", "", *corpora] if corpora else [])]
    )
