"""Fits the constants of csrc/cuda/persistent/estimate.cu to measurements, and prints them.

    PYTHONPATH=.:tests:tests/support python -m cuda_on_host.fit

Needs scipy, and no GPU; takes half a minute. For each pass, for half precision and tf32, it looks for constants that
are not negative and make small the sum of three terms: the squares of the relative errors, for plans and paths that are
not far from the fastest; what the chosen path takes longer than the fastest; and what of that is beyond 4 %.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from cuda_on_host.plans import divide_up, row_tiles
from cuda_on_host.structs import H200, Plan, Problem
from cuda_on_host.test_choice import MEASURED, PATHS, PLAN, measured

Array = Any
PLANS = MEASURED.with_name("nvidia-h200-plans.csv")
OUTSIDE = {2: 1.5, 4: 2.5}
"""Assumed microseconds for a gigaflop of the products over all steps, which the measured times contain."""
LEAST = {"grid": 0.3, "cluster": 0.4}
"""Microseconds of a step that are left over in any case: the way from block to block."""
COUNT = {"plain": 5, "grid": 8, "cluster": 8}
"""How many constants each path has."""


@dataclass
class Row:
    """A time that was measured: what its constants are multiplied by, and the time."""

    features: Array
    microseconds: float
    outside: float = 0.0


def of_plan(plan: Plan, problem: Problem) -> Array:
    """Return what the members of PersistentTimes are multiplied by, in their order."""
    segments = problem.gates if problem.backward else 1
    sequences = 8 * plan.batch_tiles
    chunks = -(-problem.hidden_size * problem.element_bytes // 64) * segments
    passes = -(-plan.sequences // sequences)
    tiles = plan.row_tiles * chunks
    narrow = not plan.cluster and plan.units * problem.element_bytes < (64 if problem.backward else 32)
    turns = -(-plan.groups // H200.clusters[plan.blocks]) if plan.cluster else 1
    of_pass = [
        1, sequences * chunks, tiles * plan.batch_tiles, tiles * (plan.chunks_in_registers == 0),
        sequences * (16 * plan.row_tiles + 4),
    ]  # fmt: skip
    return turns * np.array([1, plan.blocks * segments, *(passes * value for value in of_pass), narrow], float)


def of_problem(problem: Problem) -> Array:
    """Return what the members of StepwiseTimes are multiplied by, in their order."""
    batch, hidden = problem.batch, problem.hidden_size
    weights = problem.gates * hidden**2
    megabytes, gigaflop = weights * problem.element_bytes / 1e6, 2 * weights * batch / 1e9
    return np.array([1, hidden / 1e3, megabytes, gigaflop, batch * hidden / 1e3])


def plan_of(text: str, problem: Problem) -> Plan:
    """Return the plan that the file of paths names."""
    found = PLAN.match(text)
    assert found, text
    groups, blocks, units, batch_tiles, held = map(int, found.groups()[1:])
    sequences = min(divide_up(divide_up(problem.batch, groups), 8) * 8, problem.batch)
    return Plan(
        cluster=text.startswith("cluster"), groups=groups, blocks=blocks, units=units, sequences=sequences,
        row_tiles=row_tiles(problem.gates, units, problem.backward), batch_tiles=batch_tiles, chunks_in_registers=held,
        partials=2, directions=1,
    )  # fmt: skip


def of_layers(element_bytes: int, backward: bool) -> Iterator[dict[str, Row]]:
    """Yield the times of each path, for each layer."""
    for layer in measured():
        if layer.element_bytes != element_bytes:
            continue
        problem, rows = layer.problem(backward), {}
        outside = OUTSIDE[element_bytes] * 2 * problem.batch * problem.gates * problem.hidden_size**2 / 1e9
        for path in PATHS:
            if not layer.took(path, backward):
                continue
            time = layer.times[path, "forward"]
            if backward:
                time = layer.times[path, "both"] - time
            if path == "plain":
                features = of_problem(problem)
            else:
                features = of_plan(plan_of(layer.plans[path, backward], problem), problem)
            rows[path] = Row(features, time, outside * (3 if backward else 1))
        yield rows


def of_plans(element_bytes: int, backward: bool) -> dict[str, list[Row]]:
    """Return the times of plans that are not far from the fastest plan of their path, for a few problems."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for line in csv.DictReader(line for line in PLANS.read_text().splitlines() if not line.startswith("#")):
        size = 4 if line["dtype"] == "float32" else 2
        if (size, line["backward"]) != (element_bytes, str(int(backward))):
            continue
        numbers = {name: int(value) for name, value in line.items() if value.isdigit()}
        gates = {"LSTM": 4, "GRU": 3}[line["kind"]]
        problem = Problem(numbers["batch"], numbers["hidden_size"], 1, gates, size, True, backward)
        names = ("blocks", "groups", "units", "sequences", "row_tiles", "batch_tiles")
        plan = Plan(
            cluster=bool(numbers["cluster"]), chunks_in_registers=numbers["held"],
            **{name: numbers[name] for name in names},
        )  # fmt: skip
        path = "cluster" if plan.cluster else "grid"
        key = (path, line["kind"], problem.batch, problem.hidden_size)
        groups.setdefault(key, []).append(Row(of_plan(plan, problem), float(line["microseconds"])))
    near: dict[str, list[Row]] = {"grid": [], "cluster": []}
    for (path, *_), rows in groups.items():
        least = min(row.microseconds for row in rows)
        near[path] += [row for row in rows if row.microseconds < 1.6 * least]
    return near


def first_guess(rows: list[Row], least: float) -> Array:
    """Return the constants with the least squares of relative errors."""
    times = np.array([row.microseconds for row in rows])
    features = np.array([row.features for row in rows]) / times[:, None]
    own = np.array([row.microseconds - row.outside for row in rows]) / times - least * features[:, 0]
    constants = nnls(features, own)[0]
    constants[0] += least
    return constants


def cost_of(layers: list[dict[str, Row]], plans: dict[str, list[Row]]) -> Callable[[dict[str, Array]], float]:
    """Return a function that tells how bad constants are."""

    def cost(constants: dict[str, Array]) -> float:
        errors, losses = [], []
        for rows in layers:
            fastest = min(row.microseconds for row in rows.values())
            guesses = {path: float(row.features @ constants[path]) + row.outside for path, row in rows.items()}
            ratios = {path: row.microseconds / fastest for path, row in rows.items()}
            errors += [np.log(guesses[p] / row.microseconds) for p, row in rows.items() if ratios[p] < 1.5]
            # Smooth, so that a small change of the constants shows: nearly equal guesses share the choice.
            logs = np.log(list(guesses.values()))
            shares = np.exp((logs.min() - logs) / 0.02)
            losses.append(float(shares @ np.log(list(ratios.values())) / shares.sum()))
        total = 10 * np.mean(np.square(errors)) + 0.5 * np.mean(losses)
        total += 20 * np.mean(np.maximum(np.array(losses) - 0.04, 0))
        for path, rows_of_path in plans.items():
            if rows_of_path:
                of_plans = [np.log(row.features @ constants[path] / row.microseconds) for row in rows_of_path]
                total += 0.5 * np.mean(np.square(of_plans))
        return float(total)

    return cost


def fit(layers: list[dict[str, Row]], plans: dict[str, list[Row]]) -> dict[str, Array]:
    """Return the constants of each path, rounded to two digits."""
    constants = {}
    for path in COUNT:
        rows = [rows[path] for rows in layers if path in rows]
        fastest = [min(row.microseconds for row in rows.values()) for rows in layers if path in rows]
        pairs = zip(rows, fastest, strict=True)
        near = [row for row, least in pairs if path == "plain" or row.microseconds < 1.5 * least]
        constants[path] = first_guess(near + plans.get(path, []), LEAST.get(path, 0.0))
    cost = cost_of(layers, plans)
    for _ in range(3):
        flat = np.concatenate([constants[path] for path in COUNT])
        positive = flat > 0

        def scaled(logs: Array, flat: Array = flat, positive: Array = positive) -> dict[str, Array]:
            changed = flat.copy()
            changed[positive] *= np.exp(logs)
            return dict(zip(COUNT, np.split(changed, np.cumsum(list(COUNT.values()))[:-1]), strict=True))

        found = minimize(
            lambda logs, scaled=scaled: cost(scaled(logs)), np.zeros(positive.sum()), method="Powell",
            options={"maxiter": 3000, "xtol": 1e-3, "ftol": 1e-6},
        )  # fmt: skip
        constants = scaled(found.x)
        for path, least in LEAST.items():
            constants[path][0] = max(constants[path][0], least)
    return {path: np.array([float(f"{value:.2g}") for value in values]) for path, values in constants.items()}


def main() -> None:
    """Print the constants in the order of the tables of estimate.cu."""
    for backward in (False, True):
        for element_bytes in (2, 4):
            constants = fit(list(of_layers(element_bytes, backward)), of_plans(element_bytes, backward))
            print(f"{'backward' if backward else 'forward'}, {'half precision' if element_bytes == 2 else 'tf32'}")
            for path, values in constants.items():
                scale = 1 if path == "plain" else 1e3
                print(f"  {path}: " + ", ".join(f"{round(value * scale, 6):g}" for value in values))


if __name__ == "__main__":
    main()
