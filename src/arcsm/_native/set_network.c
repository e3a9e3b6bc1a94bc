/* Contexts of all dimensions given one set for each row, and their gradients (see contexts/set_networks.py). */

#include "set_network.h"

typedef struct {
    matrix term;                            /* of a tile, or its gradient, 2 H rows */
    matrix *dropout;                        /* of a tile, for each residual layer */
    matrix contexts;                        /* or their gradients, D C rows */
    matrix grad_h, grad_z, grad_s;          /* gradients of a tile */
    matrix by_set;                          /* gradients with a row for each set */
    matrix contexts_by_set;                 /* likewise, of the contexts */
    matrix first, linear, output, *weights; /* gradients of weights, transposed: a row for each input */
    size_t vectors;
} workspace;

static long all_outputs(const set_network *n) { return n->dimensions * n->outputs; }

static workspace lay_out(const set_network *n, long tile, vec *space, matrix *of_layers)
{
    const long width = tile / LANES, units = vectors_for(n->units),
               larger = n->units > n->inputs ? n->units : n->inputs;
    workspace w = {.vectors = 0, .dropout = of_layers, .weights = of_layers + n->layers};
    w.term = allocate(space, &w.vectors, 2 * n->units, width);
    w.contexts = allocate(space, &w.vectors, all_outputs(n), width);
    w.grad_h = allocate(space, &w.vectors, n->units, width);
    w.grad_z = allocate(space, &w.vectors, n->units, width);
    w.grad_s = allocate(space, &w.vectors, n->inputs, width);
    w.by_set = allocate(space, &w.vectors, tile, vectors_for(larger));
    w.contexts_by_set = allocate(space, &w.vectors, tile, vectors_for(all_outputs(n)));
    w.first = allocate(space, &w.vectors, n->inputs, units);
    w.linear = allocate(space, &w.vectors, n->inputs, units);
    w.output = allocate(space, &w.vectors, n->units, vectors_for(all_outputs(n)));
    for (long l = 0; l < n->layers; l++) {
        w.dropout[l] = allocate(space, &w.vectors, n->units, width);
        w.weights[l] = allocate(space, &w.vectors, n->units, units);
    }
    return w;
}

/* Bytes of the workspace of the functions below, for tiles of some sets. */
size_t set_network_workspace_bytes(const set_network *n, long tile)
{
    matrix of_layers[2 * n->layers + 1];
    return lay_out(n, tile, NULL, of_layers).vectors * sizeof(vec);
}

static size_t layer_vectors(const set_network *n, long width)
{
    residual_layer layers[n->layers + 1];
    size_t used = (size_t)width;
    lay_out_layers(n, width, layers, 1, NULL, &used);
    return used;
}

/* Bytes of the hidden layers of a tile, which the forward pass leaves to the backward pass. */
size_t set_network_layer_bytes(const set_network *n, long tile) { return layer_vectors(n, tile / LANES) * sizeof(vec); }

/* Writes the contexts (rows, D, C) given sums (rows, E) over sets of some `sizes` (rows,); and the hidden layers of all
 * tiles. The `terms` (rows, 2 H) and the factors of dropout, (rows, H) for each residual layer, may be NULL. */
void set_network_forward(const set_network *n, long tile, long rows, const float *sums, const float *sizes,
                         const float *terms, const float *const *dropout, float *contexts, vec *saved, void *space)
{
    matrix of_layers[2 * n->layers + 1];
    residual_layer layers[n->layers + 1];
    const long width = tile / LANES, outputs = all_outputs(n);
    const workspace w = lay_out(n, tile, space, of_layers);
    for (long begin = 0; begin < rows; begin += tile, saved += layer_vectors(n, width)) {
        const long count = rows - begin < tile ? rows - begin : tile;
        size_t used = (size_t)width;
        const hidden_layers a = lay_out_layers(n, width, layers, 1, saved, &used);
        load_sums(n, sums + begin * n->inputs, sizes + begin, count, a, saved, width);
        if (terms)
            load_transposed(terms + begin * 2 * n->units, 2 * n->units, count, 2 * n->units, w.term, width);
        for (long l = 0; dropout && l < n->layers; l++)
            load_transposed(dropout[l] + begin * n->units, n->units, count, n->units, w.dropout[l], width);
        hidden(n, a, terms ? w.term : (matrix){NULL, 0}, dropout ? w.dropout : NULL, width, 1);
        for (long d = 0; d < n->dimensions; d++) {
            const matrix out = {row(w.contexts, d * n->outputs), w.contexts.stride};
            product(n->outputs, n->units, n->output_weight + d * n->units * n->outputs, 1, n->outputs, a.last, out,
                    width, 0);
        }
        for (long i = 0; i < outputs; i++)
            for (long v = 0; v < width; v++)
                row(w.contexts, i)[v] += n->output_bias[i];
        transpose_to_points(w.contexts, outputs, width, w.contexts_by_set);
        for (long b = 0; b < count; b++)
            memcpy(contexts + (begin + b) * outputs, row(w.contexts_by_set, b), (size_t)outputs * sizeof(float));
    }
}

static void add_transposed(matrix from, long inputs, long units, float *to)
{
    for (long i = 0; i < units; i++)
        for (long j = 0; j < inputs; j++)
            to[i * inputs + j] += ((const float *)row(from, j))[i];
}

/* Adds the sums over all sets of a tile, a row for each unit. */
static void add_sums(matrix from, long units, long width, float *to)
{
    for (long i = 0; i < units; i++) {
        vec total = broadcast(0.0f);
        for (long v = 0; v < width; v++)
            total += row(from, i)[v];
        to[i] += sum_lanes(total);
    }
}

/* Multiplies the gradient of a weight by that of the units above, for the sets of a tile. */
static void by_weight(long inputs, long units, long width, matrix below, matrix grad, matrix by_set, matrix to)
{
    transpose_to_points(grad, units, width, by_set);
    blocked_product(inputs, width * LANES, below, by_set, to, vectors_for(units));
}

/* Computes grad_z and grad_h of the first layer from w.grad_h, the gradient of the last hidden layer. */
static void backward(const set_network *n, hidden_layers a, workspace w, long width, float *grad_first_bias,
                     float *const *grad_bias)
{
    const long units = n->units;
    for (long i = 0; i < units; i++)
        for (long v = 0; v < width; v++)
            row(w.grad_z, i)[v] = row(w.grad_h, i)[v] * n->slowly;
    for (long i = 0; i < units; i++)
        memcpy(row(w.term, units + i), row(w.grad_z, i), (size_t)width * sizeof(vec));
    by_weight(n->inputs, units, width, a.s, w.grad_z, w.by_set, w.linear);
    product(n->inputs, units, n->linear_weight, 1, n->inputs, w.grad_z, w.grad_s, width, 0);
    for (long v = 0; v < width; v++) {
        vec mean = broadcast(0.0f);
        for (long i = 0; i < units; i++) {
            row(w.grad_h, i)[v] *= row(a.slope, i)[v];
            mean += row(w.grad_h, i)[v] * row(a.h, i)[v];
        }
        mean *= 1.0f / (float)units;
        for (long i = 0; i < units; i++)
            row(w.grad_h, i)[v] = a.scale[v] * (row(w.grad_h, i)[v] - row(a.h, i)[v] * mean);
    }
    for (long l = n->layers - 1; l >= 0; l--) {
        const residual_layer layer = a.layers[l];
        for (long i = 0; i < units; i++)
            for (long v = 0; v < width; v++)
                row(w.grad_z, i)[v] = row(w.grad_h, i)[v] * row(layer.outer, i)[v];
        add_sums(w.grad_z, units, width, grad_bias[l]);
        by_weight(units, units, width, layer.value, w.grad_z, w.by_set, w.weights[l]);
        product(units, units, n->weight[l], 1, units, w.grad_z, a.z, width, 0);
        for (long i = 0; i < units; i++)
            for (long v = 0; v < width; v++)
                row(w.grad_h, i)[v] += row(a.z, i)[v] * row(layer.slope, i)[v];
    }
    add_sums(w.grad_h, units, width, grad_first_bias);
    for (long i = 0; i < units; i++)
        memcpy(row(w.term, i), row(w.grad_h, i), (size_t)width * sizeof(vec));
    by_weight(n->inputs, units, width, a.s, w.grad_h, w.by_set, w.first);
    product(n->inputs, units, n->first_weight, 1, n->inputs, w.grad_h, w.grad_s, width, 1);
}

static void clear(matrix m, long rows) { memset(m.at, 0, (size_t)(rows * m.stride) * sizeof(vec)); }

/* Gradients of all weights, in the order of set_network. */
typedef struct {
    float *first_weight, *first_bias, *linear_weight;
    float *const *weight, *const *bias;
    float *output_weight, *output_bias;
} set_network_gradients;

/* Adds to the gradients of the weights, from those of the contexts, (rows, D, C), and the hidden layers of all tiles;
 * writes those of the sums, (rows, E), and of the terms, (rows, 2 H), unless that is NULL. */
void set_network_backward(const set_network *n, long tile, long rows, const float *grad_contexts, vec *saved,
                          const set_network_gradients *to, float *grad_sums, float *grad_terms, void *space)
{
    matrix of_layers[2 * n->layers + 1];
    residual_layer layers[n->layers + 1];
    const long width = tile / LANES, outputs = all_outputs(n);
    const workspace w = lay_out(n, tile, space, of_layers);
    clear(w.first, n->inputs);
    clear(w.linear, n->inputs);
    clear(w.output, n->units);
    for (long l = 0; l < n->layers; l++)
        clear(w.weights[l], n->units);
    clear(w.contexts_by_set, tile);
    for (long begin = 0; begin < rows; begin += tile, saved += layer_vectors(n, width)) {
        const long count = rows - begin < tile ? rows - begin : tile;
        const float *grad = grad_contexts + begin * outputs;
        size_t used = (size_t)width;
        const hidden_layers a = lay_out_layers(n, width, layers, 1, saved, &used);
        load_transposed(grad, outputs, count, outputs, w.contexts, width);
        add_sums(w.contexts, outputs, width, to->output_bias);
        for (long b = 0; b < count; b++)
            memcpy(row(w.contexts_by_set, b), grad + b * outputs, (size_t)outputs * sizeof(float));
        blocked_product(n->units, count, a.last, w.contexts_by_set, w.output, vectors_for(outputs));
        for (long d = 0; d < n->dimensions; d++) {
            const matrix in = {row(w.contexts, d * n->outputs), w.contexts.stride};
            product(n->units, n->outputs, n->output_weight + d * n->units * n->outputs, n->outputs, 1, in, w.grad_h,
                    width, d > 0);
        }
        backward(n, a, w, width, to->first_bias, to->bias);
        for (long j = 0; j < n->inputs; j++)
            for (long v = 0; v < width; v++)
                row(w.grad_s, j)[v] *= saved[v];
        store_transposed(w.grad_s, count, n->inputs, grad_sums + begin * n->inputs, n->inputs);
        if (grad_terms)
            store_transposed(w.term, count, 2 * n->units, grad_terms + begin * 2 * n->units, 2 * n->units);
    }
    add_transposed(w.first, n->inputs, n->units, to->first_weight);
    add_transposed(w.linear, n->inputs, n->units, to->linear_weight);
    for (long l = 0; l < n->layers; l++)
        add_transposed(w.weights[l], n->units, n->units, to->weight[l]);
    for (long d = 0; d < n->dimensions; d++)
        for (long i = 0; i < n->units; i++)
            for (long c = 0; c < n->outputs; c++)
                to->output_weight[(d * n->units + i) * n->outputs + c] +=
                    ((const float *)row(w.output, i))[d * n->outputs + c];
}
