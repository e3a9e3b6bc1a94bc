/* A chain of latents, one after the other (see implicit/encoders.py), and the way back through it:
 *
 *     u_d = e_d + w_d . h_d,    h_d = tanh(f_d + v_d e_d + B_d u_{<d}),
 *
 * where f is what is fixed for a row, e its noise, and h_d has a few units.
 */

#include "kernels.h"

enum { WIDTH = COLUMNS, TILE = WIDTH * LANES }; /* rows side by side, in vectors and in all */
enum { MOST_NODES = 16 };

typedef struct {
    const float *of_noise;   /* v, (D, U) */
    const float *of_latents; /* B, (D, D, U), of which j < d is used */
    const float *output;     /* w, (D, U) */
} weights;

typedef struct {
    float *of_noise, *of_latents, *output;
} gradients;

/* Bytes that the hidden units of `rows` rows take, which the way back needs. */
size_t chain_kept(long rows, long latents, long units)
{
    return (size_t)((rows + TILE - 1) / TILE * latents * units * odd(WIDTH)) * sizeof(vec);
}

typedef struct {
    matrix noise, u, total, inner, turned;
    size_t vectors;
} workspace;

static workspace lay_out(vec *space, long latents, long units)
{
    workspace w = {.vectors = 0};
    w.noise = take(space, &w.vectors, latents, WIDTH);
    w.u = take(space, &w.vectors, latents, WIDTH);
    w.total = take(space, &w.vectors, latents, WIDTH);
    w.inner = take(space, &w.vectors, units, WIDTH);
    w.turned = take(space, &w.vectors, TILE, in_vectors(units));
    return w;
}

/* The gradient of B: a matrix (j, U) for each d. */
static matrix by_latents(vec *space, workspace w, long latents, long units, long d)
{
    matrix first = {space + w.vectors, odd(in_vectors(units))};
    return (matrix){row(first, d * latents), first.stride};
}

/* Bytes that either way takes beside. */
size_t chain_space(long latents, long units)
{
    workspace w = lay_out(NULL, latents, units);
    return (w.vectors + (size_t)(latents * latents * odd(in_vectors(units)))) * sizeof(vec);
}

static matrix hidden_of(vec *kept, long tile, long latents, long units, long d)
{
    matrix first = {kept, odd(WIDTH)};
    return (matrix){row(first, (tile * latents + d) * units), first.stride};
}

static long rows_here(long rows, long tile) { return rows - tile * TILE < TILE ? rows - tile * TILE : TILE; }

/* `u`, (rows, D), of `fixed`, (rows, D, U), and `noise`, (rows, D); the hidden units go to `kept`. */
void chain(long rows, long latents, long units, const weights *by, const float *fixed, const float *noise, float *u,
           vec *kept, vec *space)
{
    const workspace w = lay_out(space, latents, units);
    for (long tile = 0; tile * TILE < rows; tile++) {
        const long here = rows_here(rows, tile), begin = tile * TILE;
        turn(noise + begin * latents, latents, here, latents, w.noise, WIDTH);
        for (long d = 0; d < latents; d++) {
            const float *v = by->of_noise + d * units, *output = by->output + d * units;
            const matrix hidden = hidden_of(kept, tile, latents, units, d);
            turn(fixed + (begin * latents + d) * units, latents * units, here, units, hidden, WIDTH);
            product(units, d, by->of_latents + d * latents * units, 1, units, w.u, hidden, WIDTH, 1);
            for (long c = 0; c < WIDTH; c++) {
                vec sum = row(w.noise, d)[c];
                for (long i = 0; i < units; i++) {
                    vec *h = row(hidden, i) + c;
                    *h = hyperbolic_tangent(*h + v[i] * row(w.noise, d)[c]);
                    sum += output[i] * *h;
                }
                row(w.u, d)[c] = sum;
            }
        }
        turn_back(w.u, here, latents, u + begin * latents, latents);
    }
}

/* From `by_u`, (rows, D), to the gradients by all that it was made of; those of the weights are added to. */
void chain_back(long rows, long latents, long units, const weights *by, const float *noise, const float *u,
                const float *by_u, float *by_fixed, float *by_noise, gradients *to, vec *kept, vec *space)
{
    const workspace w = lay_out(space, latents, units);
    memset(by_latents(space, w, latents, units, 0).at, 0, chain_space(latents, units) - w.vectors * sizeof(vec));
    for (long tile = 0; tile * TILE < rows; tile++) {
        const long here = rows_here(rows, tile), begin = tile * TILE;
        turn(noise + begin * latents, latents, here, latents, w.noise, WIDTH);
        turn(u + begin * latents, latents, here, latents, w.u, WIDTH);
        turn(by_u + begin * latents, latents, here, latents, w.total, WIDTH);
        for (long d = latents - 1; d >= 0; d--) {
            const float *v = by->of_noise + d * units, *output = by->output + d * units;
            const matrix hidden = hidden_of(kept, tile, latents, units, d);
            vec *total = row(w.total, d), *e = row(w.noise, d);
            vec by_e[WIDTH];
            for (long c = 0; c < WIDTH; c++)
                by_e[c] = total[c];
            for (long i = 0; i < units; i++) {
                vec of_output = all(0.0f), of_noise = all(0.0f);
                for (long c = 0; c < WIDTH; c++) {
                    const vec h = row(hidden, i)[c], inner = (1.0f - h * h) * total[c] * output[i];
                    row(w.inner, i)[c] = inner;
                    of_output += total[c] * h;
                    of_noise += e[c] * inner;
                    by_e[c] += v[i] * inner;
                }
                to->output[d * units + i] += sum_of(of_output);
                to->of_noise[d * units + i] += sum_of(of_noise);
            }
            for (long c = 0; c < WIDTH; c++)
                e[c] = by_e[c]; /* no longer needed as what it was */
            product(d, units, by->of_latents + d * latents * units, units, 1, w.inner, w.total, WIDTH, 1);
            by_points(w.inner, units, WIDTH, w.turned);
            long_product(d, TILE, w.u, w.turned, by_latents(space, w, latents, units, d), in_vectors(units));
            for (long t = 0; t < here; t++)
                memcpy(by_fixed + ((begin + t) * latents + d) * units, row(w.turned, t), (size_t)units * sizeof(float));
        }
        turn_back(w.noise, here, latents, by_noise + begin * latents, latents);
    }
    for (long d = 0; d < latents; d++)
        for (long j = 0; j < d; j++) {
            const float *found = (const float *)row(by_latents(space, w, latents, units, d), j);
            for (long i = 0; i < units; i++)
                to->of_latents[(d * latents + j) * units + i] += found[i];
        }
}

/* Mean and variance of e + w_d . tanh(f_d + v_d e + B_d u_{<d}) over a normal e, for every row of `u` and every d: sums
 * over at most MOST_NODES nodes of e, with their shares. */
void chain_moments(long rows, long latents, long units, const weights *by, const float *fixed, const float *u,
                   long nodes, const float *node, const float *share, float *mean, float *variance, vec *space)
{
    const workspace w = lay_out(space, latents, units);
    for (long tile = 0; tile * TILE < rows; tile++) {
        const long here = rows_here(rows, tile), begin = tile * TILE;
        turn(u + begin * latents, latents, here, latents, w.u, WIDTH);
        for (long d = 0; d < latents; d++) {
            const float *v = by->of_noise + d * units, *output = by->output + d * units;
            turn(fixed + (begin * latents + d) * units, latents * units, here, units, w.inner, WIDTH);
            product(units, d, by->of_latents + d * latents * units, 1, units, w.u, w.inner, WIDTH, 1);
            for (long c = 0; c < WIDTH; c++) {
                vec value[MOST_NODES], first = all(0.0f), second = all(0.0f);
                for (long q = 0; q < nodes; q++)
                    value[q] = all(node[q]);
                for (long i = 0; i < units; i++) {
                    const vec inner = row(w.inner, i)[c];
                    for (long q = 0; q < nodes; q++)
                        value[q] += output[i] * hyperbolic_tangent(inner + v[i] * node[q]);
                }
                for (long q = 0; q < nodes; q++)
                    first += share[q] * value[q];
                for (long q = 0; q < nodes; q++)
                    second += share[q] * (value[q] - first) * (value[q] - first);
                row(w.noise, d)[c] = first;
                row(w.total, d)[c] = second;
            }
        }
        turn_back(w.noise, here, latents, mean + begin * latents, latents);
        turn_back(w.total, here, latents, variance + begin * latents, latents);
    }
}
