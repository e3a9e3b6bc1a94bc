/* The network of an any-order context: from sums of vectors to hidden layers (see contexts/set_networks.py).
 *
 * Sets lie side by side in vectors, so a hidden layer of a tile of sets is a small matrix with a row for each unit.
 */

#ifndef SET_NETWORK_H
#define SET_NETWORK_H

#include "kernels.h"

typedef struct {
    long inputs;                /* E, of the sums */
    long units;                 /* H, of each hidden layer */
    long layers;                /* L, residual ones */
    long dimensions;            /* D */
    long outputs;               /* C, of each dimension */
    float slowly;               /* factor of what is added to the last hidden layer */
    float smallest;             /* mean square of a layer, from which on it is normalised */
    const float *first_weight;  /* (H, E) */
    const float *first_bias;    /* (H,) */
    const float *linear_weight; /* (H, E) */
    const float *const *weight; /* of the residual layers, (H, H) each */
    const float *const *bias;   /* likewise, (H,) */
    const float *output_weight; /* (D, H, C) */
    const float *output_bias;   /* (D, C) */
} set_network;

/* A residual layer h + m f(z), with z = W f(h) + b and the factors m of dropout. */
typedef struct {
    matrix value, slope; /* f(h) and f'(h) */
    matrix outer;        /* m f'(z) */
} residual_layer;

/* Hidden layers of a tile. Slopes are for the backward pass; without it all layers share one matrix of values. */
typedef struct {
    matrix s;     /* the sums over the root of their numbers, E rows and padding */
    matrix h, z;  /* H rows; in the end h is divided by its root mean square */
    matrix last;  /* the last hidden layer */
    matrix slope; /* f'(h) in it */
    residual_layer *layers;
    vec *scale; /* one over the root mean square */
} hidden_layers;

/* Places the layers of a tile of `width` vectors. */
static hidden_layers lay_out_layers(const set_network *n, long width, residual_layer *layers, int train, vec *space,
                                    size_t *used)
{
    hidden_layers a = {.layers = layers};
    a.s = allocate(space, used, vectors_for(n->inputs) * LANES, width);
    a.h = allocate(space, used, n->units, width);
    a.z = allocate(space, used, n->units, width);
    a.last = allocate(space, used, n->units, width);
    a.scale = space ? space + *used : NULL;
    *used += (size_t)width;
    const matrix shared = train ? a.z : allocate(space, used, n->units, width);
    if (train)
        a.slope = allocate(space, used, n->units, width);
    for (long l = 0; l < n->layers; l++) {
        layers[l].value = train ? allocate(space, used, n->units, width) : shared;
        if (train) {
            layers[l].slope = allocate(space, used, n->units, width);
            layers[l].outer = allocate(space, used, n->units, width);
        }
    }
    return a;
}

/* f(z) = z g, with g the logistic function of z, and its slope g + f (1 - g). */
INLINE vec silu_and_slope(vec z, vec *slope)
{
    vec gate = logistic(z), value = z * gate;
    *slope = gate + value * (1.0f - gate);
    return value;
}

/* Computes the hidden layers of sets whose `a.s` is there. A `term` of 2 H rows is added to the first and the last, and
 * `dropout` has factors of each residual layer; both may be without memory. */
static void hidden(const set_network *n, hidden_layers a, matrix term, const matrix *dropout, long width, int train)
{
    const long units = n->units;
    product(units, n->inputs, n->first_weight, n->inputs, 1, a.s, a.h, width, 0);
    for (long i = 0; i < units; i++)
        for (long w = 0; w < width; w++)
            row(a.h, i)[w] += n->first_bias[i] + (term.at ? row(term, i)[w] : broadcast(0.0f));
    for (long l = 0; l < n->layers; l++) {
        const residual_layer layer = a.layers[l];
        for (long i = 0; i < units; i++) {
            const vec *h = row(a.h, i);
            vec *value = row(layer.value, i), *out = train ? row(layer.slope, i) : NULL, slope;
            for (long w = 0; w < width; w++) {
                value[w] = silu_and_slope(h[w], &slope);
                if (train)
                    out[w] = slope;
            }
        }
        product(units, units, n->weight[l], units, 1, layer.value, a.z, width, 0);
        for (long i = 0; i < units; i++) {
            const vec *z = row(a.z, i), *factor = dropout ? row(dropout[l], i) : NULL;
            vec *h = row(a.h, i), *outer = train ? row(layer.outer, i) : NULL, slope;
            for (long w = 0; w < width; w++) {
                vec value = silu_and_slope(z[w] + n->bias[l][i], &slope);
                if (factor) {
                    value *= factor[w];
                    slope *= factor[w];
                }
                h[w] += value;
                if (train)
                    outer[w] = slope;
            }
        }
    }
    for (long w = 0; w < width; w++) {
        vec total = broadcast(0.0f);
        for (long i = 0; i < units; i++)
            total += row(a.h, i)[w] * row(a.h, i)[w];
        a.scale[w] = inverse_root(total * (1.0f / (float)units) + n->smallest);
    }
    product(units, n->inputs, n->linear_weight, n->inputs, 1, a.s, a.z, width, 0);
    for (long i = 0; i < units; i++) {
        const vec *z = row(a.z, i);
        vec *h = row(a.h, i), *last = row(a.last, i), *out = train ? row(a.slope, i) : NULL, slope;
        for (long w = 0; w < width; w++) {
            vec added = z[w] + (term.at ? row(term, units + i)[w] : broadcast(0.0f));
            h[w] *= a.scale[w];
            last[w] = silu_and_slope(h[w], &slope) + added * n->slowly;
            if (train)
                out[w] = slope;
        }
    }
}

/* Loads sums (count, E), each divided by the root of one more than its number of values. */
static void load_sums(const set_network *n, const float *sums, const float *sizes, long count, hidden_layers a,
                      vec *roots, long width)
{
    float *of_row = (float *)roots;
    memcpy(of_row, sizes, (size_t)count * sizeof(float));
    memset(of_row + count, 0, (size_t)(width * LANES - count) * sizeof(float));
    for (long w = 0; w < width; w++)
        roots[w] = inverse_root(1.0f + roots[w]);
    load_transposed(sums, n->inputs, count, n->inputs, a.s, width);
    for (long j = 0; j < n->inputs; j++)
        for (long w = 0; w < width; w++)
            row(a.s, j)[w] *= roots[w];
}

#endif
