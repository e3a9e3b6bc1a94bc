/* Piecewise densities from scores at nodes, in double precision: see conditionals/piecewise.py and quadrature.py, whose
 * names and formulas these are. Matrices have a row for each density.
 */

#include <math.h>
#include <stddef.h>

#include "doubles.h"

#define INLINE static inline __attribute__((always_inline))

/* Cells are integrated BLOCK at a time, in loops that compilers put into vectors. */
enum { COEFFICIENTS = 6, POINTS = 5, BLOCK = 64 };

/* Second derivatives of the cubic through two nodes, at either of them, and its third derivative. */
typedef struct {
    double after, before, third, width;
} cubic;

INLINE cubic cubic_of(const double *x, const double *s, const double *ds)
{
    double width = x[1] - x[0], per = 1.0 / (width > 0.0 ? width : 1.0), mean = (s[1] - s[0]) * per;
    cubic c = {(6.0 * mean - 4.0 * ds[0] - 2.0 * ds[1]) * per, (2.0 * ds[0] + 4.0 * ds[1] - 6.0 * mean) * per, 0.0,
               width};
    c.third = (c.before - c.after) * per;
    return c;
}

/* The second derivative at the node between two cells. */
INLINE double second_derivative(cubic left, cubic right, double least_ratio)
{
    double l = left.width > 0.0 ? left.width : 1.0, r = right.width > 0.0 ? right.width : 1.0, both = l + r;
    double per = 1.0 / both, a = l * per, b = r * per, q = right.after - left.before,
           t = both * (right.third - left.third);
    double of_both = right.after + b * b * (a * a * t * (1.0 / 1.5) - (1.0 + 2.0 * a) * q);
    double of_wider = right.width > left.width ? right.after : left.before;
    return smaller(left.width, right.width) > least_ratio * both ? of_both : of_wider;
}

static void second_derivatives(long nodes, double least_ratio, const double *restrict x, const double *restrict s,
                               const double *restrict ds, double *restrict dds)
{
    dds[0] = cubic_of(x, s, ds).after;
    for (long i = 1; i + 1 < nodes; i++) {
        cubic left = cubic_of(x + i - 1, s + i - 1, ds + i - 1), right = cubic_of(x + i, s + i, ds + i);
        dds[i] = second_derivative(left, right, least_ratio);
    }
    dds[nodes - 1] = cubic_of(x + nodes - 2, s + nodes - 2, ds + nodes - 2).before;
}

/* Coefficients of t, ..., t^6 of the rise within a cell. */
INLINE void polynomial_of(double width, const double *s, const double *ds, const double *dds, double *p)
{
    double square = width * width, cube = square * width, slope = ds[0] * square, bend = dds[0] * cube;
    double value_off = (s[1] - s[0]) * width - slope - 0.5 * bend;
    double slope_off = ds[1] * square - slope - bend, bend_off = dds[1] * cube - bend;
    p[0] = s[0] * width;
    p[1] = slope * 0.5;
    p[2] = bend * (1.0 / 6.0);
    p[3] = (10.0 * value_off - 4.0 * slope_off + 0.5 * bend_off) * 0.25;
    p[4] = (7.0 * slope_off - 15.0 * value_off - bend_off) * 0.2;
    p[5] = (6.0 * value_off - 3.0 * slope_off + 0.5 * bend_off) * (1.0 / 6.0);
}

/* The Lobatto-Kronrod rule of piecewise.py. */
typedef struct {
    double points[POINTS], weights[POINTS], end, coarse_inner, coarse_end;
    double max_exponent, tiny, least_ratio;
} rule;

/* Writes how far the log density rises over each cell. */
static void rises_of_cells(long count, const double *restrict x, const double *restrict s, const double *restrict ds,
                           const double *restrict dds, double *restrict rises)
{
    for (long i = 0; i < count; i++) {
        double p[COEFFICIENTS];
        polynomial_of(x[i + 1] - x[i], s + i, ds + i, dds + i, p);
        rises[i] = ((((p[0] + p[1]) + p[2]) + p[3]) + p[4]) + p[5];
    }
}

/* Writes the masses of at most BLOCK cells, and the estimated errors of the rule. */
static void masses_of_cells(long count, const rule *r, const double *restrict x, const double *restrict s,
                            const double *restrict ds, const double *restrict dds, const double *restrict energy,
                            double *restrict cells, double *restrict rule_errors)
{
    double p[COEFFICIENTS][BLOCK], inner[POINTS][BLOCK], ends[BLOCK + 1];
    for (long i = 0; i < count; i++) {
        double of[COEFFICIENTS];
        polynomial_of(x[i + 1] - x[i], s + i, ds + i, dds + i, of);
        p[0][i] = of[0], p[1][i] = of[1], p[2][i] = of[2], p[3][i] = of[3], p[4][i] = of[4], p[5][i] = of[5];
    }
    for (long i = 0; i <= count; i++)
        ends[i] = exponential(energy[i]);
    for (long k = 0; k < POINTS; k++) {
        double t = r->points[k], most = r->max_exponent;
        for (long i = 0; i < count; i++) {
            double rise = t * (p[0][i] + t * (p[1][i] + t * (p[2][i] + t * (p[3][i] + t * (p[4][i] + t * p[5][i])))));
            inner[k][i] = exponential(smaller(energy[i] + rise, most));
        }
    }
    for (long i = 0; i < count; i++) {
        double width = x[i + 1] - x[i], both = ends[i] + ends[i + 1], mass = r->end * both;
        mass += r->weights[0] * inner[0][i] + r->weights[1] * inner[1][i] + r->weights[2] * inner[2][i];
        mass += r->weights[3] * inner[3][i] + r->weights[4] * inner[4][i];
        double gap = fabs(mass - r->coarse_end * both - r->coarse_inner * (inner[1][i] + inner[3][i]));
        cells[i] = width * mass;
        rule_errors[i] = width * gap * sqrt(smaller(gap / larger(mass, r->tiny), 1.0));
    }
}

/* Writes second derivatives and energies at the nodes, (rows, nodes), and the masses of the cells with the estimated
 * errors of the rule, (rows, nodes - 1). */
void piecewise_integrate(long rows, long nodes, const rule *r, const double *x, const double *s, const double *ds,
                         double *dds, double *energy, double *cells, double *rule_errors)
{
    for (long row = 0; row < rows; row++) {
        second_derivatives(nodes, r->least_ratio, x, s, ds, dds);
        rises_of_cells(nodes - 1, x, s, ds, dds, cells);
        double most = energy[0] = 0.0;
        for (long i = 0; i + 1 < nodes; i++) {
            energy[i + 1] = energy[i] + cells[i];
            most = larger(energy[i + 1], most);
        }
        for (long i = 0; i < nodes; i++)
            energy[i] -= most;
        for (long i = 0; i + 1 < nodes; i += BLOCK) {
            long count = nodes - 1 - i < BLOCK ? nodes - 1 - i : BLOCK;
            masses_of_cells(count, r, x + i, s + i, ds + i, dds + i, energy + i, cells + i, rule_errors + i);
        }
        x += nodes, s += nodes, ds += nodes, dds += nodes, energy += nodes;
        cells += nodes - 1, rule_errors += nodes - 1;
    }
}

/* The quantile of a density on [0, 1] proportional to exp(rise * t). */
INLINE double exponential_icdf(double u, double rise, double max_rise, double tiny)
{
    rise = rise == 0.0 ? tiny : smaller(rise, max_rise);
    return smaller(larger(log1p(u * expm1(rise)) / rise, 0.0), 1.0);
}

/* Writes the quantiles, (rows), of probabilities u as far as they lie between the outer nodes: by Newton steps on the
 * mass within a cell, inside a shrinking bracket, until none is longer than `tolerance` cell widths. */
void piecewise_icdf(long rows, long nodes, const rule *r, double tolerance, double max_rise, long steps,
                    const double *x, const double *s, const double *ds, const double *dds, const double *energy,
                    const double *cells, const double *tails, const double *log_mass, const double *u,
                    double *quantiles)
{
    const long last = nodes - 1;
    for (long row = 0; row < rows; row++) {
        double target = u[row] * exp(log_mass[row]), below = tails[2 * row], p[COEFFICIENTS];
        long i = 0;
        for (; i + 1 < last && below + cells[i] <= target; i++)
            below += cells[i];
        double width = x[i + 1] - x[i], height = exp(energy[i]) * larger(width, r->tiny), rest = target - below;
        polynomial_of(width, s + i, ds + i, dds + i, p);
        double share = smaller(larger(rest / larger(cells[i], r->tiny), 0.0), 1.0);
        double t = exponential_icdf(share, energy[i + 1] - energy[i], max_rise, r->tiny), low = 0.0, high = 1.0;
        for (long step = 0; step < steps; step++) {
            double mean = r->end, end = 0.0;
            for (long k = 0; k <= POINTS; k++) {
                double at = k < POINTS ? r->points[k] * t : t;
                double rise = at * (p[0] + at * (p[1] + at * (p[2] + at * (p[3] + at * (p[4] + at * p[5])))));
                end = exp(smaller(rise, r->max_exponent));
                mean += (k < POINTS ? r->weights[k] : r->end) * end;
            }
            double excess = height * t * mean - rest;
            low = excess <= 0.0 ? t : low;
            high = excess >= 0.0 ? t : high;
            double newton = t - excess / larger(height * end, r->tiny);
            int is_inside = newton >= low && newton <= high;
            double length = is_inside ? fabs(newton - t) : sqrt(high - low);
            t = is_inside ? newton : 0.5 * (low + high);
            if (length <= tolerance)
                break;
        }
        quantiles[row] = x[i] + t * larger(width, r->tiny);
        x += nodes, s += nodes, ds += nodes, dds += nodes, energy += nodes, cells += last;
    }
}

/* Writes the errors inside cells, (rows, nodes - 1), relative to the mass: those of the rule, and all of the mass of
 * cells wider than `most` standard deviations of the density, or than `least` if that is more. */
void piecewise_cell_errors(long rows, long nodes, double most, double least, const double *x, const double *cells,
                           const double *log_mass, const double *rule_errors, double *errors)
{
    const long last = nodes - 1;
    for (long row = 0; row < rows; row++) {
        double whole = exp(log_mass[row]), mean = 0.0, variance = 0.0;
        for (long i = 0; i < last; i++)
            mean += cells[i] / whole * (0.5 * (x[i] + x[i + 1]));
        for (long i = 0; i < last; i++) {
            double distance = 0.5 * (x[i] + x[i + 1]) - mean;
            variance += cells[i] / whole * (distance * distance);
        }
        double widest = larger(most * sqrt(variance), least);
        for (long i = 0; i < last; i++)
            errors[i] = rule_errors[i] / whole + (x[i + 1] - x[i] > widest ? cells[i] / whole : 0.0);
        x += nodes, cells += last, rule_errors += last, errors += last;
    }
}

/* Constants of quadrature.py. */
typedef struct {
    double calibration, least_calibration, max_grading, small_rise, tiny;
} indicators;

INLINE double step_error(double width, const double *s, const double *ds, const double *dds, const indicators *of)
{
    double rise = s[1] - s[0], slopes = width * 0.5 * (ds[0] + ds[1]), gap = fabs(rise - slopes);
    double size = fabs(rise) + width * 0.5 * (fabs(ds[0]) + fabs(ds[1]));
    double relative = smaller(gap / larger(size, of->tiny), 1.0);
    double by_curvature = width * width * (0.5 * width * (dds[0] + dds[1]) - (ds[1] - ds[0])) / 60.0;
    double scale = smaller(larger(relative, of->least_calibration), of->calibration);
    double error = (0.3 * width * gap * relative + fabs(by_curvature)) * scale;
    double near = smaller(2.0 * relative, 1.0);
    double misplaced = 0.5 * larger(width * rise - of->small_rise, 0.0) * near * near;
    return larger(error, of->calibration * misplaced);
}

INLINE double fifth_power(double ratio) { return ratio * ratio * ratio * ratio * ratio; }

/* Writes the errors of the steps over cells as they look at each cell, and bounded from below by its neighbours. */
static void step_errors(long count, const indicators *of, const double *restrict x, const double *restrict s,
                        const double *restrict ds, const double *restrict dds, double *restrict raw,
                        double *restrict steps)
{
    for (long i = 0; i < count; i++)
        raw[i] = steps[i] = step_error(x[i + 1] - x[i], s + i, ds + i, dds + i, of);
    for (long i = 1; i < count; i++) {
        double ratio = fifth_power((x[i + 1] - x[i]) / larger(x[i] - x[i - 1], of->tiny));
        steps[i] = larger(steps[i], raw[i - 1] * smaller(ratio, of->max_grading));
    }
    for (long i = 0; i + 1 < count; i++) {
        double ratio = fifth_power((x[i + 2] - x[i + 1]) / larger(x[i + 1] - x[i], of->tiny));
        steps[i] = larger(steps[i], raw[i + 1] / larger(ratio, 1.0 / of->max_grading));
    }
}

/* Writes log masses of the left tail, the cells and the right tail, lowered and raised by the errors of steps up to
 * there, which are given at the nodes. */
static void log_masses(long last, const double *restrict cells, const double *restrict tails,
                       const double *restrict up_to, double *restrict lowered, double *restrict raised)
{
    double left = logarithm(larger(tails[0], 1e-300)), right = logarithm(larger(tails[1], 1e-300));
    for (long i = 0; i < last; i++) {
        double bound = larger(up_to[i], up_to[i + 1]), here = logarithm(larger(cells[i], 1e-300));
        lowered[i + 1] = here - bound;
        raised[i + 1] = here + bound;
    }
    lowered[0] = left - up_to[0], raised[0] = left + up_to[0];
    lowered[last + 1] = right - up_to[last], raised[last + 1] = right + up_to[last];
}

/* Turns log masses into masses: lowered ones in units of the largest, raised ones in units of that of their side. */
static void relative_masses(long count, long reference, double least, const double *peak, double *restrict lowered,
                            double *restrict raised)
{
    for (long j = 0; j < count; j++)
        lowered[j] = exponential(lowered[j] - least);
    for (long j = 0; j <= reference; j++)
        raised[j] = exponential(raised[j] - peak[0]);
    for (long j = reference + 1; j < count; j++)
        raised[j] = exponential(raised[j] - peak[1]);
}

/* Writes each cell's contribution to the error, (rows, nodes - 1), besides the errors inside cells, which are given. An
 * anchor is a number for each row, or all are null. The workspace has 4 (nodes + 1) numbers. */
void piecewise_errors(long rows, long nodes, const indicators *of, const double *x, const double *s, const double *ds,
                      const double *dds, const double *energy, const double *cells, const double *tails,
                      const double *log_mass, const double *inside, const double *anchor, double *errors,
                      double *workspace)
{
    const long last = nodes - 1; /* cells */
    double *raw = workspace, *steps = raw + nodes + 1, *total = steps + nodes + 1, *mass = total + nodes + 1;
    for (long row = 0; row < rows; row++) {
        step_errors(last, of, x, s, ds, dds, raw, steps);
        long reference = 0;
        for (long i = 1; i < nodes; i++)
            if (anchor ? fabs(x[i] - anchor[row]) < fabs(x[reference] - anchor[row]) : energy[i] > energy[reference])
                reference = i;
        raw[0] = 0.0; /* from here on the errors up to each node */
        for (long i = 0; i < last; i++)
            raw[i + 1] = raw[i] + steps[i];
        double origin = raw[reference];
        for (long i = 0; i < nodes; i++)
            raw[i] = fabs(raw[i] - origin);
        log_masses(last, cells, tails, raw, total, mass);
        double least = -INFINITY, peak[2] = {-INFINITY, -INFINITY}, sum = 0.0;
        for (long j = 0; j <= nodes; j++) {
            least = larger(total[j], least);
            peak[j > reference] = larger(mass[j], peak[j > reference]);
        }
        relative_masses(nodes + 1, reference, least, peak, total, mass);
        for (long j = 0; j <= nodes; j++)
            sum += total[j];
        double rest = least + log(sum), whole = exp(log_mass[row]), beyond = 0.0;
        double odds[2] = {exp(rest - peak[0]), exp(rest - peak[1])};
        for (long j = 1; j <= last && j <= reference; j++) { /* cells left of the reference, from the left */
            beyond += mass[j - 1];
            errors[j - 1] = beyond;
        }
        beyond = 0.0;
        for (long j = last; j > reference; j--) {
            beyond += mass[j + 1];
            errors[j - 1] = beyond;
        }
        for (long i = 0; i < last; i++) {
            double share = cells[i] / whole, outer = errors[i] / larger(errors[i] + odds[i + 1 > reference], of->tiny);
            errors[i] = inside[i] + share * smaller(steps[i], 1.0) + steps[i] * outer;
        }
        x += nodes, s += nodes, ds += nodes, dds += nodes, energy += nodes;
        cells += last, inside += last, errors += last, tails += 2;
    }
}
