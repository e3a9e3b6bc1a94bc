"""Random events and their probabilities."""

import numpy as np

from arcsm.experiments.random_events import Event, random_events
from arcsm.experiments.tables import Table


def mixed_table(rows: int, seed: int = 0) -> Table:
    """Return rows of a number, a name that depends on it and another number, with some gaps."""
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    name = np.digitize(x + 0.3 * random.normal(size=rows), [-0.5, 0.5]).astype(float)
    y = random.normal(size=rows)
    y[::10] = np.nan
    return Table(np.stack([x, name, y], 1), ((), ("low", "middle", "high"), ()))


def test_events_have_the_probabilities_that_were_asked_for() -> None:
    table, others = mixed_table(500), mixed_table(5000, seed=1).values
    events = random_events(table, others, 40, 0.01, 0.1, np.random.default_rng(0))
    assert len(events) == 40
    assert {len(event.ranges) + len(event.sets) for event in events} == {1, 2, 3}
    assert all(0.01 <= event.probability(others) <= 0.1 for event in events)
    again = random_events(table, others, 40, 0.01, 0.1, np.random.default_rng(0))
    assert events == again


def test_an_event_holds_for_rows_with_all_of_its_values() -> None:
    event = Event({0: (0.0, 1.0)}, {1: (0, 2)})
    rows = np.array([[0.5, 0.0], [1.0, 2.0], [0.5, 1.0], [2.0, 0.0], [np.nan, 0.0]])
    assert event.holds(rows).tolist() == [True, True, False, False, False]
    assert event.probability(rows) == 0.5  # of those without gaps
    assert event.named(Table(rows, ((), ("a", "b", "c")))) == {"x0": (0.0, 1.0), "x1": {"a", "c"}}
