/* Contexts of all dimensions in one order (see contexts/any_order.py).
 *
 * A tile of rows walks through the order. Its sums of vectors stay in a core's own cache, and each dimension adds the
 * vectors of its values to them.
 */

#include "set_network.h"
#include "value_embedding.h"

/* The network of the sets of some sizes, and what is added to its hidden layers. */
typedef struct {
    const set_network *network;
    const float *terms;           /* of rows, (rows, 2 H), or NULL */
    const float *residual_weight; /* of residuals, (K, 2 H), or NULL */
} walk_network;

typedef struct {
    embedding_space of;
    matrix sums;           /* a row for each row of the tile */
    matrix terms[2], term; /* of each network, and of one dimension, 2 H rows */
    matrix residuals;      /* K rows */
    matrix contexts[2];    /* of each network, C rows */
    vec *sizes, *roots;    /* of the sets, one for each row */
    size_t vectors;
} workspace;

static workspace lay_out(const embedding *e, const set_network *n, long columns, long tile, vec *space)
{
    const long width = tile / LANES;
    workspace w = {.vectors = 0};
    w.of = lay_out_embedding(e, tile, space, &w.vectors);
    w.sums = allocate(space, &w.vectors, tile, vectors_for(e->size));
    for (int i = 0; i < 2; i++) {
        w.terms[i] = allocate(space, &w.vectors, 2 * n->units, width);
        w.contexts[i] = allocate(space, &w.vectors, n->outputs, width);
    }
    w.term = allocate(space, &w.vectors, 2 * n->units, width);
    w.residuals = allocate(space, &w.vectors, columns, width);
    w.sizes = space ? space + w.vectors : NULL;
    w.roots = space ? w.sizes + width : NULL;
    w.vectors += (size_t)(2 * width);
    return w;
}

/* Bytes of the workspace of context_walk, for tiles of some rows and residuals of K columns. */
size_t context_walk_workspace_bytes(const embedding *e, const set_network *n, long columns, long tile)
{
    residual_layer layers[n->layers + 1];
    size_t used = lay_out(e, n, columns, tile, NULL).vectors;
    lay_out_layers(n, tile / LANES, layers, 0, NULL, &used);
    return used * sizeof(vec);
}

/* Computes the contexts of dimension d, given sets whose sums are in a.s. */
static void contexts_of(const walk_network *of, hidden_layers a, workspace w, int number, long d, long columns,
                        long width)
{
    const set_network *n = of->network;
    matrix term = of->terms ? w.terms[number] : (matrix){NULL, 0};
    if (of->residual_weight) {
        for (long i = 0; i < 2 * n->units; i++)
            for (long v = 0; v < width; v++)
                row(w.term, i)[v] = term.at ? row(term, i)[v] : broadcast(0.0f);
        product(2 * n->units, columns, of->residual_weight, 1, 2 * n->units, w.residuals, w.term, width, 1);
        term = w.term;
    }
    hidden(n, a, term, NULL, width, 0);
    const matrix out = w.contexts[number];
    product(n->outputs, n->units, n->output_weight + d * n->units * n->outputs, 1, n->outputs, a.last, out, width, 0);
    for (long c = 0; c < n->outputs; c++)
        for (long v = 0; v < width; v++)
            row(out, c)[v] += n->output_bias[d * n->outputs + c];
}

/* Writes the contexts (rows, D, C) of values x (rows, D) in an order, (D,); sets have those before that are known,
 * (rows, D), 1 or 0. The first network is that of sets with more than `small_sets` values; the second, of the others,
 * has none if that is -1. There are `columns` residuals (rows, D, K). */
void context_walk(const embedding *e, const walk_network *networks, long small_sets, const long *order, long columns,
                  long tile, long rows, const float *x, const float *known, const float *residuals, float *contexts,
                  void *space)
{
    const set_network *n = networks[0].network;
    const long width = tile / LANES, dimensions = e->dimensions, outputs = n->outputs;
    residual_layer layers[n->layers + 1];
    workspace w = lay_out(e, n, columns, tile, space);
    size_t used = w.vectors;
    const hidden_layers a = lay_out_layers(n, width, layers, 0, space, &used);
    load_embedding(e, w.of);
    float *sizes = (float *)w.sizes;
    for (long begin = 0; begin < rows; begin += tile) {
        const long count = rows - begin < tile ? rows - begin : tile, first = begin * dimensions;
        memset(w.sums.at, 0, (size_t)(tile * w.sums.stride) * sizeof(vec));
        memset(w.sizes, 0, (size_t)width * sizeof(vec));
        for (int i = 0; i < (small_sets < 0 ? 1 : 2); i++)
            if (networks[i].terms)
                load_transposed(networks[i].terms + begin * 2 * n->units, 2 * n->units, count, 2 * n->units, w.terms[i],
                                width);
        for (long p = 0; p < dimensions; p++) {
            const long d = order[p];
            long small = 0;
            for (long b = 0; b < count; b++)
                small += sizes[b] <= (float)small_sets;
            for (long v = 0; v < width; v++)
                w.roots[v] = inverse_root(1.0f + w.sizes[v]);
            transpose_to_points(w.sums, tile, vectors_for(e->size), a.s);
            for (long j = 0; j < e->size; j++)
                for (long v = 0; v < width; v++)
                    row(a.s, j)[v] *= w.roots[v];
            if (columns)
                load_transposed(residuals + (first + d) * columns, dimensions * columns, count, columns, w.residuals,
                                width);
            if (small < count)
                contexts_of(&networks[0], a, w, 0, d, columns, width);
            if (small > 0)
                contexts_of(&networks[1], a, w, 1, d, columns, width);
            for (long b = 0; b < count; b++) {
                const matrix from = w.contexts[sizes[b] <= (float)small_sets];
                for (long c = 0; c < outputs; c++)
                    contexts[((begin + b) * dimensions + d) * outputs + c] = ((const float *)row(from, c))[b];
            }
            if (p + 1 < dimensions)
                add_known_values(e, w.of, d, count, x + first, known + first, w.sums, NULL);
            for (long b = 0; b < count; b++)
                sizes[b] += known[first + b * dimensions + d] > 0.0f ? 1.0f : 0.0f;
        }
    }
}
