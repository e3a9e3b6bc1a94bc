/* Autoregressive latents, computed one after the other (see implicit/networks/encoders.py), with their gradients:
 *
 *     u_d = e_d + w_d . h_d,    h_d = tanh(f_d + v_d e_d + B_d u_{<d}),
 *
 * where f is fixed for a row, e is its noise, and h_d has a few units. Rows are processed in tiles.
 */

#include "kernels.h"

enum { WIDTH = COLUMNS, TILE = WIDTH * LANES }; /* vectors and rows in a tile */
enum { MAX_NODES = 16 };

typedef struct {
    const float *noise;   /* v, (D, U) */
    const float *latents; /* B, (D, D, U), used for j < d */
    const float *output;  /* w, (D, U) */
} weights;

typedef struct {
    float *noise, *latents, *output;
} gradients;

/* Bytes of the hidden units of `rows` rows, which the backward pass needs. */
size_t latent_chain_hidden_bytes(long rows, long latents, long units)
{
    return (size_t)((rows + TILE - 1) / TILE * latents * units * odd(WIDTH)) * sizeof(vec);
}

typedef struct {
    matrix noise, u, total, inner, inner_by_row;
    size_t vectors;
} workspace;

static workspace lay_out(vec *space, long latents, long units)
{
    workspace w = {.vectors = 0};
    w.noise = allocate(space, &w.vectors, latents, WIDTH);
    w.u = allocate(space, &w.vectors, latents, WIDTH);
    w.total = allocate(space, &w.vectors, latents, WIDTH);
    w.inner = allocate(space, &w.vectors, units, WIDTH);
    w.inner_by_row = allocate(space, &w.vectors, TILE, vectors_for(units));
    return w;
}

/* The gradient of B in the workspace, behind all else: a matrix (j, U) for each d. */
static matrix latent_weight_gradient(vec *space, workspace w, long latents, long units, long d)
{
    matrix first = {space + w.vectors, odd(vectors_for(units))};
    return (matrix){row(first, d * latents), first.stride};
}

/* Bytes of the workspace of each function below. */
size_t latent_chain_workspace_bytes(long latents, long units)
{
    workspace w = lay_out(NULL, latents, units);
    return (w.vectors + (size_t)(latents * latents * odd(vectors_for(units)))) * sizeof(vec);
}

static matrix hidden_units(vec *hidden_space, long tile, long latents, long units, long d)
{
    matrix first = {hidden_space, odd(WIDTH)};
    return (matrix){row(first, (tile * latents + d) * units), first.stride};
}

static long rows_in_tile(long rows, long tile) { return rows - tile * TILE < TILE ? rows - tile * TILE : TILE; }

/* Computes `u`, (rows, D), from `fixed`, (rows, D, U), and `noise`, (rows, D), and stores the hidden units. */
void latent_chain_forward(long rows, long latents, long units, const weights *weights, const float *fixed,
                          const float *noise, float *u, vec *hidden_space, vec *space)
{
    const workspace w = lay_out(space, latents, units);
    for (long tile = 0; tile * TILE < rows; tile++) {
        const long here = rows_in_tile(rows, tile), begin = tile * TILE;
        load_transposed(noise + begin * latents, latents, here, latents, w.noise, WIDTH);
        for (long d = 0; d < latents; d++) {
            const float *v = weights->noise + d * units, *output = weights->output + d * units;
            const matrix hidden = hidden_units(hidden_space, tile, latents, units, d);
            load_transposed(fixed + (begin * latents + d) * units, latents * units, here, units, hidden, WIDTH);
            product(units, d, weights->latents + d * latents * units, 1, units, w.u, hidden, WIDTH, 1);
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
        store_transposed(w.u, here, latents, u + begin * latents, latents);
    }
}

/* Computes all gradients from `grad_u`, (rows, D). Those of the weights are added to `gradients`. */
void latent_chain_backward(long rows, long latents, long units, const weights *weights, const float *noise,
                           const float *u, const float *grad_u, float *grad_fixed, float *grad_noise,
                           gradients *gradients, vec *hidden_space, vec *space)
{
    const workspace w = lay_out(space, latents, units);
    memset(latent_weight_gradient(space, w, latents, units, 0).at, 0,
           latent_chain_workspace_bytes(latents, units) - w.vectors * sizeof(vec));
    for (long tile = 0; tile * TILE < rows; tile++) {
        const long here = rows_in_tile(rows, tile), begin = tile * TILE;
        load_transposed(noise + begin * latents, latents, here, latents, w.noise, WIDTH);
        load_transposed(u + begin * latents, latents, here, latents, w.u, WIDTH);
        load_transposed(grad_u + begin * latents, latents, here, latents, w.total, WIDTH);
        for (long d = latents - 1; d >= 0; d--) {
            const float *v = weights->noise + d * units, *output = weights->output + d * units;
            const matrix hidden = hidden_units(hidden_space, tile, latents, units, d);
            vec *total = row(w.total, d), *e = row(w.noise, d);
            vec grad_e[WIDTH];
            for (long c = 0; c < WIDTH; c++)
                grad_e[c] = total[c];
            for (long i = 0; i < units; i++) {
                vec output_sum = broadcast(0.0f), noise_sum = broadcast(0.0f);
                for (long c = 0; c < WIDTH; c++) {
                    const vec h = row(hidden, i)[c], inner = (1.0f - h * h) * total[c] * output[i];
                    row(w.inner, i)[c] = inner;
                    output_sum += total[c] * h;
                    noise_sum += e[c] * inner;
                    grad_e[c] += v[i] * inner;
                }
                gradients->output[d * units + i] += sum_lanes(output_sum);
                gradients->noise[d * units + i] += sum_lanes(noise_sum);
            }
            for (long c = 0; c < WIDTH; c++)
                e[c] = grad_e[c]; /* the noise is no longer needed */
            product(d, units, weights->latents + d * latents * units, units, 1, w.inner, w.total, WIDTH, 1);
            transpose_to_points(w.inner, units, WIDTH, w.inner_by_row);
            blocked_product(d, TILE, w.u, w.inner_by_row, latent_weight_gradient(space, w, latents, units, d),
                            vectors_for(units));
            for (long t = 0; t < here; t++)
                memcpy(grad_fixed + ((begin + t) * latents + d) * units, row(w.inner_by_row, t),
                       (size_t)units * sizeof(float));
        }
        store_transposed(w.noise, here, latents, grad_noise + begin * latents, latents);
    }
    for (long d = 0; d < latents; d++)
        for (long j = 0; j < d; j++) {
            const float *sums = (const float *)row(latent_weight_gradient(space, w, latents, units, d), j);
            for (long i = 0; i < units; i++)
                gradients->latents[(d * latents + j) * units + i] += sums[i];
        }
}

/* Computes mean and variance of e + w_d . tanh(f_d + v_d e + B_d u_{<d}) over a normal e for every row of `u` and every
 * d, by a quadrature with at most MAX_NODES nodes. */
void latent_chain_moments(long rows, long latents, long units, const weights *weights, const float *fixed,
                          const float *u, long nodes, const float *node, const float *node_weight, float *mean,
                          float *variance, vec *space)
{
    const workspace w = lay_out(space, latents, units);
    for (long tile = 0; tile * TILE < rows; tile++) {
        const long here = rows_in_tile(rows, tile), begin = tile * TILE;
        load_transposed(u + begin * latents, latents, here, latents, w.u, WIDTH);
        for (long d = 0; d < latents; d++) {
            const float *v = weights->noise + d * units, *output = weights->output + d * units;
            load_transposed(fixed + (begin * latents + d) * units, latents * units, here, units, w.inner, WIDTH);
            product(units, d, weights->latents + d * latents * units, 1, units, w.u, w.inner, WIDTH, 1);
            for (long c = 0; c < WIDTH; c++) {
                vec value[MAX_NODES], first = broadcast(0.0f), second = broadcast(0.0f);
                for (long q = 0; q < nodes; q++)
                    value[q] = broadcast(node[q]);
                for (long i = 0; i < units; i++) {
                    const vec inner = row(w.inner, i)[c];
                    for (long q = 0; q < nodes; q++)
                        value[q] += output[i] * hyperbolic_tangent(inner + v[i] * node[q]);
                }
                for (long q = 0; q < nodes; q++)
                    first += node_weight[q] * value[q];
                for (long q = 0; q < nodes; q++)
                    second += node_weight[q] * (value[q] - first) * (value[q] - first);
                row(w.noise, d)[c] = first;
                row(w.total, d)[c] = second;
            }
        }
        store_transposed(w.noise, here, latents, mean + begin * latents, latents);
        store_transposed(w.total, here, latents, variance + begin * latents, latents);
    }
}
