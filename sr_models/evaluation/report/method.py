"""A method in a report: its scores, and what is known of how they came to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sr_models.evaluation.scores import Scores, mean_scores

__all__ = ["Method", "at_temperature", "models_of", "on_common_images", "reference_of", "styles"]


@dataclass(frozen=True)
class Method:
    """A way to enlarge images, with its scores.

    Attributes:
        name: for readers.
        rows: one :class:`Scores` an image.
        distance_name: name of the distance that the scores were made with.
        baseline: holds for others to be compared with; needs no latents.
        n: samples an image.
        temperature: standard deviation of the latents; ``None``: there are none.
        sweep: temperature -> one :class:`Scores` an image.
        failures: name of an image -> why it has no scores.
        parameters: number of the model's weights; ``None``: unknown.
        machine: what the times were measured on.
        coverage: nominal and measured coverage of intervals, both in 0..1.
        covered: number of images that the coverage was measured on.
    """

    name: str
    rows: Sequence[Scores]
    distance_name: str
    baseline: bool = False
    n: int = 1
    temperature: float | None = None
    sweep: Mapping[float, Sequence[Scores]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None
    machine: str = ""
    coverage: Sequence[tuple[float, float]] = ()
    covered: int = 0

    @property
    def mean(self) -> Scores:
        """Means over the images."""
        return mean_scores(self.rows, self.name)

    def values(self, key: str) -> list[float]:
        """Return one field of the scores, one value an image."""
        return [getattr(row, key) for row in self.rows]


def at_temperature(method: Method, temperature: float) -> Method:
    """Return a method as it is at one temperature of its sweep."""
    return replace(method, rows=method.sweep[temperature], temperature=temperature)


def on_common_images(methods: Sequence[Method]) -> list[Method]:
    """Reduce the scores of methods to the images that all have, in the first one's order.

    Raises:
        ValueError: no method, a name that two methods have, other distances, or no image that all methods have.
    """
    if not methods:
        raise ValueError("methods must hold at least one method, got none")
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"methods must have names of their own, got {twice[0]!r} twice")
    first = methods[0]
    for method in methods:
        if method.distance_name != first.distance_name:
            raise ValueError(
                f"methods must be scored with one distance: {first.name} was with {first.distance_name}, {method.name} "
                f"with {method.distance_name}; score one again"
            )
    common = set.intersection(*({row.image for row in method.rows} for method in methods))
    if not common:
        raise ValueError(f"methods must have an image in common, got none that all of {', '.join(names)} have")
    order = {row.image: number for number, row in enumerate(first.rows)}

    def kept(rows: Sequence[Scores]) -> list[Scores]:
        return sorted((row for row in rows if row.image in common), key=lambda row: order[row.image])

    return [
        replace(
            method,
            rows=kept(method.rows),
            sweep={at: some for at, rows in method.sweep.items() if (some := kept(rows))},
        )
        for method in methods
    ]


def models_of(methods: Sequence[Method]) -> list[Method]:
    """Return the methods that are no baselines, or all if there are only baselines."""
    return [method for method in methods if not method.baseline] or list(methods)


def reference_of(methods: Sequence[Method]) -> Method | None:
    """Return the first baseline, to which others are compared; ``None`` if there is none."""
    return next((method for method in methods if method.baseline), None)


def styles(methods: Sequence[Method]) -> dict[str, int]:
    """Number the colours: name -> number. The first baseline is grey (0), then come the methods that are none."""
    reference = reference_of(methods)
    ordered = sorted((method for method in methods if method is not reference), key=lambda method: method.baseline)
    numbers = {method.name: number for number, method in enumerate(ordered, 1)}
    return numbers if reference is None else {reference.name: 0, **numbers}
