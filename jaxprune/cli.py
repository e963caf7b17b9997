"""The command line `jaxprune`: inspects, prunes, slims and evaluates language models in Hugging Face folders.

jaxprune inspect FOLDER
jaxprune prune FOLDER --pattern 2:4 --calibration text.txt --output NEW
jaxprune slim FOLDER --mlp 0.75 --drop-layers 4 --calibration text.txt --output NEW
jaxprune evaluate FOLDER --text text.txt
"""

import argparse
import html
import json
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_METHODS = ("sparsegpt", "alps", "obs", "least_squares", "wanda", "ria", "magnitude")


class _UserError(Exception):
    """A mistake that the user can correct; the message is one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the words after `jaxprune`; None (default) takes the arguments of the process.

    Returns:
      The exit code: 0 for success, 2 for a mistake of the user (one sentence on standard error), 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (_UserError, ImportError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"jaxprune: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("; ".join(["jaxprune: interrupted", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="jaxprune", description="Prunes language models from folder to folder.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=about, description=about)
        found.add_argument(
            "folder", type=Path, metavar="FOLDER", help="a Hugging Face folder: config.json, safetensors"
        )
        found.set_defaults(run=run)
        return found

    command("inspect", _inspect, "List a folder's parameters, their sizes, and what would be pruned.")
    prune = command("prune", _prune, "Prune a language model in one shot, block by block, into a new folder.")
    add = prune.add_argument
    add("--output", type=Path, required=True, metavar="NEW", help="the new folder")
    amount = prune.add_mutually_exclusive_group(required=True)
    amount.add_argument("--sparsity", type=_fraction, help="the fraction to remove from each kernel, such as 0.5")
    amount.add_argument("--pattern", type=_n_of_m, metavar="N:M", help="keep N of every M inputs, such as 2:4")
    add("--method", choices=_METHODS, default="sparsegpt", help="the pruning method (default: sparsegpt)")
    add("--calibration", type=Path, required=True, metavar="TEXT", help="a text file to calibrate on")
    add("--text", type=Path, metavar="TEXT", help="another text, to measure the perplexity on before and after")
    add("--windows", type=_positive, default=128, help="how many windows of the calibration text (default: 128)")
    add(
        "--hidden-dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of hidden states in memory",
    )
    add("--hidden-on-disk", action="store_true", help="keep the hidden states in a temporary file beside NEW")
    add("--resume", action="store_true", help="continue a run that was killed")
    _add_shared(prune)
    slim = command("slim", _slim, "Remove MLP neurons, key-value heads and blocks, into a new folder.")
    add = slim.add_argument
    add("--output", type=Path, required=True, metavar="NEW", help="the new folder")
    add("--calibration", type=Path, required=True, metavar="TEXT", help="a text file that units are scored on")
    add("--windows", type=_positive, default=128, help="how many windows of the calibration text (default: 128)")
    add("--mlp", type=_share, default=1.0, metavar="FRACTION", help="the fraction of MLP neurons to keep, such as 0.75")
    add("--kv-heads", type=_positive, metavar="N", help="the number of key-value heads to keep in each block")
    add("--width", type=_share, default=1.0, metavar="FRACTION", help="the fraction of hidden channels to keep")
    add("--experts", type=_share, default=1.0, metavar="FRACTION", help="the fraction of experts to keep")
    about = "the number of blocks to remove, the least influential first; or their numbers, such as 3,7,12"
    add("--drop-layers", type=_blocks, default=0, metavar="N", help=about)
    add("--text", type=Path, metavar="TEXT", help="another text, to measure the perplexity on before and after")
    _add_shared(slim)
    evaluate = command("evaluate", _evaluate, "Measure the perplexity on a text, the size and the zeros.")
    evaluate.add_argument("--text", type=Path, required=True, metavar="TEXT", help="a text file")
    evaluate.add_argument("--windows", type=_positive, metavar="N", help="how many windows of the text (default: all)")
    _add_shared(evaluate)
    return made


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=_positive, default=256, help="tokens of a window (default: 256)")
    about = "show progress also in a log file, or never (default: on a terminal)"
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help=about)


def _inspect(options: argparse.Namespace) -> None:
    from jaxprune import checkpoints, models
    from jaxprune.models.pruning import prunable

    folder = checkpoints.Folder(options.folder)
    family = folder.config.get("model_type")
    known = family in models.FAMILIES
    print(f"{folder.path}: {family}{'' if known else ', a family that models.decoder does not know'}")
    chosen, roles = prunable(folder), {leaf.name: leaf for leaf in folder.roles}
    rows = [
        (name, f"{x.dtype}{list(x.shape)}", x.size, _fate(roles[name], known, chosen(name, x)))
        for name, x in folder.shapes.items()
    ]
    widths = [max(len(str(row[i])) for row in rows) for i in range(2)]
    for name, kind, size, fate in rows:
        print(f"{name:{widths[0]}}  {kind:{widths[1]}}  {size:>13,}  {fate}")
    total, pruned = sum(row[2] for row in rows), sum(row[2] for row in rows if row[3] == "pruned")
    size = sum(x.size * x.dtype.itemsize for x in folder.shapes.values())
    print(f"{total:,} parameters, {size:,} bytes; {pruned:,} ({pruned / max(total, 1):.1%}) would be pruned")


def _fate(leaf: Any, known: bool, pruned: bool) -> str:
    if not known:
        return ""
    if pruned:
        return "pruned"
    return f"kept: {leaf.note or {'embedding': 'an embedding'}.get(leaf.role, 'a norm or bias')}"


def _prune(options: argparse.Namespace) -> None:
    from jaxprune import checkpoints, masks, models

    began = time.perf_counter()
    folder = checkpoints.Folder(options.folder)
    tokens = _tokens(folder, options.calibration, options.length, options.windows)
    text = None if options.text is None else _tokens(folder, options.text, options.length, None, least=2)
    more: dict[str, Any] = {"method": options.method}
    if options.pattern:
        more["pattern"] = masks.NM(*options.pattern)
    results = models.prune_folder(
        *(folder, options.output, tokens, options.sparsity),
        options=more,
        hidden_dtype=options.hidden_dtype,
        hidden_on_disk=options.hidden_on_disk,
        resume=options.resume,
        progress=options.progress,
    )
    report: dict[str, Any] = {
        "source": str(options.folder),
        "method": options.method,
        "asked": f"{options.pattern[0]}:{options.pattern[1]}" if options.pattern else options.sparsity,
        "calibration": {"file": str(options.calibration), "windows": len(tokens), "tokens": tokens.size},
        "blocks": [result._asdict() for result in results],
    }
    _finish(options, report, began, text, "pruning")
    zeros = report["zeros"] / max(report["parameters"], 1)
    print(f"{options.output}: {zeros:.1%} of the parameters are zero; report in pruning.html")


def _slim(options: argparse.Namespace) -> None:
    from jaxprune import checkpoints, models

    began = time.perf_counter()
    folder = checkpoints.Folder(options.folder)
    tokens = _tokens(folder, options.calibration, options.length, options.windows)
    text = None if options.text is None else _tokens(folder, options.text, options.length, None, least=2)
    asked = {name: getattr(options, name) for name in ("mlp", "kv_heads", "width", "experts")}
    more = {"drop_blocks": options.drop_layers, "progress": options.progress}
    found = models.slim_folder(folder, options.output, tokens, **more, **asked)
    report: dict[str, Any] = {
        "source": str(options.folder),
        "asked": {**asked, "drop_layers": options.drop_layers},
        "calibration": {"file": str(options.calibration), "windows": len(tokens), "tokens": tokens.size},
        "removed_blocks": list(found.blocks),
        "influence": found.influence.tolist(),
    }
    _finish(options, report, began, text, "slimming")
    before, after = sum(x.size for x in folder.shapes.values()), report["parameters"]
    print(f"{options.output}: {after:,} of {before:,} parameters ({after / before:.1%}); report in slimming.html")
    if found.blocks:
        print(f"removed blocks: {', '.join(map(str, found.blocks))}")


def _finish(options: argparse.Namespace, report: dict[str, Any], began: float, text: Any, name: str) -> None:
    """Adds time, memory, sizes and perplexity to the report, and writes it into the new folder."""
    from jaxprune import checkpoints, models

    report |= {
        "seconds": time.perf_counter() - began,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **_sizes(checkpoints.Folder(options.output)),
    }
    if text is not None:
        for when, path in (("before", options.folder), ("after", options.output)):
            found = models.perplexity(path, text, progress=options.progress)
            report[f"perplexity_{when}"] = found._asdict()
            print(f"perplexity {when}: {_shown(found)}")
    (options.output / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.output / f"{name}.html").write_text(_page(report, name))


def _evaluate(options: argparse.Namespace) -> None:
    from jaxprune import checkpoints, models

    folder = checkpoints.Folder(options.folder)
    tokens = _tokens(folder, options.text, options.length, options.windows, least=2)
    sizes = _sizes(folder)
    found = models.perplexity(folder, tokens, progress=options.progress)
    print(f"perplexity: {_shown(found)}")
    print(f"{sizes['parameters']:,} parameters, {sizes['bytes']:,} bytes, {sizes['zeros']:,} zeros")
    print(f"{found.tokens / found.seconds:,.0f} tokens a second, reading and compiling included")


def _shown(found: Any) -> str:
    return f"{found.value:.4g} (95 % interval {found.low:.4g} to {found.high:.4g}, {found.tokens:,} tokens)"


def _sizes(folder: Any) -> dict[str, int]:
    zeros = 0
    for name in folder.shapes:  # one at a time: the folder may be larger than memory
        zeros += int((folder.load([name])[name] == 0).sum())
    return {
        "parameters": sum(x.size for x in folder.shapes.values()),
        "bytes": sum(x.size * x.dtype.itemsize for x in folder.shapes.values()),
        "zeros": zeros,
    }


def _tokens(folder: Any, path: Path, length: int, windows: int | None, least: int = 1) -> Any:
    """Returns the first windows of a text, int [windows, length], by the folder's own tokenizer."""
    import numpy as np

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _UserError("reading a text needs the package tokenizers: pip install tokenizers") from error
    file = folder.path / "tokenizer.json"
    if not file.is_file():
        raise _UserError(f"{folder.path} has no tokenizer.json; save the model's tokenizer into it")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _UserError(f"{path} cannot be read as text ({error})") from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more specific
        raise _UserError(f"{file} is damaged ({error}); copy or download it again") from error
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    count = len(ids) // length
    if count < least:
        needed = f"{least * length:,} tokens ({least} times --length {length})"
        raise _UserError(f"{path} has {len(ids):,} tokens, at least {needed} are needed; pass a longer text")
    return ids[: count * length].reshape(count, length)[:windows]


def _page(report: dict[str, Any], name: str) -> str:
    """Returns the report as one HTML page that needs no network."""
    rows = [(key.replace("_", " "), value) for key, value in report.items() if key != "blocks"]
    facts = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(_plain(v))}</td></tr>" for k, v in rows)
    layers = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{error:.4f}</td></tr>"
        for block in report.get("blocks", ())
        for name, error in block["errors"].items()
    )
    style = (
        ":root{color-scheme:light dark}"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    )
    errors = (
        "<h2>Squared change of each kernel's outputs, over their squared size</h2>"
        f"<table><tr><th>kernel</th><th>error</th></tr>{layers}</table>"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>What {name} did</title>'
        f"<style>{style}</style><h1>What {name} did</h1><table>{facts}</table>{errors if layers else ''}</html>\n"
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction in [0, 1)")
    return value


def _blocks(text: str) -> int | list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of blocks nor numbers such as 3,7,12")
    return [int(number) for number in text.split(",")] if "," in text else int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction in (0, 1]")
    return value


def _n_of_m(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pattern N:M with N below M, such as 2:4")
    return int(found[1]), int(found[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
