"""``sr-models study results``."""

from __future__ import annotations

import os

__all__ = ["FIRST_OPTION", "run"]

#: What the user need not type if it comes first.
FIRST_OPTION = "--database"


def run(database: str = "study.db", output: str | None = None) -> None:
    """Print the mean opinion rank of every method of a study, with 95 % intervals, and how far raters agree.

    The study may go on meanwhile. The intervals are a bootstrap over raters and images.

    Example:
        sr-models study results study.db --output mor.csv

    Args:
        database: file of the study.
        output: CSV file for the ranks.
    """
    from sr_models.io.files import write_text
    from sr_models.study.database import Database
    from sr_models.study.results import agreement, mean_opinion_ranks, rank_array, ranks_csv, ranks_table

    database, output = os.path.expanduser(database), output and os.path.expanduser(output)
    if output and os.path.realpath(output) == os.path.realpath(database):
        raise ValueError(f"output must be another file than the database, got {output} for both")
    study = Database(database, writable=False)
    try:
        ranks = rank_array(study.all_answers(), len(study.settings.images), len(study.settings.methods))
        results = mean_opinion_ranks(ranks, study.settings.methods)
    finally:
        study.close()
    print(ranks_table(results, agreement(ranks), len(ranks)))
    if output is not None:
        write_text(output, ranks_csv(results))
        print(f"wrote {output}")
