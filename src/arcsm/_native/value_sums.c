/* Sums of the vectors of the known values of rows, and their gradients (see contexts/value_embedding.py).
 *
 * The known values of one dimension and of a tile of rows pass through its layer together, a row of vectors for each.
 * Values that are not known take no time. The slopes of the activations are kept for the backward pass.
 */

#include "value_embedding.h"

typedef struct {
    embedding_space of; /* weights, or their gradients */
    matrix sums;        /* of a tile, or their gradients, a row for each of its rows */
    size_t vectors;
} workspace;

static workspace lay_out(const embedding *e, long tile, vec *space)
{
    workspace w = {.vectors = 0};
    w.of = lay_out_embedding(e, tile, space, &w.vectors);
    w.sums = allocate(space, &w.vectors, tile, vectors_for(e->size));
    return w;
}

/* Bytes of the workspace of the functions below, for tiles of some rows. */
size_t value_sums_workspace_bytes(const embedding *e, long tile)
{
    return lay_out(e, tile, NULL).vectors * sizeof(vec);
}

/* Bytes of the slopes of one known number. */
size_t value_sums_slope_bytes(const embedding *e) { return (size_t)vectors_for(e->size) * sizeof(vec); }

static void clear(matrix m, long rows) { memset(m.at, 0, (size_t)(rows * m.stride) * sizeof(vec)); }

/* Writes the sums (rows, E) of the vectors of the values x (rows, D) that are known, (rows, D), 1 or 0; and the slopes
 * of all known numbers, one after another, unless `slopes` is NULL. */
void value_sums_forward(const embedding *e, long tile, long rows, const float *x, const float *known, float *sums,
                        vec *slopes, void *space)
{
    const workspace w = lay_out(e, tile, space);
    load_embedding(e, w.of);
    for (long begin = 0; begin < rows; begin += tile) {
        const long count = rows - begin < tile ? rows - begin : tile, first = begin * e->dimensions;
        clear(w.sums, count);
        for (long d = 0; d < e->dimensions; d++)
            slopes = add_known_values(e, w.of, d, count, x + first, known + first, w.sums, slopes);
        for (long b = 0; b < count; b++)
            memcpy(sums + (begin + b) * e->size, row(w.sums, b), (size_t)e->size * sizeof(float));
    }
}

static void add_rows(matrix from, long rows, long columns, float *to)
{
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++)
            to[i * columns + j] += ((const float *)row(from, i))[j];
}

/* Adds to the gradients of weight, bias, table and presence, from those of the sums, (rows, E), and the slopes. */
void value_sums_backward(const embedding *e, long tile, long rows, const float *x, const float *known,
                         const float *grad_sums, const vec *slopes, float *grad_weight, float *grad_bias,
                         float *grad_table, float *grad_presence, void *space)
{
    const workspace w = lay_out(e, tile, space);
    const long width = vectors_for(e->size), inputs = number_inputs(e);
    clear(w.of.weight, e->numbers * inputs);
    clear(w.of.bias, e->numbers);
    clear(w.of.presence, e->dimensions);
    for (long begin = 0; begin < rows; begin += tile) {
        const long count = rows - begin < tile ? rows - begin : tile;
        const float *its = x + begin * e->dimensions, *are_known = known + begin * e->dimensions;
        load_rows(grad_sums + begin * e->size, count, e->size, w.sums);
        for (long d = 0; d < e->dimensions; d++) {
            vec *by_presence = row(w.of.presence, d);
            if (e->levels[d]) {
                for (long b = 0; b < count; b++)
                    if (are_known[b * e->dimensions + d] > 0.0f) {
                        const long level = e->first[d] + nearest_level(its[b * e->dimensions + d], e->levels[d]);
                        const matrix grad = {row(w.sums, b), w.sums.stride};
                        add_rows(grad, 1, e->size, grad_table + level * e->size);
                        for (long v = 0; v < width; v++)
                            by_presence[v] += grad.at[v];
                    }
                continue;
            }
            const long found = gather_numbers(e, w.of, d, count, its, are_known), place = e->first[d];
            vec *by_bias = row(w.of.bias, place);
            for (long i = 0; i < found; i++, slopes += width) {
                const vec *grad = row(w.sums, w.of.rows[i]);
                vec *grad_z = row(w.of.hidden, i);
                for (long v = 0; v < width; v++) {
                    grad_z[v] = grad[v] * slopes[v];
                    by_bias[v] += grad_z[v];
                    by_presence[v] += grad[v];
                }
            }
            const matrix by_weight = {row(w.of.weight, place * inputs), w.of.weight.stride};
            blocked_product(inputs, found, w.of.inputs, w.of.hidden, by_weight, width);
        }
    }
    add_rows(w.of.weight, e->numbers * inputs, e->size, grad_weight);
    add_rows(w.of.bias, e->numbers, e->size, grad_bias);
    add_rows(w.of.presence, e->dimensions, e->size, grad_presence);
}
