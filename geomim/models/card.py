"""What is known of some weights, in words: the model card beside an export, and what `geomim show` prints.

Both are written from the plain `geomim` entry that checkpoints and exports hold; what it does not say is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from geomim.sensors import BandContract

Facts = Mapping[str, Any]


def model_card(name: str, config: Facts, address: str) -> str:
    """Say in Markdown how to load the weights, what they expect and where they come from.

    Args:
        name: Name of the model.
        config: The `config.json` beside the card, which may say of graphs what they take and give.
        address: Where timm finds it.

    Returns:
        The text of `README.md`, with the front matter that model hubs read.
    """
    said = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections(config["geomim"]).items())
    timm = "model_args" in config
    loading, tag = (_loading(config, address), "image-feature-extraction, timm") if timm else ("", "image-segmentation")
    graphs = _graphs(config["graphs"]) if config.get("graphs") else ""
    front = f"---\nlibrary_name: {'timm' if timm else 'onnx'}\ntags: [{tag}, remote-sensing, geomim]\n---\n"
    return f"{front}# {name}\n\n{loading}{graphs}{said}\n"


def shown(graph: Facts) -> str:
    """What a graph takes and gives, in words, as `Graph.described` says it."""
    gives = {name: one["shape"] for name, one in graph["output"].items()}
    sides = (
        ", ".join(f"{name} ({', '.join(['batch', *map(str, size[1:])])})" for name, size in some.items())
        for some in (graph["input"], gives)
    )
    return " -> ".join(sides) + (f"; classes {', '.join(graph['classes'])}" if graph["classes"] else "")


def _graphs(graphs: Facts) -> str:
    lines = _list(f"`{file}`: {shown(graph)}" for file, graph in graphs.items())
    what = "They take any number of images of this one size, as `(stored number - mean) / std` of the bands below."
    return f"## Graphs\n\n{what}\n\n{lines}\n\n"


def _loading(config: Facts, address: str) -> str:
    """What an encoder is, and how timm loads it."""
    args, cfg = config["model_args"], config["pretrained_cfg"]
    advice = ": `timm.data.create_transform` prepares pictures of these bands."
    if "255" not in cfg["description"]:
        advice = ". Do not use `timm.data.create_transform`: it divides by 255 first."
    what, order = "A vision transformer", f"(B, 1 + patches, {config['num_features']}): class token first"
    deep, heads = args.get("depth"), args["num_heads"]
    if "depths" in args:
        deep, heads = ("-".join(map(str, args[key])) for key in ("depths", "num_heads"))
        what, order = "A hierarchical Swin V2", f"(B, rows, columns, {config['num_features']})"
    return f"""{what} ({args["embed_dim"]} wide, {deep} deep, {heads} heads) for images of
{args["img_size"]} px in patches of {args["patch_size"]} px.

## Load it

Nothing but timm is needed:

```python
import timm

model = timm.create_model("{address}", pretrained=True).eval()
features = model(images)                  # (B, {config["num_features"]}): mean of the patch tokens
tokens = model.forward_features(images)   # {order}
```

`images` are `(B, {args["in_chans"]}, H, W)`: the bands below in that order, as `(stored number - mean) / std`.
`pretrained_cfg` holds {cfg["description"]}{advice}

"""


def sections(entry: Facts) -> dict[str, str]:
    """What an entry says, as Markdown by title.

    Args:
        entry: The `geomim` entry, with the `source` of the weights in words and `notes` on what was assumed of them.
    """
    made = entry.get("provenance") or {}
    contracts = list((entry.get("contracts") or {"": entry.get("contract")}).values())
    contracts = [contract for contract in contracts if contract]
    rights = [", ".join(dict.fromkeys(v for one in contracts for v in one[k])) for k in ("licences", "attributions")]
    config = made.get("config") or entry.get("settings") or {}
    lines = (f"{key}: {_pairs(value) if isinstance(value, Mapping) else value}" for key, value in config.items())
    return {
        "Encoder": f"{_pairs({'family': 'vit', **entry['encoder']})}.",
        "Training": _training(entry, made),
        **({"Sentences": _sentences(entry["joint"], made.get("sentences") or ())} if entry.get("joint") else {}),
        **({"Notes": _list(entry["notes"])} if entry.get("notes") else {}),
        "Bands": "\n\n".join(map(_bands, contracts)) or "The weights state none; as a rule they are for 8-bit RGB.",
        "Evaluation": _evaluation(made["evaluation"]) if made.get("evaluation") else "None was made in training.",
        "Corpora": _corpora(made.get("corpora") or (), contracts),
        "Licences": f"Of the imagery: {rights[0] or 'none stated'}. Attributions: {rights[1] or 'none stated'}."
        + (_of_sentences(made.get("sentence_files") or ()) if entry.get("joint") else "")
        + _of_weights(made.get("rights") or ()),
        "Configuration": _list(lines) or "Unknown.",
    }


def _training(entry: Facts, made: Facts) -> str:
    recipe = f"`{entry['recipe']}` ({_pairs(entry.get('recipe_args') or {})})" if entry.get("recipe") else "unknown"
    progress = f" ({entry['progress']:.0%} of its schedule)" if "progress" in entry else ""
    lines = [
        f"source: {entry['source']}",
        f"recipe: {recipe}",
        f"steps: {_count(entry.get('step'))}{progress}",
        f"images seen: {_count(made.get('images'))}",
        f"code: {_pairs(made.get('code') or {}) or 'unknown'}",
    ]
    for one in entry.get("history") or ():
        changed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in one["changed"].items())
        lines.append(f"changed at step {one['step']:,}: {changed}")
    return _list(lines)


def _sentences(joint: Facts, said: Iterable[str]) -> str:
    text = {"dim": joint["text"]["embed_dim"], **joint["text"]["text_cfg"], "quick_gelu": joint["text"]["quick_gelu"]}
    pooled = "the mean of their patches" if joint["pool"] == "mean" else "their class token"
    learned = "\n\nOf the corpora's sentences, whose origins are named:\n\n" + _list(said) if said else ""
    return (
        f"Images ({pooled}) and sentences share a space; the text tower: {_pairs(text)}. "
        "`geomim.models.image_text.open_image_text` opens both; `joint.safetensors` has the weights of an export, the "
        f"text tower's as open_clip names them.{learned}"
    )


def _of_sentences(files: Iterable[Facts]) -> str:
    """Licences of the sentences that were learned from, with their origins and files."""
    lines = [f"`{one['origin']}` ({one['file']}): {one['licence']}" for one in files]
    return "\n\nOf the sentences:" + ("\n\n" + _list(lines) if lines else " unknown.")


def _of_weights(rights: Iterable[Facts]) -> str:
    """Licences of the weights that training started from."""
    lines = [
        f"`{one['weights']}`: {', '.join(one['licences']) or 'unknown'}"
        + (f"; attributions: {', '.join(one['attributions'])}" if one["attributions"] else "")
        for one in rights
    ]
    return f"\n\nOf the weights that training started from:\n\n{_list(lines)}" if lines else ""


def _bands(contract: Facts) -> str:
    read = BandContract.from_dict(contract)
    meanings: dict[str, list[str]] = {}
    for name, (unit, scale, offset) in zip(read.names, read.sensor.meanings, strict=True):
        meanings.setdefault(f"{unit} = stored number * {scale:g} + {offset:g}", []).append(name)
    said = "; ".join(f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items())
    head = ["band", "alias", "wavelength (nm)", "width (nm)", "GSD (m)", "mean", "std"]
    rows = [
        (band.name, band.alias or band.polarisation, band.wavelength, band.bandwidth, band.gsd, f"{m:.6g}", f"{s:.6g}")
        for band, m, s in zip(read.sensor.bands, read.mean, read.std, strict=True)
    ]
    return f"Sensor `{read.sensor.name}`, in the order of the channels. {said}.\n\n{_table(head, rows)}"


def _evaluation(scores: Facts) -> str:
    rows: dict[str, dict[str, str]] = {}
    for one in scores["rows"]:
        cell = f"{one['accuracy']:.3f} ({one['low']:.3f}-{one['high']:.3f})"
        cell += f", balanced {one['balanced']:.3f}" if "balanced" in one else ""
        rows.setdefault(one["encoder"], {})[one["probe"]] = cell
    head = ["frozen encoder", *next(iter(rows.values()))]
    floor = f"; calling all by the majority class scores {scores['majority']:.3f}" if "majority" in scores else ""
    return (
        f"Accuracy on {scores['data']} at step {scores['step']:,}, watched in training: {scores['classes']} classes, "
        f"{scores['train_images']:,} images to fit on, {scores['test_images']:,} of split `{scores['test_split']}` to "
        f"score on, and 95 % intervals{floor}.\n\n{_table(head, [[name, *row.values()] for name, row in rows.items()])}"
    )


def _corpora(corpora: Iterable[Facts], contracts: Sequence[Facts]) -> str:
    """Corpora with the checksums (xxh3) of lock and audit, and what of them touches benchmarks."""
    lines = []
    for one in corpora:
        audit = f"audit {one['audit']}" if one["audit"] else "not audited against any benchmark"
        lines.append(f"{one['name']}, {one['tiles']:,} tiles, lock {one['lock'] or 'unknown'}, {audit}")
        for other in one["benchmarks"]:
            name = f"{other['benchmark']} ({', '.join(other['splits']) or 'all'})"
            lines.append(f"{other['tiles']:,} touch {name}: {'' if other['excluded'] else 'NOT '}excluded")
    return _list(lines or [line for one in contracts for line in one.get("corpora", ())]) or "Unknown."


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _pairs(values: Facts) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [["" if cell is None else str(cell) for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
