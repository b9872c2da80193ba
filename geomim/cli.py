"""`geomim VERB`: a verb maps to a function, and only the chosen one's module is imported."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from geomim import __version__
from geomim.addresses import has_address, plain, split_list
from geomim.errors import ConfigError, GeomimError, Interrupted, MissingExtraError, nearest
from geomim.resources import shipped
from geomim.standins import starting


class Verb(NamedTuple):
    """Where a verb's function lives, which extra installs what it needs, and what the overview says of it."""

    target: str
    extra: str
    summary: str


VERBS = {
    "demo": Verb(
        "geomim.demo.run:demo",
        "maps,finetune,language",
        "the whole way once, from scenes to a map and a page to look at",
    ),
    "sources list": Verb("geomim.corpus.sources.verbs:list_", "corpus", "the public sources that have a card"),
    "sources show": Verb("geomim.corpus.sources.verbs:show", "corpus", "one source: what it is and who may use it"),
    "sources check": Verb("geomim.corpus.sources.verbs:check", "corpus", "whether a source opens as its card says"),
    "corpus build": Verb("geomim.corpus.build:build", "corpus", "scenes become a clean corpus of tiles"),
    "corpus inspect": Verb("geomim.corpus.build:inspect", "corpus", "what a corpus holds, what was dropped and why"),
    "corpus decide": Verb("geomim.corpus.changes:decide", "corpus", "other thresholds, without cutting again"),
    "corpus split": Verb("geomim.corpus.changes:split", "corpus", "train, val and test that share no place or copy"),
    "corpus caption": Verb("geomim.corpus.captions.caption:caption", "corpus", "sentences that are true of tiles"),
    "corpus audit": Verb("geomim.corpus.audit:audit", "corpus", "which images of one folder are in another, too"),
    "corpus exclude": Verb("geomim.corpus.exclusion:exclude", "corpus", "drop what a benchmark's held-out split has"),
    "corpus embed": Verb("geomim.verbs.corpus_embed:embed", "maps", "what an encoder says of every tile of a corpus"),
    "corpus semantic": Verb("geomim.verbs.curate:semantic", "maps", "drop tiles that an encoder cannot tell apart"),
    "corpus balance": Verb("geomim.verbs.curate:balance", "maps", "keep a diverse choice, equally from all kinds"),
    "corpus filter": Verb("geomim.corpus.combine:filter", "corpus", "a corpus of the tiles that meet an SQL condition"),
    "corpus merge": Verb("geomim.corpus.combine:merge", "corpus", "several corpora become one"),
    "corpus pack": Verb("geomim.corpus.exchange:pack", "corpus", "the kept tiles as WebDataset archives"),
    "corpus to-geotiff": Verb("geomim.corpus.geotiff:to_geotiff", "corpus", "tiles as GeoTIFFs that QGIS opens"),
    "corpus publish": Verb("geomim.corpus.publish:publish", "corpus", "a corpus to an address such as s3://"),
    "corpus verify": Verb("geomim.corpus.verify:verify", "corpus", "whether a corpus still is what its lock says"),
    "corpus rebuild": Verb("geomim.corpus.verify:rebuild", "corpus", "make a corpus again from its lock and sources"),
    "labels check": Verb("geomim.finetune.labels.check:check", "maps", "what is understood of labels, said and drawn"),
    "pretrain": Verb("geomim.verbs.pretrain:run", "train", "a corpus becomes an encoder"),
    "plot": Verb("geomim.verbs.plot:plot", "train", "the curves of a run, or of several beside each other"),
    "replay": Verb("geomim.verbs.replay:replay", "train", "the step again that ended a run: where it is not finite"),
    "evaluate": Verb("geomim.verbs.evaluate:evaluate", "train", "how good a frozen encoder is, beside its floors"),
    "evaluate-text": Verb("geomim.verbs.language:evaluate_text", "language", "what a model of images and text can do"),
    "export": Verb("geomim.verbs.export:export", "train", "an encoder leaves, for timm, QGIS, ONNX or the Hub"),
    "check-backbone": Verb(
        "geomim.verbs.check_backbone:check_backbone", "finetune", "what torchgeo's tasks do with some weights"
    ),
    "finetune": Verb(
        "geomim.verbs.finetune:finetune", "finetune", "scenes and labels become a tuned task, beside random weights"
    ),
    "finetune fit": Verb("geomim.verbs.finetune_stages:fit", "finetune", "tune an encoder as a config says"),
    "finetune test": Verb("geomim.verbs.finetune_stages:test", "finetune", "how good a tuned task is, by class"),
    "finetune predict": Verb("geomim.verbs.finetune_stages:predict", "finetune", "what a tuned task says of scenes"),
    "show": Verb("geomim.verbs.show:show", "train", "where weights come from: recipe, corpora, bands, scores"),
    "predict": Verb("geomim.verbs.predict:predict", "maps", "a tuned task or a probe turns scenes into maps"),
    "query": Verb(
        "geomim.maps.query:query", "maps,language", "a typed question to a scene becomes a raster of where it fits"
    ),
    "embed": Verb("geomim.verbs.embed:embed", "maps", "an encoder's vectors of tiles or of a whole scene"),
    "search": Verb(
        "geomim.verbs.search:search", "maps", "the tiles, or patches, that a text or an example is nearest to"
    ),
    "cluster": Verb("geomim.maps.cluster:cluster", "maps", "an encoder and a scene become a map without labels"),
}
"""Every verb. A function called `run` is given the raw arguments; any other becomes options by its signature."""


SPINS = "2000"
"""Turns of the loop in which an OpenMP thread waits for work before it sleeps. Its own 300,000 are lost to others where
cores are shared: three times as many images a second in training beside two busy processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; `sys.argv` where None.

    Returns:
        0 when all went well, 1 when the work failed, 2 when the arguments are wrong, 130 or 143 when interrupted,
        138 when SIGUSR1 ended it before the time of its SLURM job was up.
    """
    arguments, alone = list(sys.argv[1:] if argv is None else argv), argv is None
    if alone and "OMP_WAIT_POLICY" not in os.environ:  # GNU's OpenMP, as torch has it, reads it when it loads
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments, alone)
    except KeyboardInterrupt:
        print("geomim: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except Interrupted as stop:
        if str(stop):
            print(f"geomim: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except BrokenPipeError:  # `geomim ... | head` closes the pipe; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, (GeomimError, OSError))
        sentence = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        print(f"geomim: {plain(sentence)}" + ("" if known else "\n(--debug shows where)"), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _dispatch(arguments: list[str], alone: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"geomim {__version__}")
        return 0
    arguments = _find_configs(arguments)
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            helping = alone and bool({"-h", "--help"} & {*arguments})
            room = "finetune" if name == "predict" and _may_open_task(arguments) else VERBS[name].extra
            with starting(_absent(helping, room)) if alone else nullcontext():
                call = _load(name)
            if VERBS[name].target.endswith(":run"):
                call(arguments[words:])
                return 0
            values = parse(call, arguments[words:], name)
            if helping:  # as the value of a flag; there is nothing to work with now
                raise ConfigError(f"geomim {name}: '-h' and '--help' ask for help; as a value, give it as --text=-h")
            call(**values)
            return 0
    group = [verb for verb in VERBS if verb.startswith(f"{arguments[0]} ")]
    if group:
        if len(arguments) > 1 and arguments[1] not in ("-h", "--help"):
            raise ConfigError(f"unknown verb '{' '.join(arguments[:2])}'{nearest(' '.join(arguments[:2]), group)}")
        print(overview(arguments[0]))
        return 0
    raise ConfigError(f"unknown verb '{arguments[0]}'{nearest(arguments[0], {verb.split()[0] for verb in VERBS})}")


def _may_open_task(arguments: Sequence[str]) -> bool:
    """Whether a tuned task may be among what is named, which asks for libraries that probes do without."""
    named = [word.partition("=")[2] if word.startswith("--") else word for word in arguments]
    return "--config" in {word.partition("=")[0] for word in arguments} or any(
        word.endswith(".ckpt") or os.path.isfile(os.path.join(word, "task.ckpt")) for word in named
    )


def _absent(helping: bool, extra: str) -> Callable[[str], bool]:
    """Which libraries are left out: of help, whose pages come from signatures alone, all but the core's.

    Of work torchmetrics, torchvision and torch's compiler, with what they bring: Lightning and timm import them for
    what nothing asks but torchgeo's tasks. A step that is to be compiled loads the compiler itself.
    """
    if not helping:
        idle = set() if "finetune" in extra else {"torchmetrics", "torchvision", "torch._dynamo"}
        return idle.__contains__
    import jsonargparse  # noqa: F401  # finds the libraries that it can use itself

    core = {"geomim", "numpy", "yaml", "rich"} | {name.partition(".")[0] for name in sys.modules}
    core |= sys.stdlib_module_names
    return lambda name: name.partition(".")[0] not in core


def _load(verb: str) -> Callable[..., Any]:
    """Import a verb's function, or say which extra brings what it needs."""
    module, _, function = VERBS[verb].target.partition(":")
    try:
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("geomim"):
            raise
        raise MissingExtraError(
            f"geomim {verb} needs '{error.name}', which is not installed: pip install 'geomim[{VERBS[verb].extra}]'"
        ) from error
    return loaded


def _find_configs(arguments: list[str]) -> list[str]:
    """Let `--config configs/...` mean the shipped file where the user has none of that name."""
    found = list(arguments)
    for place, word in enumerate(found):
        if word == "--config" and place + 1 < len(found):
            found[place + 1] = str(shipped(found[place + 1]))
        elif word.startswith("--config="):
            found[place] = f"--config={shipped(word.removeprefix('--config='))}"
    return found


def overview(group: str = "") -> str:
    """The list of verbs, or of one group of them."""
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(group)}
    width = max(map(len, verbs))
    lines = [f"  geomim {name:{width}}  {verb.summary}" for name, verb in verbs.items()]
    return "\n".join(
        [
            f"geomim {__version__}: scenes into a clean corpus, a corpus into an encoder, an encoder into maps",
            "",
            *lines,
            "",
            "Each verb explains itself: geomim VERB --help. --debug shows the traceback of an error.",
        ]
    )


def parse(function: Callable[..., Any], arguments: list[str], verb: str) -> dict[str, Any]:
    """Turn a typed function into a command line and read it.

    Parameters without a default, except `out`, may be given as bare words. `--config FILE` reads any of them from
    YAML. A list is given as `--bands red,green`, or its flag again for each, a switch as `--overwrite`.

    Raises:
        ConfigError: An argument is unknown, missing or of the wrong type.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, DefaultHelpFormatter

    class Paragraphs(DefaultHelpFormatter):
        """Help whose paragraphs stay apart; one with indented lines, as examples, keeps them."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            parts = text.split("\n\n")
            wrapped = super()._fill_text
            return "\n\n".join(part if "\n  " in part else wrapped(part, width, indent) for part in parts)

    parameters = inspect.signature(function, eval_str=True).parameters
    words = [name for name, value in parameters.items() if value.default is value.empty and name != "out"]
    usage = " ".join([name.upper() + ("..." if _is_list(parameters[name]) else "") for name in words])
    parser = ArgumentParser(
        prog=f"geomim {verb}",
        usage=f"geomim {verb} {usage} [options]",
        description=_description(function),
        formatter_class=Paragraphs,
    )
    parser.exit_on_error = False
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the arguments below.")
    parser.add_function_arguments(function)
    try:
        values = parser.instantiate(parser.parse_args(_spell_out(arguments, parameters, words))).as_dict()
    except ArgumentError as error:
        inside = [action.dest for action in parser._actions if "." in action.dest]
        raise ConfigError(_explain(str(error), [*parameters, *inside], verb)) from error
    values.pop("config", None)
    return values


def _spell_out(arguments: list[str], parameters: Mapping[str, inspect.Parameter], words: list[str]) -> list[str]:
    """Give bare words, lists and switches the one form that the parser reads: `--name=value`."""
    spelled, bare = [], []
    lists: dict[str, list[str]] = {}  # a list's flag may be given several times
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            bare.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        parameter = parameters.get(name.replace("-", "_"))
        if parameter is None:
            spelled.append(word)
            if not equals and name not in ("help", "print_config") and rest and not rest[0].startswith("--"):
                spelled.append(rest.pop(0))
            continue
        given = [value] if equals else []
        if parameter.annotation is bool:
            if not equals:
                given = [rest.pop(0)] if rest and rest[0].lower() in ("true", "false") else ["true"]
        elif _is_list(parameter) and not equals:
            # a verb with bare words cannot tell them from a list's, so there a list is one word with commas
            while rest and not rest[0].startswith("--") and (not given or not words):
                given.append(rest.pop(0))
        elif not equals:
            given = [rest.pop(0)] if rest else []
        if _is_list(parameter) and given:
            lists.setdefault(parameter.name, []).extend(given)
        else:
            spelled.append(f"--{parameter.name}={_value(parameter, given)}" if given else f"--{parameter.name}")
    spelled += [f"--{name}={_value(parameters[name], given)}" for name, given in lists.items()]
    for name in words:
        if bare:
            taken = bare if _is_list(parameters[name]) else [bare[0]]
            spelled.append(f"--{name}={_value(parameters[name], taken)}")
            bare = bare[len(taken) :]
    return spelled + bare


def _is_list(parameter: inspect.Parameter) -> bool:
    return "list[" in str(parameter.annotation)


def _value(parameter: inspect.Parameter, given: list[str]) -> str:
    if not _is_list(parameter) or (len(given) == 1 and given[0][:1] in ("[", "{")):
        return given[0]
    return json.dumps([part for word in given for part in _words(word)])


def _words(word: str) -> list[str]:
    """One word of a list, which may hold several between commas; the splits of `CARD@ROOT:a,b` belong together."""
    whole = os.path.exists(word) or ("@" in word and not has_address(word))
    return [word] if whole else split_list(word)


def _description(function: Callable[..., Any]) -> str:
    return re.split(r"\n\s*(?:Args|Returns|Raises):", inspect.getdoc(function) or "")[0].strip()


def _explain(message: str, names: list[str], verb: str) -> str:
    """One sentence with the nearest valid name instead of the parser's usage dump."""
    unknown = re.search(r"(?:nrecognized arguments: (?:--)?|Option '|Key ')([^\s'=]+)", message)
    if unknown and unknown[1].replace("-", "_") not in names:
        group, dot, _ = unknown[1].rpartition(".")  # of a nested one, name those beside it
        beside = [name for name in names if name.rpartition(".")[0] == group] if dot else []
        near = beside or [*(name for name in names if "." not in name), "config"]
        return f"geomim {verb}: unknown argument '{unknown[1]}'{nearest(unknown[1], near)}"
    missing = re.search(r"(?:arguments are required|Option) ?:? '?([\w, ]+?)'?(?: is required|$)", message)
    if missing and "required" in message:
        return f"geomim {verb}: missing {missing[1].strip()}; see geomim {verb} --help"
    return f"geomim {verb}: {' '.join(message.split())}"


if __name__ == "__main__":
    sys.exit(main())
