"""`geomim check-backbone`: what does the installed torchgeo do with some weights?"""

from rich.console import Console
from rich.table import Table

from geomim.errors import CheckpointError
from geomim.finetune.check import Line, probes
from geomim.finetune.stock import VERSION


def check_backbone(source: str) -> list[Line]:
    """Build every task of the installed torchgeo with some weights, look whether they are in it, and train one step.

    Lines of `torchgeo alone` name the weights as others would; `registered` ones by geomim.finetune.register. What an
    exported encoder is promised to do and does not is a failure; a refusal that nobody promised away is told.

    Args:
        source: An exported folder, timm:NAME, or torchgeo's name of weights, as ViTSmall16_Weights.SENTINEL2_ALL_MOCO.

    Raises:
        CheckpointError: Something that is promised fails.
        InputError: The source is none of these.
    """
    console, lines = Console(), []
    table = Table("", "way", "", "", title=f"{source} in torchgeo {VERSION}", title_justify="left")
    for probe in probes(source):
        line = probe.line()
        lines.append(line)
        result = "passes" if line.passed else "FAILS" if line.promised else "refused"
        table.add_row(line.what, line.way, result, line.said.replace("[", "\\["))
    console.print(table)
    failed = [f"{line.what} ({line.way})" for line in lines if line.promised and not line.passed]
    promised = sum(line.promised for line in lines)
    if failed:
        raise CheckpointError(f"{len(failed)} of {promised} promised lines fail: {', '.join(failed)}")
    print(f"all {promised} promised lines pass; {sum(line.passed for line in lines)} of {len(lines)} in all")
    return lines
