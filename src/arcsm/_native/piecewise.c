/* Piecewise densities from scores at nodes, in double precision: see conditionals/piecewise.py and quadrature.py, whose
 * names and formulas these are. Matrices have a row for each density.
 */

#include <math.h>
#include <stddef.h>

#define INLINE static inline __attribute__((always_inline))

enum { COEFFICIENTS = 6, POINTS = 5 };

/* Both propagate numbers that are none, as torch does. */
INLINE double larger(double a, double b) { return a > b || a != a ? a : b; }
INLINE double smaller(double a, double b) { return a < b || a != a ? a : b; }

/* Second derivatives of the cubic through two nodes, at either of them, and its third derivative. */
typedef struct {
    double after, before, third, width;
} cubic;

INLINE cubic cubic_of(const double *x, const double *s, const double *ds)
{
    double width = x[1] - x[0], h = width > 0.0 ? width : 1.0, mean = (s[1] - s[0]) / h;
    cubic c = {(6.0 * mean - 4.0 * ds[0] - 2.0 * ds[1]) / h, (2.0 * ds[0] + 4.0 * ds[1] - 6.0 * mean) / h, 0.0, width};
    c.third = (c.before - c.after) / h;
    return c;
}

/* The second derivative at the node between two cells. */
INLINE double second_derivative(cubic left, cubic right, double least_ratio)
{
    double l = left.width > 0.0 ? left.width : 1.0, r = right.width > 0.0 ? right.width : 1.0, both = l + r;
    double a = l / both, b = r / both, q = right.after - left.before, t = both * (right.third - left.third);
    if (smaller(left.width, right.width) > least_ratio * both)
        return right.after + b * b * (a * a * t / 1.5 - (1.0 + 2.0 * a) * q);
    return right.width > left.width ? right.after : left.before;
}

/* Coefficients of t, ..., t^6 of the rise within a cell. */
INLINE void polynomial_of(double width, const double *s, const double *ds, const double *dds, double *p)
{
    double square = width * width, cube = square * width, slope = ds[0] * square, bend = dds[0] * cube;
    double value_off = (s[1] - s[0]) * width - slope - 0.5 * bend;
    double slope_off = ds[1] * square - slope - bend, bend_off = dds[1] * cube - bend;
    p[0] = s[0] * width;
    p[1] = slope / 2.0;
    p[2] = bend / 6.0;
    p[3] = (10.0 * value_off - 4.0 * slope_off + 0.5 * bend_off) / 4.0;
    p[4] = (7.0 * slope_off - 15.0 * value_off - bend_off) / 5.0;
    p[5] = (6.0 * value_off - 3.0 * slope_off + 0.5 * bend_off) / 6.0;
}

/* The Lobatto-Kronrod rule of piecewise.py. */
typedef struct {
    double points[POINTS], weights[POINTS], end, coarse_inner, coarse_end;
    double max_exponent, tiny, least_ratio;
} rule;

/* Writes second derivatives and energies at the nodes, (rows, nodes), and the masses of the cells with the estimated
 * errors of the rule, (rows, nodes - 1). */
void piecewise_integrate(long rows, long nodes, const rule *r, const double *x, const double *s, const double *ds,
                         double *dds, double *energy, double *cells, double *rule_errors)
{
    for (long row = 0; row < rows; row++) {
        cubic left = cubic_of(x, s, ds);
        dds[0] = left.after;
        for (long i = 1; i + 1 < nodes; i++) {
            cubic right = cubic_of(x + i, s + i, ds + i);
            dds[i] = second_derivative(left, right, r->least_ratio);
            left = right;
        }
        dds[nodes - 1] = left.before;
        double most = energy[0] = 0.0;
        for (long i = 0; i + 1 < nodes; i++) {
            double p[COEFFICIENTS];
            polynomial_of(x[i + 1] - x[i], s + i, ds + i, dds + i, p);
            energy[i + 1] = energy[i] + (((((p[0] + p[1]) + p[2]) + p[3]) + p[4]) + p[5]);
            most = larger(energy[i + 1], most);
        }
        for (long i = 0; i < nodes; i++)
            energy[i] -= most;
        double end = exp(energy[0]);
        for (long i = 0; i + 1 < nodes; i++) {
            double p[COEFFICIENTS], inner[POINTS], width = x[i + 1] - x[i], ends = end;
            polynomial_of(width, s + i, ds + i, dds + i, p);
            end = exp(energy[i + 1]);
            ends += end;
            double mass = r->end * ends;
            for (long k = 0; k < POINTS; k++) {
                double t = r->points[k];
                double rise = t * (p[0] + t * (p[1] + t * (p[2] + t * (p[3] + t * (p[4] + t * p[5])))));
                inner[k] = exp(smaller(energy[i] + rise, r->max_exponent));
                mass += r->weights[k] * inner[k];
            }
            double gap = fabs(mass - r->coarse_end * ends - r->coarse_inner * (inner[1] + inner[3]));
            cells[i] = width * mass;
            rule_errors[i] = width * gap * sqrt(smaller(gap / larger(mass, r->tiny), 1.0));
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
        for (long i = 0; i < last; i++)
            raw[i] = step_error(x[i + 1] - x[i], s + i, ds + i, dds + i, of);
        for (long i = 0; i < last; i++) { /* neighbours bound the error from below */
            double width = x[i + 1] - x[i];
            steps[i] = raw[i];
            if (i > 0) {
                double ratio = fifth_power(width / larger(x[i] - x[i - 1], of->tiny));
                steps[i] = larger(steps[i], raw[i - 1] * smaller(ratio, of->max_grading));
            }
            if (i + 1 < last) {
                double ratio = fifth_power((x[i + 2] - x[i + 1]) / larger(width, of->tiny));
                steps[i] = larger(steps[i], raw[i + 1] / larger(ratio, 1.0 / of->max_grading));
            }
        }
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
        double least = -INFINITY, peak[2] = {-INFINITY, -INFINITY}, sum = 0.0;
        for (long j = 0; j <= nodes; j++) { /* the left tail, the cells, the right tail */
            double bound = j == 0 ? raw[0] : j == nodes ? raw[last] : larger(raw[j - 1], raw[j]);
            double here = log(larger(j == 0 ? tails[0] : j == nodes ? tails[1] : cells[j - 1], 1e-300));
            total[j] = here - bound;
            mass[j] = here + bound;
            least = larger(total[j], least);
            peak[j > reference] = larger(mass[j], peak[j > reference]);
        }
        for (long j = 0; j <= nodes; j++) {
            sum += exp(total[j] - least);
            mass[j] = exp(mass[j] - peak[j > reference]);
        }
        double rest = least + log(sum), whole = exp(log_mass[row]), beyond = 0.0;
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
            double share = cells[i] / whole, outer = peak[i + 1 > reference] + log(errors[i]) - rest;
            errors[i] = inside[i] + share * smaller(steps[i], 1.0) + steps[i] / (1.0 + exp(-outer));
        }
        x += nodes, s += nodes, ds += nodes, dds += nodes, energy += nodes;
        cells += last, inside += last, errors += last, tails += 2;
    }
}
