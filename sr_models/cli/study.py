"""``sr-models study``."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sr_models.cli._parser import CommandParser
    from sr_models.study.database import Database

__all__ = ["SUBCOMMANDS", "add_arguments", "run"]

#: Commands behind this one: ``sr-models study results``.
SUBCOMMANDS = ("results",)


def run(
    images: str | None = None,
    method: list[str] | None = None,
    baselines: str | None = None,
    database: str = "study.db",
    seed: int | None = None,
    no_reference: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    raters: list[str] | None = None,
) -> int:
    """Ask people to order methods' images, on a local web page; 'study results' prints the mean opinion ranks.

    A rater sees three crops of 80 x 80 pixels of an image, from every method, in random order and without names, beside
    the high-resolution image. Several raters may work at once. Answers are stored as they come: stop with Ctrl-C, and
    go on with the same command, or with --database alone.

    Example:
        sr-models study --images DIV2K_valid_HR --method srflow=samples/srflow --method bicubic=samples/bicubic
        sr-models study --database study.db
        sr-models study results study.db --output mor.csv

    Args:
        images: the high-resolution images; needed for a new study.
        method: NAME=FOLDER, once for each of two to nine methods. For 0801.png the folder holds 0801.png,
            0801_sample000.png, or, in the challenge's naming, 000000_sample00000.png or 000000.png for the first image.
        baselines: a model, such as srflow-da-tiny: bicubic interpolation of the reduced images and the image of the
            model's encoder are two more methods.
        database: file of the study, made if it does not exist. It holds the crops too, so that it can be moved.
        seed: decides the places of the crops and all orders (default 0).
        no_reference: do not show the high-resolution image.
        host: address to listen on. Another than 127.0.0.1 lets other machines in; it needs raters.
        port: port to listen on; 0 takes a free one.
        raters: names. Each gets an address of their own, and nobody else can enter. Without it everybody enters with a
            name.
    """
    from sr_models.study.serving import addresses, is_loopback, listen, make_server

    local = is_loopback(host)
    # before images are decoded for minutes
    with listen(host, port) as listener:
        study = _open(os.path.expanduser(database), images, method, baselines, seed, no_reference)
        with contextlib.closing(study):
            for name in raters or ():
                study.enter(name, invited=True)
            if not local and not study.raters():
                raise ValueError("a study for other machines needs the names of its raters, such as --raters anna ben")
            asked = study.settings
            print(f"study of {len(asked.methods)} methods and {len(asked.images)} images in {database}; Ctrl-C ends it")
            if not local:
                print(
                    "Other machines can reach this server. Nothing is encrypted. Give each address to one rater only."
                )
            anyone = local and not any(rater.invited for rater in study.raters())
            print(*addresses(study, listener, anyone=anyone), sep="\n", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                make_server(study, listener, anyone=anyone).run(sockets=[listener])
            print(f"stopped; {len(study.all_answers())} answers are in {database}")
    return 0


def _open(
    database: str,
    images: str | None,
    method: list[str] | None,
    baselines: str | None,
    seed: int | None,
    no_reference: bool,
) -> Database:
    from sr_models.checkpoints.files import create_stored, read_weights
    from sr_models.study.crops import cut_crops, find_source
    from sr_models.study.database import Database

    exists = os.path.lexists(database)
    if images is None and method is None and baselines is None:
        if not exists:
            raise FileNotFoundError(f"database {database} does not exist; a new study needs --images and --method")
        study = Database(database)
        wanted = {"seed": seed, "reference": False if no_reference else None}
        changes = [
            f"{name} was {getattr(study.settings, name)}, now {value}"
            for name, value in wanted.items()
            if value is not None and value != getattr(study.settings, name)
        ]
    elif images is None:
        raise ValueError("--method and --baselines need --images; without all three, the study of --database goes on")
    else:
        source = find_source(
            os.path.expanduser(images),
            _folders(method or []),
            baselines=None if baselines is None else create_stored(read_weights(os.path.expanduser(baselines))),
            seed=0 if seed is None else seed,
            reference=not no_reference,
        )
        if not exists:
            from tqdm import tqdm

            total = len(source.references)
            with tqdm(total=total, desc="crops", unit="image", leave=False) as bar:
                return Database.create(database, source.settings, cut_crops(source, done=bar.update))
        study = Database(database)
        changes = study.settings.changes(source.settings)
    if changes:
        study.close()
        raise ValueError(f"{database} is another study: {'; '.join(changes)}; choose another --database")
    return study


def _folders(method: list[str]) -> dict[str, str]:
    folders = {}
    for entry in method:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"method must be NAME=FOLDER, got {entry!r}")
        if name in folders:
            raise ValueError(f"method {name} is given twice")
        folders[name] = os.path.expanduser(folder)
    return folders


def add_arguments(parser: CommandParser) -> None:
    """Declare the options; ``--method`` may be repeated, and several names may follow ``--raters``."""
    parser.add_function_arguments(run, as_group=False, skip={"method", "raters"})
    parser.add_argument(
        "--method",
        action="append",
        type=str,
        help="NAME=FOLDER, once for each of two to nine methods. For 0801.png the folder holds 0801.png, "
        "0801_sample000.png, or, in the challenge's naming, 000000_sample00000.png or 000000.png for the first image",
    )
    parser.add_argument(
        "--raters",
        nargs="+",
        type=str,
        help="names. Each gets an address of their own, and nobody else can enter. Without it everybody enters with a "
        "name",
    )
