import math

import pytest
from scipy import integrate
from scipy.stats import norm

from arcsm.privacy import epsilon_of_noise, noise_for
from arcsm.privacy.accounting import delta_of_noise


@pytest.mark.parametrize(("noise", "epsilon"), [(0.5, 3.0), (4.0, 0.1)])
def test_delta_is_the_integral_of_the_excess_of_the_densities(noise: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return max(float(norm.pdf(x, 1.0, noise) - math.exp(epsilon) * norm.pdf(x, 0.0, noise)), 0.0)

    start = noise**2 * epsilon + 0.5  # where the ratio of the densities is exp(epsilon)
    expected, _ = integrate.quad(excess, start, start + 40.0 * noise, epsabs=1e-14)
    assert delta_of_noise(noise, epsilon) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 1e-2), (1.0, 1e-9), (10.0, 1e-5)])
def test_noise_spends_the_budget_and_no_more(epsilon: float, delta: float) -> None:
    noise = noise_for(epsilon, delta)
    assert delta_of_noise(noise, epsilon) <= delta
    assert epsilon_of_noise(noise, delta) == pytest.approx(epsilon, rel=1e-6)


def test_much_noise_is_private_without_epsilon() -> None:
    assert epsilon_of_noise(1e6, 1e-5) == 0.0


def test_budgets_that_mean_nothing_are_errors() -> None:
    for epsilon in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="epsilon: expected a positive number"):
            noise_for(epsilon, 1e-5)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta: expected a number between 0 and 1"):
            noise_for(1.0, delta)
