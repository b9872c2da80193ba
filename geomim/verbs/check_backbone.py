"""`geomim check-backbone`: what does the installed torchgeo do with some weights?"""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from geomim.errors import CheckpointError
from geomim.finetune.check import WEIGHTS, Line, lines
from geomim.finetune.stock import VERSION


def check_backbone(source: str) -> list[Line]:
    """Build every task of the installed torchgeo with some weights, see whether they are in it, and train one step.

    Each task is tried two ways. `torchgeo alone`: by the name that the weights have for anybody, such as
    `local-dir:FOLDER`. `registered`: by the name that `geomim.finetune.registry.register(SOURCE)` gives them. What
    fails or is refused says why, in the words of the library that did it. Much of torchgeo takes no transformer, and
    its detectors take torchvision's ResNets alone: `geomim.finetune` has tasks that take any encoder.

    An exported encoder is promised to pass most of it; a promised line that fails makes the exit status 1. Of other
    weights nothing is promised but that they are numbers.

        geomim export runs/first/checkpoints/last.ckpt --out encoder
        geomim check-backbone encoder
        geomim check-backbone timm:vit_tiny_patch16_224
        geomim check-backbone ViTSmall16_Weights.SENTINEL2_ALL_MOCO

    Args:
        source: An exported folder, `timm:NAME`, which may be `timm:local-dir:FOLDER`, or torchgeo's name of weights.

    Raises:
        CheckpointError: Something that is promised fails.
        InputError: The source is none of these.
    """
    tried = [line.tried() for line in lines(source)]
    ways = [way for way in dict.fromkeys(line.way for line in tried) if way != WEIGHTS]
    table = Table("", *ways, "", title=f"{source} in torchgeo {VERSION}", title_justify="left")
    before = ""
    for what in dict.fromkeys(line.what for line in tried):
        row = {line.way: line for line in tried if line.what == what}
        worst = min(map(_RESULTS.index, map(_result, row.values())))
        said = "\n".join(dict.fromkeys(line.said for line in row.values() if _result(line) == _RESULTS[worst]))
        results = [_result(row.get(way, row.get(WEIGHTS))) for way in ways]
        table.add_row(what, *results, "as above" if said == before else escape(said))
        before = said
    Console().print(table)
    promised = [line for line in tried if line.promised]
    failed = [f"{line.what} ({line.way})" for line in promised if not line.passed]
    if failed:
        raise CheckpointError(f"{len(failed)} of {len(promised)} promised lines fail: {', '.join(failed)}")
    print(f"all {len(promised)} promised lines pass; {sum(bool(line.passed) for line in tried)} of {len(tried)} in all")
    return tried


_RESULTS = ("FAILS", "refused", "passes", "")


def _result(line: Line | None) -> str:
    return "" if line is None else "passes" if line.passed else "FAILS" if line.promised else "refused"
