"""The second derivation of every measure: from stacked snapshots, by definition, without Gram matrices.

`thetas` [n, p] are the snapshots θ_0 ... θ_T in float64. Slow and plain on purpose: loops over pairs of
vectors, angles from the vectors themselves, spectra and principal components from singular values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosine(a: Array, b: Array) -> float:
    if not a.any() or not b.any():
        return math.nan
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def angle(a: Array, b: Array) -> float:
    """Kahan's formula: accurate for any angle, from 0 to 180 degrees."""
    if not a.any() or not b.any():
        return math.nan
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return math.degrees(2 * math.atan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))


def mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def vectors_of(thetas: Array, kind: str, tau: int = 0) -> list[Array]:
    """The vectors between which a map has its cosines."""
    n = len(thetas)
    if kind == "snapshots":
        return list(thetas)
    if kind == "displacements":
        return [thetas[t] - thetas[tau] for t in range(n) if t != tau % n]
    assert kind == "updates"
    return [thetas[t] - thetas[t - 1] for t in range(1, n)]


def gram(vectors: list[Array]) -> Array:
    return np.array([[np.dot(a, b) for b in vectors] for a in vectors]).reshape(len(vectors), len(vectors))


def cosine_map(vectors: list[Array]) -> Array:
    return np.array([[cosine(a, b) for b in vectors] for a in vectors]).reshape(len(vectors), len(vectors))


def trajectory_map(thetas: Array) -> Array:
    return cosine_map(vectors_of(thetas, "snapshots"))


def relative_gram(thetas: Array, tau: int = 0) -> Array:
    return gram([theta - thetas[tau] for theta in thetas])


def relative_trajectory_map(thetas: Array, tau: int = 0) -> Array:
    return cosine_map(vectors_of(thetas, "displacements", tau))


def update_gram(thetas: Array) -> Array:
    return gram(vectors_of(thetas, "updates"))


def update_map(thetas: Array) -> Array:
    return cosine_map(vectors_of(thetas, "updates"))


def angle_map(thetas: Array) -> Array:
    return np.array([[angle(a, b) for b in thetas] for a in thetas])


def mean_directional_similarity(vectors: list[Array]) -> float:
    return mean_of_defined([cosine(a, b) for a in vectors for b in vectors])


def heterogeneity(similarities: list[float]) -> float:
    return max(similarities) - min(similarities)


def saturation(thetas: Array, steps: list[int], threshold: float = 0.9) -> float:
    displacements = vectors_of(thetas, "displacements")
    if not displacements or not displacements[-1].any():
        return math.nan
    for t in range(1, len(thetas)):
        if all(cosine(displacement, displacements[-1]) >= threshold for displacement in displacements[t - 1 :]):
            return (steps[t] - steps[0]) / (steps[-1] - steps[0])
    raise AssertionError("the last direction agrees with itself")


def running_similarity(vectors: list[Array]) -> list[float]:
    """Mean directional similarity of the first 1, 2, … vectors."""
    return [mean_directional_similarity(vectors[: t + 1]) for t in range(len(vectors))]


def running_drift(thetas: Array, window: int = 5) -> list[float]:
    """Direction drift of the first 2, 3, … snapshots."""
    return [direction_drift(thetas[: t + 1], window) for t in range(1, len(thetas))]


def direction_drift(thetas: Array, window: int = 5) -> float:
    displacements = vectors_of(thetas, "displacements")
    if not displacements:
        return math.nan
    before = displacements[:-1]
    return 1 - mean_of_defined([cosine(displacements[-1], before[j]) for j in range(len(before))][-window:])


def parameter_norm(thetas: Array) -> list[float]:
    return [float(np.linalg.norm(theta)) for theta in thetas]


def displacement(thetas: Array) -> list[float]:
    return [float(np.linalg.norm(theta - thetas[0])) for theta in thetas]


def update_length(thetas: Array) -> list[float]:
    return [float(np.linalg.norm(update)) for update in vectors_of(thetas, "updates")]


def path_length(thetas: Array) -> float:
    return sum(update_length(thetas))


def tortuosity(thetas: Array) -> float:
    length = displacement(thetas)[-1]
    return path_length(thetas) / length if length else math.nan


def consecutive_angles(vectors: list[Array]) -> list[float]:
    return [angle(vectors[t], vectors[t + 1]) for t in range(len(vectors) - 1)]


def update_angle(thetas: Array) -> list[float]:
    return consecutive_angles(vectors_of(thetas, "updates"))


def origin_angle(thetas: Array) -> list[float]:
    return consecutive_angles(vectors_of(thetas, "snapshots"))


def turn(thetas: Array) -> list[float]:
    return [angle(thetas[0], theta) for theta in thetas]


def apex_angle(thetas: Array) -> list[float]:
    return consecutive_angles(vectors_of(thetas, "displacements"))


def cone_angle(thetas: Array) -> float:
    displacements = [d for d in vectors_of(thetas, "displacements") if d.any()]
    return max((angle(a, b) for a in displacements for b in displacements), default=math.nan)


def spectrum(vectors: list[Array]) -> Array:
    """Eigenvalues of the map: squared singular values of the unit vectors."""
    units = [vector / np.linalg.norm(vector) for vector in vectors if vector.any()]
    return np.linalg.svd(np.array(units), compute_uv=False) ** 2 if units else np.zeros(0)


def effective_rank(vectors: list[Array]) -> float:
    values = spectrum(vectors)
    shares = [value / values.sum() for value in values if value > 0]
    return math.exp(-sum(share * math.log(share) for share in shares)) if shares else math.nan


def participation_ratio(vectors: list[Array]) -> float:
    values = spectrum(vectors)
    return float(values.sum() ** 2 / (values**2).sum()) if len(values) else math.nan


def top1_share(vectors: list[Array]) -> float:
    values = spectrum(vectors)
    return float(values.max() / values.sum()) if len(values) else math.nan


def pca(thetas: Array, components: int) -> tuple[Array, Array]:
    """Coordinates [n, components], each with its largest entry positive, and their shares of the variance."""
    left, singular, _ = np.linalg.svd(thetas - thetas.mean(axis=0), full_matrices=False)
    coordinates = left[:, :components] * singular[:components]
    for column in coordinates.T:
        column *= np.sign(column[np.abs(column).argmax()])
    return coordinates, (singular**2 / (singular**2).sum())[:components]


def oscillation_cosine(thetas: Array) -> float:
    updates = vectors_of(thetas, "updates")
    return mean_of_defined([cosine(updates[t], updates[t + 1]) for t in range(len(updates) - 1)])


def oscillation_reversals(thetas: Array) -> float:
    updates = vectors_of(thetas, "updates")
    cosines = [cosine(updates[t], updates[t + 1]) for t in range(len(updates) - 1)]
    return mean_of_defined([value if math.isnan(value) else float(value < 0) for value in cosines])


def oscillation_step_length(thetas: Array) -> float:
    return float(np.mean([np.linalg.norm(u) for u in vectors_of(thetas, "updates")])) if len(thetas) > 1 else math.nan


def oscillation_linearity(thetas: Array) -> float:
    length = path_length(thetas)
    return float(np.linalg.norm(thetas[-1] - thetas[0])) / length if length else math.nan
