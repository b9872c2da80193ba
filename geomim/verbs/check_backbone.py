"""`geomim check-backbone`: what does the installed torchgeo do with some weights?"""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from geomim.errors import CheckpointError
from geomim.finetune.check import Line, lines
from geomim.finetune.stock import VERSION


def check_backbone(source: str) -> list[Line]:
    """Build every task of the installed torchgeo with some weights, see whether they are in it, and train one step.

    In lines of `torchgeo alone` the weights have the names that others would give, in `registered` ones that of
    `geomim.finetune.register`. What an exported encoder is promised to do, and does not, is a failure; what torchgeo
    has for other encoders only is refused, and the table says why.

    Args:
        source: An exported folder, `timm:NAME`, or torchgeo's name, as `ViTSmall16_Weights.SENTINEL2_ALL_MOCO`.

    Raises:
        CheckpointError: Something that is promised fails.
        InputError: The source is none of these.
    """
    tried = [line.tried() for line in lines(source)]
    table = Table("", "way", "", "", title=f"{source} in torchgeo {VERSION}", title_justify="left")
    for line in tried:
        result = "passes" if line.passed else "FAILS" if line.promised else "refused"
        table.add_row(line.what, line.way, result, escape(line.said))
    Console().print(table)
    promised = [line for line in tried if line.promised]
    failed = [f"{line.what} ({line.way})" for line in promised if not line.passed]
    if failed:
        raise CheckpointError(f"{len(failed)} of {len(promised)} promised lines fail: {', '.join(failed)}")
    print(f"all {len(promised)} promised lines pass; {sum(bool(line.passed) for line in tried)} of {len(tried)} in all")
    return tried
