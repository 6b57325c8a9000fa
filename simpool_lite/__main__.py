"""The command line: ``python -m simpool_lite``.

A sub-command is a function that adds its parser and one that does it. Both import what they need
themselves, so that ``--help`` answers at once.
"""

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Container, Sequence
from pathlib import Path

from .checks import check_number
from .experiments.budgets import PROFILES
from .files import check_writable, repository_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 (a notebook failed), 2 (wrong use), 130 (Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="python -m simpool_lite", description="The SimPool workbook.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_run, add_list, add_student, add_slides, add_record, add_train, add_dino, add_probe, add_localise):
        add(commands)
    options, unknown = parser.parse_known_args(arguments)
    options.others = unknown
    if unknown and options.function not in (_train, _dino, _probe, _localise):  # which read their options themselves
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return options.function(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def add_run(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``run``."""
    parser = commands.add_parser(
        "run",
        help="execute the notebooks and write an HTML report",
        description="Execute notebooks in order, stop at the first that fails, and write an HTML report.",
        epilog="examples:  run  |  run 00 03-simpool  |  run 05 --profile smoke  |  run 05 -p seeds 3",
    )
    _add_notebooks(parser)
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="number, name, its beginning or path (all)")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        help="how much to compute, for notebooks that can choose",
    )
    parser.add_argument(
        "-p",
        "--parameter",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter of the notebooks that have it; again for more",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (build/workbook)")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    parser.add_argument(
        "--inplace",
        action="store_true",
        help="for maintainers: also replace each notebook that passes by its executed copy",
    )
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace) -> int:
    if options.inplace and (options.profile or options.parameters):
        return _wrong("--inplace executes the notebooks as they are: no --profile, no -p")
    try:
        from .workbook import report, runner
        from .workbook.notebooks import WorkbookError, parse_value
    except ModuleNotFoundError as error:
        return _missing(error)
    try:
        folder = _notebooks(options)
        parameters = {name: parse_value(value) for name, value in options.parameters}
        for name, value in parameters.items() if options.notebooks is None else ():
            _check_parameter(name, value)
        output = (options.output or folder.parent / "build" / "workbook").resolve()
        outcomes = runner.plan(
            folder,
            output,
            options.names,
            profile=options.profile,
            parameters=parameters,
        )
    except (WorkbookError, FileNotFoundError) as error:
        return _wrong(error)
    except (TypeError, ValueError) as error:
        return _wrong(f"parameter {error}")
    write = report.Report(outcomes, output)
    runner.execute(outcomes, inplace=options.inplace, progress=options.progress, changed=write)

    print(f"\n{runner.times(outcomes)}\n\nReport: {write.index}\n        {write.index.as_uri()}")
    stopped = next((outcome for outcome in outcomes if outcome.stopped), None)
    if stopped is None:
        return 0
    print(f"\n{runner.explain(stopped, _again(options, stopped.source, stopped.parameters))}", file=sys.stderr)
    return 130 if stopped.status == "interrupted" else 1


def _check_parameter(name: str, value: object) -> None:
    """Refuse a value of the workbook's parameters that its notebooks would stumble over, minutes later."""
    from .checks import check_choice, check_path

    if name == "profile":
        check_choice(name, value, PROFILES)
    elif name == "device":
        from .device import resolve_device

        resolve_device(value)
    elif name == "dataset":
        from .datasets import DATASETS

        check_choice(name, value, DATASETS)
    elif name == "regime" and value is not None:
        from .experiments.config import REGIMES

        check_choice(name, value, REGIMES)
    elif name == "backbone" and value is not None:
        from .models.create import check_backbone

        check_backbone(value)
    elif name == "data_root" and value is not None:
        if not Path(check_path(name, value)).expanduser().is_dir():
            raise ValueError(f"{name}: expected a folder, found none at {value}; pass another path")
    elif name == "store" and value is not None and Path(check_path(name, value)).is_file():
        raise ValueError(f"{name}: expected a folder, got the file {value}; pass another path")


def _again(options: argparse.Namespace, notebook: Path, parameters: Container[str]) -> str:
    """Return the command that runs one of the notebooks again, with those options that are for it."""
    words = ["python", "-m", "simpool_lite", "run", str(notebook) if options.notebooks else notebook.stem]
    words += ["--profile", options.profile] if options.profile else []
    words += [word for name, value in options.parameters if name in parameters for word in ("-p", name, value)]
    words += ["--output", str(options.output)] if options.output else []
    return shlex.join(words + (["--inplace"] if options.inplace else []))


def add_list(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``list``."""
    parser = commands.add_parser(
        "list",
        help="show the notebooks, their parameters and how long they take",
        description="Show the notebooks: title, cells, time to read, time when last recorded, estimates per profile, "
        "parameters.",
    )
    _add_notebooks(parser)
    parser.add_argument("--sections", action="store_true", help="minutes to read each section instead, as markdown")
    parser.set_defaults(function=_list)


def _list(options: argparse.Namespace) -> int:
    try:
        from .workbook import runner
        from .workbook.notebooks import WorkbookError
    except ModuleNotFoundError as error:
        return _missing(error)
    try:
        if options.sections:
            print(runner.sections(_notebooks(options)))
        else:
            print(runner.listing(_notebooks(options), PROFILES, shutil.get_terminal_size((110, 24)).columns))
    except (WorkbookError, OSError) as error:
        return _wrong(error)
    return 0


def add_student(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``student``."""
    parser = commands.add_parser(
        "student",
        help="write the notebooks without solutions and outputs",
        description="Write the notebooks as exercise sheets: empty cells for the answers, no outputs.",
    )
    _add_edition(parser, "student")
    parser.add_argument(
        "--colab", metavar="URL", help="address of the repository; each sheet can then be opened in Google Colab"
    )


def add_slides(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``slides``."""
    parser = commands.add_parser(
        "slides",
        help="write the notebooks as slides",
        description="Write each notebook as slides (reveal.js) in one HTML file that needs no network. Cells marked "
        "as slides in Jupyter are taken as marked; else each section is a slide, figures and tables come without code.",
    )
    _add_edition(parser, "slides")


def _add_edition(parser: argparse.ArgumentParser, edition: str) -> None:
    _add_notebooks(parser)
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="number, name, its beginning or path (all)")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder to write (build/{edition})")
    parser.set_defaults(function=_edition, edition=edition)


def _edition(options: argparse.Namespace) -> int:
    try:
        from .workbook import editions
        from .workbook.notebooks import WorkbookError
    except ModuleNotFoundError as error:
        return _missing(error)
    write = {"student": editions.write_student, "slides": editions.write_slides}[options.edition]
    try:
        folder = _notebooks(options)
        output = (options.output or folder.parent / "build" / options.edition).resolve()
        more = {"repository": options.colab} if options.edition == "student" else {}
        written = write(folder, output, options.names, **more)
    except (WorkbookError, OSError) as error:
        return _wrong(error)
    print(*written, sep="\n")
    return 0


def add_record(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``record``."""
    parser = commands.add_parser(
        "record",
        help="for maintainers: copy an experiment's runs into the recorded results",
        description="Copy an experiment's runs from a store into data/results, which notebooks read by default.",
    )
    parser.add_argument("experiment", help='as in the column "experiment" of the store; or "without-labels"')
    parser.add_argument("--store", type=Path, metavar="DIR", help="folder with the runs (runs/)")
    parser.set_defaults(function=_record)


def _record(options: argparse.Namespace) -> int:
    from .experiments import without_labels
    from .experiments.store import open_store, record

    try:
        if options.experiment == without_labels.FOLDER:
            written = without_labels.record(options.store)
        else:
            written = record(options.experiment, open_store(options.store))
        print(*(f"recorded in {file}" for file in written), sep="\n")
    except (ValueError, OSError) as error:
        return _wrong(error)
    return 0


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``train``."""
    parser = commands.add_parser("train", add_help=False, help="train one model and write its record into a store")
    parser.set_defaults(function=_train)


def _train(options: argparse.Namespace) -> int:
    """Train one run: its options are the fields of RunConfig, each with its type, default and text."""
    import jsonargparse
    from torch import distributed

    from .device import resolve_device
    from .experiments.config import RunConfig
    from .experiments.grid import check_runs
    from .experiments.run import is_distributed, number_of_processes, rank, train_and_record
    from .experiments.store import Store

    parser = jsonargparse.ArgumentParser(
        prog="python -m simpool_lite train",
        description="Train one model and write its record into a store. Under `accelerate launch -m` (or torchrun -m) "
        "several processes train it together. A run that the store has already is not repeated, unless it failed.",
        epilog="example:  python -m simpool_lite train --backbone vit_micro --pool simpool --pool-kwargs "
        "'{\"gamma\": 1.25}' --epochs 3 --store runs/mine",
        allow_abbrev=False,
    )
    fields = parser.add_class_arguments(RunConfig)
    parser.add_argument("--store", required=True, metavar="DIR", help="folder of the record")
    parser.add_function_arguments(train_and_record, skip={"config", "store_folder"})
    chosen = vars(parser.parse_args(_as_in_python(options.others)))
    fields, folder = {name: chosen.pop(name) for name in fields}, chosen.pop("store")
    try:
        config, store = RunConfig(**fields), Store(folder)
        check_runs([config])
        resolve_device(chosen["device"])
        store.check_writable()
    except (TypeError, ValueError, OSError) as error:
        return _wrong(error)
    records = store.records()
    if ((records.config_hash == config.hash()) & (records.status == "ok")).any():
        if rank() == 0:
            print(f"{config.hash()} is done already, see {folder}")
        return 0
    try:
        record = train_and_record(config, folder, **chosen)
        if record["status"] == "failed":
            print(f"error: {record['reason']}", file=sys.stderr)
            return 1
        if rank() == 0:
            crew = f"{number_of_processes()} process{'es' if number_of_processes() > 1 else ''}"
            print(f"{config.hash()}: top-1 {record['top1']:.2f} %, {record['seconds']:.0f} s, {crew}, see {folder}")
        return 0
    finally:
        if is_distributed():
            distributed.destroy_process_group()


def add_dino(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``dino``."""
    parser = commands.add_parser("dino", add_help=False, help="pre-train one backbone without labels")
    parser.set_defaults(function=_dino)


def _dino(options: argparse.Namespace) -> int:
    """Pre-train a backbone: its options are those of RunConfig that say which model and data, and those of pretrain."""
    import jsonargparse
    from torch import distributed

    from .device import resolve_device
    from .experiments.config import RunConfig
    from .experiments.grid import check_runs
    from .experiments.pretraining import pretrain_and_save
    from .experiments.run import is_distributed, rank
    from .training.dino import pretrain

    parser = jsonargparse.ArgumentParser(
        prog="python -m simpool_lite dino",
        description="Pre-train one backbone by DINO. Of an output folder the teacher's backbone becomes "
        "model.safetensors, the figures of each epoch curve.csv. The same command goes on with a run that was stopped, "
        "from its last epoch. Several processes train one backbone as with `train`.",
        epilog="example:  python -m simpool_lite dino --backbone resnet50 --pool simpool --pool-kwargs "
        "'{\"gamma\": 2.0}' --data-root path/to/photographs --workers 8",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="JSON file of options, such as those in data/recipes")
    fields = parser.add_class_arguments(
        RunConfig,
        skip={
            "norm_first",
            "pretrained",
            "seed",
            "epochs",
            "batch_size",
            "learning_rate",
            "weight_decay",
            "regime",
            "measured_on",
            "trunk",
            "start",
        },
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write (runs/dino-BACKBONE-POOL)")
    parser.add_function_arguments(pretrain, skip={"model", "data", "folder", "after_epoch"})
    parser.set_defaults(dataset="folder", epochs=100, batch_size=256, learning_rate=5e-4)
    chosen = vars(parser.parse_args(_as_in_python(options.others)))
    fields, folder = {name: chosen.pop(name) for name in fields}, chosen.pop("output")
    del chosen["config"]
    folder = folder or Path("runs", f"dino-{fields['backbone']}-{fields['pool']}")
    try:
        config = RunConfig(**fields)
        check_runs([config])
        resolve_device(chosen["device"])
        check_writable("--output", Path(folder))
        path, curve = pretrain_and_save(config, folder, **chosen)
        if rank() == 0:
            figures = ", ".join(f"{name} {value:.3g}" for name, value in curve[-1].items())
            print(f"{figures}, see {path}")
        return 0
    except (TypeError, ValueError, OSError) as error:
        return _wrong(error)
    finally:
        if is_distributed():
            distributed.destroy_process_group()


def add_probe(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``probe``."""
    parser = commands.add_parser("probe", add_help=False, help="train poolings on the frozen features of a backbone")
    parser.set_defaults(function=_probe)


def _probe(options: argparse.Namespace) -> int:
    """Probe a backbone: its options are the arguments of probe_backbone."""
    import jsonargparse
    from torch import distributed

    from .experiments.evidence import judge
    from .experiments.probing import BASELINE, probe_backbone
    from .experiments.run import is_distributed, rank
    from .experiments.store import Store
    from .figures import decisions, trade_off
    from .measure.decide import in_sentences

    parser = jsonargparse.ArgumentParser(
        prog="python -m simpool_lite probe",
        description="Train poolings on the frozen features of a timm backbone and compare each with GAP (the linear "
        "probe). Writes records, table.csv, picture.png and price.png (accuracy against parameters). The same command "
        "goes on with what was stopped.",
        epilog="examples:  python -m simpool_lite probe --backbone resnet50 --data-root path/to/photographs\n"
        "  |  accelerate launch --multi_gpu -m simpool_lite probe --backbone resnet50 --data-root path/to/photographs",
        allow_abbrev=False,
    )
    parser.add_function_arguments(probe_backbone, skip={"store"})
    parser.add_argument("--margin", type=float, default=0.5, help="smallest difference that would matter, in points")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (runs/probe-BACKBONE)")
    chosen = vars(parser.parse_args(_as_in_python(options.others)))
    folder, margin = chosen.pop("output") or Path("runs", f"probe-{chosen['backbone']}"), chosen.pop("margin")
    try:
        check_number("margin", margin, above_zero=True)
        check_writable("--output", folder)
        runs = probe_backbone(store=Store(folder), **chosen)
        if rank() > 0:
            return 0
        table = judge(runs, BASELINE, margin)
        table.to_csv(folder / "table.csv")
        title = f"{chosen['backbone']}, frozen: poolings beside GAP"
        decisions({"": table}, title, "difference to GAP (points)").savefig(folder / "picture.png", dpi=150)
        axes = "parameters of the head", "test accuracy (%)"
        trade_off(runs, "parameters", "top1", f"{chosen['backbone']}, frozen: what a head costs", *axes).savefig(
            folder / "price.png", dpi=150
        )
        print(f"{in_sentences(table, BASELINE)}\nsee {folder}")
        return 0
    except (TypeError, ValueError, OSError) as error:
        return _wrong(error)
    finally:
        if is_distributed():
            distributed.destroy_process_group()


def add_localise(commands: argparse._SubParsersAction) -> None:
    """Add the parser of ``localise``."""
    parser = commands.add_parser("localise", add_help=False, help="score maps on photographs with drawn boxes")
    parser.set_defaults(function=_localise)


def _localise(options: argparse.Namespace) -> int:
    """Localise objects: its options are the arguments of localise."""
    import jsonargparse

    from .experiments.localising import localise
    from .figures import localisation_grid

    parser = jsonargparse.ArgumentParser(
        prog="python -m simpool_lite localise",
        description="Train poolings on the frozen features of a backbone and score where they look against the boxes "
        "of the test photographs (Pascal VOC's XML, COCO's JSON, CUB-200), beside GAP + CAM and baselines that know "
        "nothing of a network. Writes table.csv and picture.png.",
        epilog="example:  python -m simpool_lite localise --data-root path/to/photographs",
        allow_abbrev=False,
    )
    parser.add_function_arguments(localise, as_positional=False)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (runs/localise-BACKBONE)")
    chosen = vars(parser.parse_args(_as_in_python(options.others)))
    folder = chosen.pop("output") or Path("runs", f"localise-{chosen['backbone']}")
    try:
        check_writable("--output", folder)
        found = localise(**chosen)
    except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        return _wrong(error)
    found.table.to_csv(folder / "table.csv")
    localisation_grid(found.images, found.boxes, found.maps).savefig(folder / "picture.png", dpi=150)
    print(found.table.round(1).drop(columns=["difference", "difference_low", "difference_high"]).to_string())
    skipped = f"; {found.skipped} without a box left out" if found.skipped else ""
    print(f"{len(found.images)} test photographs{skipped}; see {folder}")
    return 0


def _as_in_python(words: Sequence[str]) -> list[str]:
    """jsonargparse names options as Python does; a command line may write --pool-kwargs, too."""
    return [re.sub(r"^--[\w-]+", lambda m: "--" + m[0][2:].replace("-", "_"), word) for word in words]


def _add_notebooks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--notebooks", type=Path, metavar="DIR", help="folder of other notebooks than the workbook's")


def _notebooks(options: argparse.Namespace) -> Path:
    folder = options.notebooks or repository_root() / "notebooks"
    return folder.resolve()


def _wrong(message: object) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _missing(error: ModuleNotFoundError) -> int:
    """Name the extra to install, unless what is missing is a part of this package."""
    if error.name is None or error.name.split(".")[0] == __package__:
        raise error
    return _wrong(f'this needs {error.name}, which is not installed: pip install "simpool-lite[notebooks]"')


if __name__ == "__main__":
    sys.exit(main())
