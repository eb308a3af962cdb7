"""project7 colorize | serve | transfer | evaluate | compare | export | push | models | doctor | ...: the commands.

Heavy modules are imported by the command that needs them.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Project7 import flags, invocation, model_folder, program
from Project7.answer_config import ColorizeConfig, EvaluateConfig
from Project7.console import make_console, one_line, say
from Project7.counting import sized
from Project7.errors import ProjectError, UsageError, sentence
from Project7.model_config import METHOD_CONFIGS, ClassificationConfig
from Project7.processes import check_launch, own_share, several_processes
from Project7.settings import parse_settings
from Project7.training_config import DataConfig, TrainingConfig

_RECIPES = """training is done by scripts, which ask what they need: python -m Project7.NAME
  train_diffusion             diffusion, mean squared error alone
  train_diffusion_v2          the same with a perceptual and an adversarial term
  train_classification        one of 313 colours for each pixel
  train_colorization_simple   direct regression with one of three losses
  train_image_restoration     the same; faded photos get their lightness back
"""
# The flags of colorize, by what they are about.
_GROUPS = {
    "how it answers": ("seed", "variants", "guidance", "candidates", "calm", "steps", "fast", "sampler"),
    "how it answers, classification models": ("temperature", "variety", "confidence"),
    "the picture": ("saturation", "warmth", "levels", "denoise", "mark", "format", "skip_colour"),
    "the machine": ("working_size", "precision", "batch_size", "device"),
}


def main() -> int:
    """The console script `project7`. Returns the exit code."""
    return program.run(command)


def command(argv: list[str] | None = None) -> int:
    parser = flags.Parser(
        prog="project7",
        description="Colour for gray photos, by diffusion.",
        epilog=_RECIPES,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    if not arguments.command:
        parser.print_help()
        return 0
    return arguments.run(arguments)


def add_command(commands, name: str, about: str, *lines: str) -> flags.Parser:
    """Adds a command with its description and examples."""
    shown = flags.examples(*(f"{invocation.command()} {name} {line}".rstrip() for line in lines))
    return commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=shown)


def add_models_dir(parser) -> None:
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=model_folder.default_models_dir(),
        metavar="DIR",
        help="folder that holds the models (models/)",
    )


def add_cache_dir(parser) -> None:
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="folder for decoded photos ($PROJECT7_CACHE or ~/.cache/project7)"
    )


# -- colorize --------------------------------------------------------------------------------------------------------


def add_colorize(commands) -> None:
    about = "colour photos and whole folders with a trained model"
    parser = add_command(
        commands,
        "colorize",
        about,
        "photo.jpg",
        "holiday/ scans/ --output coloured --skip-colour",
        "photo.jpg --variants 4 --seed 7",
        "photo.jpg --hint 120,80,#2a5caa --side-by-side",
    )
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO|FOLDER")
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="a model's name, folder or export, or a .pth file (base, or the only one)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder for the pictures (outputs)"
    )
    parser.add_argument("--force", action="store_true", help="colour again what was coloured already")
    add_models_dir(parser)
    add_retouch(parser.add_argument_group("what you know about a photo"))
    for title, names in _GROUPS.items():
        flags.add_settings(parser.add_argument_group(title), ColorizeConfig, only=names)
    parser.set_defaults(run=colorize)


def add_retouch(parser) -> None:
    """The flags that concern single photos."""
    parser.add_argument(
        "--hint",
        action="append",
        default=[],
        metavar="X,Y,COLOUR",
        help="the pixel X,Y of the photo has this colour, #rrggbb or a name (give the flag once per hint)",
    )
    parser.add_argument("--hints", type=Path, metavar="FILE", help='JSON: [{"x": 10, "y": 20, "color": "#aa3322"}]')
    parser.add_argument(
        "--like", type=Path, metavar="PICTURE", help="repeat how this coloured picture was made; other flags change it"
    )
    parser.add_argument("--reference", type=Path, metavar="PHOTO", help="a colour photo whose colours become hints")
    parser.add_argument(
        "--hints-from",
        type=Path,
        metavar="PNG",
        help="a picture of this toolkit whose hints are also used for what is alike in the other photos",
    )
    parser.add_argument("--side-by-side", action="store_true", help="also write gray and colour beside each other")
    parser.add_argument(
        "--ambiguity", action="store_true", help="also write a map of where the model is unsure (white)"
    )


def colorize(arguments: argparse.Namespace) -> int:
    check_launch()
    console = make_console(stderr=True, wrap=False)
    like = earlier_picture(arguments.like)
    given = (like.settings() if like else {}) | flags.given(arguments, ColorizeConfig)
    settings: ColorizeConfig = parse_settings(ColorizeConfig, given)
    load, exported = colorizer_to_load(arguments, settings, like)
    found = named_photos(arguments.photos, console, arguments.output)

    from Project7.answer_options import method_options
    from Project7.colorize_files import colorize_files, plan_outputs
    from Project7.provenance import TONE

    hints = given_hints(arguments, len(found))
    retouch = None if exported else wanted_retouch(arguments, like, hints)
    plan: dict[str, Any] = {"variants": settings.variants, "confidence": settings.confidence}
    jobs = own_share(plan_outputs(found, arguments.output, suffix=f".{settings.format}", **plan))
    colorizer = load()
    if colorizer.note:
        console.print(colorizer.note)
    if settings.confidence:
        colorizer.check_confidence()
    if settings.variants > 1 and not colorizer.model.OPTIONS:
        method = colorizer.config.model.method
        raise UsageError(f"--variants {settings.variants}: a {method} model has one answer only; leave the flag out.")
    shared = {name: getattr(settings, name) for name in (*TONE, "seed", "confidence", "working_size", "skip_colour")}
    shared |= {"force": arguments.force}
    shared |= method_options(colorizer, settings, flags.given(arguments, ColorizeConfig))
    if retouch:
        from Project7.retouch import retouch_files

        outcomes = retouch_files(colorizer, jobs, retouch, **shared)
    else:
        told: dict[str, Any] = {"hints": hints} if hints else {}
        outcomes = colorize_files(colorizer, jobs, batch_size=settings.batch_size, **told, **shared)
    return show_outcomes(outcomes, len(jobs), arguments.output, colorizer.name, console)


def named_photos(paths: list[Path], console, output: Path | None = None) -> list[tuple[Path, Path]]:
    """The photos among files and folders, except those in `output`, which are earlier results. Prints what was left
    out. Raises UsageError if there are none."""
    from Project7.photo_files import LeftOut, find_photos, shown

    left_out = LeftOut()
    found = find_photos(paths, left_out=left_out, output=output)
    for line in left_out.lines(most=20):
        console.print(line[0].upper() + line[1:], soft_wrap=True)
    if not found:
        named = ", ".join(map(shown, paths))
        raise UsageError(f"No photos in {named}; give JPEG, PNG, WebP, TIFF, AVIF or BMP files.")
    return found


def earlier_picture(path: Path | None, flag: str = "--like"):
    """How a picture was made, for a flag. Raises UsageError if the picture does not say."""
    if path is None:
        return None
    from Project7.provenance import read_provenance

    if not path.is_file():
        raise UsageError(f"{flag} {path} does not exist; give a PNG that `project7 colorize` or the page wrote.")
    if (made := read_provenance(path)) is None:
        raise UsageError(f"{flag} {path} does not say how it was made; give a PNG as this toolkit wrote it.")
    return made


def colorizer_to_load(arguments: argparse.Namespace, settings: ColorizeConfig, like) -> tuple[Callable[[], Any], bool]:
    """A function that loads the model: with torch if that is installed, else, and for exported models always, with
    onnxruntime; and whether the model is an exported one. Raises UsageError if there is no such model."""
    model, models_dir = arguments.model or (like and like.model), arguments.models_dir

    from Project7.onnx_colorizer import OnnxColorizer, find_export

    torch = program.has("torch")
    folder = find_export(model, models_dir) if model or not torch else None
    if torch and (folder is None or (folder / "best_model.pth").exists()):
        weights = model_folder.find_weights(model or default_model(models_dir), models_dir)

        def load() -> Any:
            from Project7.colorize import Colorizer

            return Colorizer.load(weights, device=settings.device, precision=settings.precision)

        return load, False
    if folder is None:
        raise UsageError(
            f"Without torch only exported models can be used, and {model or 'base'} is not one; run project7 export "
            f"{model or 'base'} --to FOLDER on a machine with torch and give --model FOLDER here, or run "
            "pip install project7."
        )
    single = ("like", "reference", "hints_from", "side_by_side", "ambiguity")
    for flag in [name for name in single if getattr(arguments, name)] + ["confidence"] * settings.confidence:
        raise UsageError(
            f"--{flag.replace('_', '-')} does not work with exported models, which run without torch; leave it out."
        )
    if settings.device not in ("auto", "cpu") or settings.precision != "fp32":
        raise UsageError("An exported model runs on the CPU in fp32; leave out --device and --precision.")
    return lambda: OnnxColorizer(folder), True  # torch is not even imported: that takes longer than the answer


def given_hints(arguments: argparse.Namespace, photos: int) -> list[tuple[float, float, str]]:
    """The hints from --hint and --hints. Raises UsageError if they are wrong, or given for several photos."""
    from Project7.provenance import parse_hint, read_hints

    hints = [parse_hint(text) for text in arguments.hint]
    if arguments.hints:
        try:
            hints += read_hints(arguments.hints.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--hints {arguments.hints} cannot be read: {sentence(error)}.") from None
    if hints and photos > 1:
        raise UsageError(f"--hint is for one photo, and there are {photos}; give one photo at a time.")
    return hints


def wanted_retouch(arguments: argparse.Namespace, like, hints: list[tuple[float, float, str]]):
    """What was asked for single photos. Raises UsageError if something cannot be used."""
    from Project7.photo import open_photo
    from Project7.retouch import Retouch

    reference = open_photo(arguments.reference) if arguments.reference else None
    hinted = hinted_picture(arguments.hints_from)
    return Retouch(tuple(hints), like, reference, hinted, arguments.side_by_side, arguments.ambiguity)


def hinted_picture(path: Path | None):
    """A picture whose hints are for other photos, too. Raises UsageError if it has none."""
    if path is None:
        return None
    from Project7.photo import open_photo
    from Project7.reference import Hinted

    made, photo = earlier_picture(path, "--hints-from"), open_photo(path)
    if not made.hints:
        raise UsageError(f"--hints-from {path} was made without hints; give a picture that was made with some.")
    if (made.height, made.width) != photo.rgb.shape[:2]:
        raise UsageError(f"--hints-from {path} has another size than when it was made; give it as it was written.")
    return Hinted(photo, [hint.as_hint() for hint in made.hints])


def show_outcomes(outcomes, total: int, output: Path, model: str, console) -> int:
    """Prints one line per finished photo, what was left out and why, and a summary. Returns 1 if a file failed."""
    from Project7.counting import counting

    counts = {"done": 0, "exists": 0, "left": 0, "failed": 0}
    with counting(console) as progress:
        progress("colouring", 0, total)
        for number, outcome in enumerate(outcomes, start=1):
            counts[outcome.kind] += 1
            if outcome.kind == "done":
                where = f"{outcome.job.source} -> {file_names(outcome.files)}"
                say(f"{where}  ({model}, {outcome.seconds:.1f} s)")
            if outcome.text:
                word = {"done": "Note", "exists": "Skipped", "left": "Left", "failed": "Failed"}[outcome.kind]
                where = f"{outcome.job.source}: " if outcome.kind in ("done", "left") else ""
                console.print(one_line(f"{word}: {where}{outcome.text}"))
            progress("colouring", number, total)
    parts = [f"{counts['done']} coloured"]
    parts += [f"{counts['exists']} skipped (there already)"] * bool(counts["exists"])
    parts += [f"{counts['left']} left (in colour)"] * bool(counts["left"])
    parts += [f"{counts['failed']} failed"] * bool(counts["failed"])
    who = f"process {os.environ['RANK']}: " if several_processes() else ""
    say(f"{who}{', '.join(parts)}: {output}")
    return 1 if counts["failed"] else 0


def file_names(files: tuple[Path, ...]) -> str:
    """Names of files for a message, such as outputs/robin-1.png, robin-2.png; of more than six, the first and last."""
    names = [str(files[0]), *(path.name for path in files[1:])]
    return ", ".join(names if len(names) <= 6 else [names[0], "...", *names[-2:]])


def default_model(models_dir: Path) -> str:
    """`base`, which comes with the toolkit, or the only model in the folder. Raises UsageError if there are several."""
    names = [model.name for model in model_folder.list_models(models_dir)]
    if not names or "base" in names:
        return "base"
    if len(names) == 1:
        return names[0]
    raise UsageError(f"Which of the {len(names)} models in {models_dir}? Choose with --model: {', '.join(names)}.")


# -- evaluate, compare -----------------------------------------------------------------------------------------------


def add_evaluate(commands) -> None:
    about = "measure models on photos with known colours, beside gray and the mean colour"
    parser = add_command(
        commands,
        "evaluate",
        about,
        "--model base --data holiday/",
        "--model mine --model base --data holiday/ --samples 4 --json result.json",
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME|PATH",
        help="a model to measure; give the flag once per model",
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="a folder or zip of colour photos, or 'samples'")
    parser.add_argument("--split", choices=("train", "val"), help="part of a divided set such as Tiny ImageNet (val)")
    add_models_dir(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result, for `project7 compare`")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="write a sheet of pictures, the worst photos and the colour bias of each class",
    )
    parser.add_argument("--all", action="store_true", help="show all measures, not only the eight that matter")
    add_cache_dir(parser)
    flags.add_settings(parser, EvaluateConfig)
    parser.set_defaults(run=evaluate)


def evaluate(arguments: argparse.Namespace) -> int:
    settings: EvaluateConfig = parse_settings(EvaluateConfig, flags.given(arguments, EvaluateConfig))
    paths = [model_folder.find_weights(model, arguments.models_dir) for model in arguments.model]
    names = [model_folder.name_of(path) for path in paths]
    twice = next((name for name in names if names.count(name) > 1 or name in ("gray", "mean-colour")), None)
    if twice:
        raise UsageError(f"Two rows of the table would be called {twice}; give models of different names.")
    console = make_console(stderr=True, wrap=False)

    from Project7 import evaluate as evaluation
    from Project7.colorize import Colorizer
    from Project7.counting import counting
    from Project7.dataset import open_photos
    from Project7.evaluation_report import write_evaluation_pictures

    evaluation.check_files(settings)
    colorizers = [Colorizer.load(path, device=settings.device, precision=settings.precision) for path in paths]
    evaluation.check_hints(settings, colorizers)
    size = settings.size or colorizers[0].config.data.kept_size
    where = {"split": arguments.split, "limit": settings.limit, "cache_dir": arguments.cache_dir}
    with counting(console) as progress:
        photos = open_photos(arguments.data, size=size, progress=progress, **where)
        evaluation.check_colours(photos, arguments.data)
        answers = evaluation.baselines(photos)
        for colorizer in colorizers:
            answers.append(evaluation.answer(colorizer, photos, settings, progress=progress))
        result, found = evaluation.evaluate(answers, photos, settings, split=arguments.split, progress=progress)
    show_result(result["rows"], result["protocol"]["missing"], whole=arguments.all)
    for line in evaluation.verdicts(result["differences"]):
        say(line)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        evaluation.write_result(arguments.json, result)
        say(f"Result: {arguments.json}")
    if arguments.pictures:
        for path in write_evaluation_pictures(arguments.pictures, answers, photos, found):
            say(f"Picture: {path}")
    return 0


def show_result(rows: list[dict[str, Any]], missing: dict[str, str], *, whole: bool) -> None:
    """Prints the table, what is missing in it, and a summary in words. Output to a pipe has all measures."""
    from Project7.evaluation_report import evaluation_table, in_words, reasons

    console = make_console(width=None if sys.stdout.isatty() else 200)
    utf = console.encoding.lower().startswith("utf")
    console.print(evaluation_table(rows, whole=whole or not sys.stdout.isatty(), unicode=utf))
    for line in [*reasons(missing), *in_words(rows)]:
        say(line)


def add_compare(commands) -> None:
    about = "put results of `project7 evaluate --json` into one table, if they were measured alike"
    parser = add_command(commands, "compare", about, "result.json yesterday.json")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--despite", nargs="+", default=[], metavar="KEY", help="keys of the protocol that may differ")
    parser.add_argument("--all", action="store_true", help="show all measures, not only the eight that matter")
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> int:
    from Project7.evaluate import joined, read_result

    results = [(str(path), read_result(path)) for path in arguments.results]
    rows = joined(results, despite=arguments.despite)
    show_result(rows, results[0][1]["protocol"].get("missing", {}), whole=arguments.all)
    return 0


# -- export ----------------------------------------------------------------------------------------------------------


def add_export(commands) -> None:
    about = "write a model for other programs: diffusers' folders, ONNX, and how to use them"
    parser = add_command(commands, "export", about, "mine --to mine-export")
    parser.add_argument("model", metavar="NAME|PATH", help="a model's name, its folder, or a .pth file")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument("--no-onnx", action="store_true", help="leave out model.onnx")
    parser.add_argument("--half", action="store_true", help="keep ONNX weights in half precision: half the size")
    parser.add_argument("--force", action="store_true", help="replace what an earlier export wrote there")
    add_models_dir(parser)
    parser.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> int:
    weights = model_folder.find_weights(arguments.model, arguments.models_dir)

    from Project7.checkpoints import unsealed_note
    from Project7.export import export_model

    if note := unsealed_note(weights):
        say(note, file=sys.stderr)
    how = {"with_onnx": not arguments.no_onnx, "half": arguments.half, "force": arguments.force}
    if note := export_model(weights, arguments.to, **how):
        say(f"Note: {note}", file=sys.stderr)
    for path in sorted(path for path in arguments.to.rglob("*") if path.is_file()):
        say(f"{sized(path.stat().st_size):>9}  {path}")
    if (arguments.to / "model.onnx").exists():
        use = f"{invocation.command()} colorize PHOTO --model {shlex.quote(str(arguments.to))}"
        say(f"Colour with it, without the seconds that PyTorch takes to start: {use}")
    return 0


def add_push(commands) -> None:
    about = "upload a model to the Hugging Face Hub"
    parser = add_command(commands, "push", about, "mine owner/mine --private --license mit")
    parser.add_argument("model", metavar="NAME|PATH", help="a model's name, its folder, or a .pth file")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="if the repository is new, only its owner can see it")
    parser.add_argument("--license", metavar="ID", help="licence of the weights by the Hub's identifier, such as mit")
    add_models_dir(parser)
    parser.set_defaults(run=push)


def push(arguments: argparse.Namespace) -> int:
    weights = model_folder.find_weights(arguments.model, arguments.models_dir)

    from Project7.colorize import Colorizer

    colorizer = Colorizer.load(weights, device="cpu")
    address = colorizer.push_to_hub(arguments.repo, private=arguments.private or None, license=arguments.license)
    say(f"Uploaded: {address}")
    say(f'From Python: Colorizer.from_pretrained("{arguments.repo}")')
    return 0


# -- models, data, download, demo ------------------------------------------------------------------------------------


def add_models(commands) -> None:
    about = "list the trained models, and those that come with the toolkit"
    parser = add_command(commands, "models", about, "", "--models-dir elsewhere/models")
    add_models_dir(parser)
    parser.set_defaults(run=models)


def models(arguments: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    found = model_folder.list_models(arguments.models_dir)
    if not found:
        say(f"No models in {arguments.models_dir} yet. Train one: python -m Project7.train_diffusion")
    own = {model.name for model in found}
    found += [model for model in model_folder.shipped_models() if model.name not in own]
    if not found:
        return 0
    console = make_console(width=None if sys.stdout.isatty() else 160)
    for method in dict.fromkeys(method_of(model) for model in found):
        kind: Any = METHOD_CONFIGS.get(method)
        console.print(Text.assemble("\n", (method, "bold"), f": {kind.CHOOSE}" if kind else ""))
        table = Table(box=None, padding=(0, 2, 0, 2))
        for heading in ("model", "size", "epochs", "best loss", "changed", "weights"):
            table.add_column(heading, justify="left" if heading in ("model", "changed") else "right", no_wrap=True)
        for model in found:
            if method_of(model) == method:
                table.add_row(*model_row(model))
        console.print(table)
    return 0


def method_of(model: model_folder.ModelSummary) -> str:
    return model.config.model.method if model.config else "config.json is missing or damaged"


def model_row(model: model_folder.ModelSummary) -> list[str]:
    config = model.config
    planned = f"/{config.training.epochs}" if config and not model.complete else ""
    return [
        model.name,
        f"{config.data.image_size} px" if config else "",
        f"{model.epochs}{planned}",
        "" if model.best_val_loss is None else f"{model.best_val_loss:.4f}",
        f"{model.changed:%Y-%m-%d}" if model.changed else "",
        sized(model.size) if model.size else "none yet",
    ]


def add_doctor(commands) -> None:
    about = "find out from a run's curves and pictures what goes wrong, and what to change"
    parser = add_command(commands, "doctor", f"{about} (exit code 1: findings)", "mine")
    parser.add_argument("name", metavar="NAME", help="the model, in training or trained")
    add_models_dir(parser)
    parser.set_defaults(run=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    from Project7 import health
    from Project7.atomic_file import replacing
    from Project7.doctor_report import draw_curves, show_diagnosis

    folder = model_folder.existing_folder(arguments.models_dir, arguments.name)
    console = make_console(width=None if sys.stdout.isatty() else 160)
    history = model_folder.read_history(folder)
    if history is None:
        console.print(f"{folder.history} is damaged, so only the logs are read.", style="yellow")
    config = model_folder.summarize(folder).config
    known = folder.name, config, history or [], [] if history else health.read_log(folder.logs)
    record = health.record_of(*known)
    if not record.windows and (finding := health.unusual_rate(record)):  # it needs no curve
        console.print(finding.line())
        return 1
    if not record.windows:
        raise ProjectError(f"Nothing was logged for {folder.name!r} yet; let it train for some tens of steps.")
    findings = health.diagnose(record)
    stages = health.stages(*known)
    show_diagnosis(record, findings, stages, console)
    picture = folder.path / "doctor.png"
    try:
        with replacing(picture) as file:
            file.write(draw_curves(stages))
        console.print(f"Curves: {picture}")
    except OSError as error:  # such as a folder that only an administrator may change
        console.print(f"The curves were not drawn: {sentence(error)}.", style="yellow")
    return 1 if findings else 0


def add_data(commands) -> None:
    about = "look at a data set as training would see it, and build its cache"
    parser = add_command(commands, "data", about, "--data ~/photos --image-size 128 --crops 20")
    flags.add_settings(parser, DataConfig)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (0)")
    add_cache_dir(parser)
    parser.set_defaults(run=data)


def data(arguments: argparse.Namespace) -> int:
    from Project7.counting import counting
    from Project7.dataset import open_dataset
    from Project7.metrics import colorfulness

    parse_settings(TrainingConfig, {"seed": arguments.seed})
    config: DataConfig = parse_settings(DataConfig, flags.given(arguments, DataConfig))
    with counting(make_console(stderr=True)) as progress:
        parts = open_dataset(config, seed=arguments.seed, cache_dir=arguments.cache_dir, progress=progress, say=say)
    for part in parts:
        for line in part.summary.lines():
            say(line)
        some = colorfulness(part.images[:2000])
        say(
            f"  colorfulness of the first {len(some)}: mean {some.mean():.1f}; {(some < 10).mean():.0%} are nearly gray"
        )
    return 0


def add_palette(commands) -> None:
    about = "fit a palette of colours to a set of photos, for classification models"
    parser = add_command(commands, "palette", about, "--data ~/photos --output palette.npz")
    flags.add_settings(parser, DataConfig)
    parser.add_argument("--bins", default="313", metavar="N", help="number of colours (313)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (0)")
    parser.add_argument(
        "--output", type=Path, default=Path("palette.npz"), metavar="FILE", help="file to write (palette.npz)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file without asking")
    add_cache_dir(parser)
    parser.set_defaults(run=palette)


def may_replace(path: Path) -> bool:
    """Asks whether a file may be replaced. Raises UsageError if there is no terminal."""
    from Project7 import prompts

    if not prompts.can_ask():
        raise UsageError(f"{path} exists; --force replaces it.")
    return prompts.agreed(f"{path} exists. Replace it?", default=False)


def palette(arguments: argparse.Namespace) -> int:
    """Writes the palette, and a picture of it beside it."""

    settings = parse_settings(ClassificationConfig, {"bins": arguments.bins})
    parse_settings(TrainingConfig, {"seed": arguments.seed})
    config: DataConfig = parse_settings(DataConfig, flags.given(arguments, DataConfig))

    picture = arguments.output.with_suffix(".png")
    if picture == arguments.output:
        raise UsageError(f"--output {arguments.output}: this name is for the picture of the palette; use FILE.npz.")
    if not arguments.force and arguments.output.exists() and not may_replace(arguments.output):
        return 0

    from Project7.counting import counting
    from Project7.dataset import open_dataset
    from Project7.palette import draw_palette, fit_palette, save_palette
    from Project7.photo import save_png

    with counting(make_console(stderr=True)) as progress:
        training, _ = open_dataset(
            config, seed=arguments.seed, cache_dir=arguments.cache_dir, progress=progress, say=say
        )
        found = fit_palette(training.images, settings.bins, seed=arguments.seed, progress=progress)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_palette(arguments.output, found)
    save_png(picture, draw_palette(found))
    pixels, rarest = found.counts.sum(), found.counts.min() / found.counts.sum()
    say(f"{settings.bins} colours of {pixels:,.0f} pixels (the rarest has {rarest:.1e} of them): {arguments.output}")
    say(f"Picture: {picture}")
    return 0


def add_download(commands) -> None:
    about = "download Tiny ImageNet (240 MB), resuming an interrupted download"
    parser = add_command(commands, "download", about, "")
    parser.add_argument(
        "--to", type=Path, default=Path("data"), metavar="DIR", help="folder it is unpacked into (data)"
    )
    parser.add_argument("--url", metavar="URL", help="address of the archive (the official one)")
    parser.set_defaults(run=download)


def download(arguments: argparse.Namespace) -> int:
    from Project7.counting import counting
    from Project7.download import download_tiny_imagenet

    address: dict[str, Any] = {"url": arguments.url} if arguments.url else {}
    with counting(make_console(stderr=True)) as progress:
        folder = download_tiny_imagenet(arguments.to, progress=progress, **address)
    say(f"Tiny ImageNet is in {folder}. Train on it: python -m Project7.train_diffusion --data {folder}")
    return 0


def add_demo(commands) -> None:
    about = "colour a few photos with the model that comes with the toolkit, or with one trained on the spot"
    parser = add_command(commands, "demo", about, "", "--train")
    parser.add_argument("--train", action="store_true", help="train a small model on four photos first (4 minutes)")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), metavar="DIR")
    add_models_dir(parser)
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> int:
    from Project7.demo import run_demo

    return run_demo(arguments.output, arguments.models_dir, train=arguments.train)


def add_transfer(commands) -> None:
    about = "put the colours of an edited copy on the untouched lightness of the original, at full size"
    parser = add_command(commands, "transfer", about, "original.tif edited.png --output coloured.png")
    parser.add_argument("original", type=Path, metavar="ORIGINAL")
    parser.add_argument("edited", type=Path, metavar="EDITED", help="a copy of any size, shifted slightly at most")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".png, .tif, .jpg or .webp")
    parser.add_argument("--mark", action="store_true", help=ColorizeConfig.model_fields["mark"].description)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.set_defaults(run=transfer)


def transfer(arguments: argparse.Namespace) -> int:
    output = arguments.output
    if output.suffix not in (".png", ".tif", ".jpg", ".webp"):
        raise UsageError(f"--output {output}: the name must end with .png, .tif, .jpg or .webp.")
    if output.exists() and not arguments.force:
        raise UsageError(f"{output} exists; --force replaces it.")

    from Project7 import mark
    from Project7 import transfer as colours
    from Project7.photo import carried_over, open_photo, save_photo

    original, edited = open_photo(arguments.original), open_photo(arguments.edited)
    picture, text = colours.transfer(original, edited), None
    if arguments.mark:
        picture, text = mark.marked(picture), {"Comment": mark.ADDED}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_photo(output, picture, text=text, **carried_over(original))
    say(f"Coloured: {output}")
    return 0


def add_serve(commands) -> None:
    about = "serve the page and the HTTP API: drop a photo, say what is red, compare models"
    parser = add_command(commands, "serve", about, "--open", "--host 0.0.0.0 --port 8000")
    add_models_dir(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="0.0.0.0 lets others on the network in (127.0.0.1)"
    )
    parser.add_argument("--port", type=port_number, default=7860, metavar="N", help="port; 0 takes a free one (7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="device to compute on")
    parser.set_defaults(run=serve)


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text} is not a port; give a number from 0 to 65535")
    return int(text)


def serve(arguments: argparse.Namespace) -> int:
    # Read when torch is loaded: threads that wait for each other sleep. On a machine that is busy they would spin away
    # the time of those they wait for, and an answer would take five times as long (benchmarks/RESULTS.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from Project7 import web
    from Project7.studio import Studio

    def ready(address: str) -> None:
        say(f"Project7 is at {address} (Ctrl-C ends it)")
        if arguments.open:
            import webbrowser

            webbrowser.open(address)

    studio = Studio(arguments.models_dir, device=arguments.device)
    web.serve(studio, host=arguments.host, port=arguments.port, ready=ready)
    return 0


COMMANDS = (
    add_colorize,
    add_serve,
    add_transfer,
    add_evaluate,
    add_compare,
    add_export,
    add_push,
    add_models,
    add_doctor,
    add_data,
    add_palette,
    add_download,
    add_demo,
)

if __name__ == "__main__":
    sys.exit(main())
