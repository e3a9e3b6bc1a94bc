/* Vectors for the values of rows, numbers or levels (see contexts/value_embedding.py). */

#ifndef VALUE_EMBEDDING_H
#define VALUE_EMBEDDING_H

#include "kernels.h"

typedef struct {
    long dimensions;        /* D */
    long size;              /* E, of a vector */
    long numbers;           /* dimensions that are numbers */
    long frequencies;       /* J */
    const long *levels;     /* of each dimension, 0 for numbers, (D,) */
    const long *first;      /* the first row of each dimension in the table, or its place among the numbers, (D,) */
    const float *frequency; /* (J,) */
    const float *amplitude; /* of a number, its sines and its cosines, (2 J + 1,) */
    const float *weight;    /* (numbers, 2 J + 1, E) */
    const float *bias;      /* (numbers, E) */
    const float *table;     /* vectors of the levels, (sum of levels, E) */
    const float *presence;  /* of a value, whatever it is, (D, E) */
} embedding;

INLINE long number_inputs(const embedding *e) { return 2 * e->frequencies + 1; }

/* The nearest level of a dimension; NaN gives the first. */
INLINE long nearest_level(float x, long levels)
{
    const float last = (float)(levels - 1), round = 12582912.0f;
    if (!(x > 0.0f))
        return 0;
    return (long)(((x < last ? x : last) + round) - round);
}

/* Copies rows of `columns` numbers into rows of vectors, padded with zeros. */
static void load_rows(const float *from, long rows, long columns, matrix to)
{
    for (long i = 0; i < rows; i++) {
        float *out = (float *)row(to, i);
        memcpy(out, from + i * columns, (size_t)columns * sizeof(float));
        memset(out + columns, 0, (size_t)(vectors_for(columns) * LANES - columns) * sizeof(float));
    }
}

/* Each value of a vector, its sines and its cosines, times their amplitudes, in rows of `to` from a column on. */
INLINE void features_of_numbers(const embedding *e, vec x, matrix to, long column)
{
    row(to, 0)[column] = x * e->amplitude[0];
    for (long j = 0; j < e->frequencies; j++) {
        vec sine, cosine;
        sine_and_cosine(x * e->frequency[j], &sine, &cosine);
        row(to, 1 + j)[column] = sine * e->amplitude[1 + j];
        row(to, 1 + e->frequencies + j)[column] = cosine * e->amplitude[1 + e->frequencies + j];
    }
}

/* Weights of all dimensions, padded, and what the vectors of a tile of rows need. */
typedef struct {
    matrix weight, bias, presence;
    matrix inputs; /* of the known numbers of a dimension, which lie side by side */
    matrix hidden; /* a row for each of these numbers */
    long *rows;    /* of these numbers, (tile,) */
} embedding_space;

static embedding_space lay_out_embedding(const embedding *e, long tile, vec *space, size_t *used)
{
    const long width = vectors_for(e->size);
    embedding_space w;
    w.weight = allocate(space, used, e->numbers * number_inputs(e), width);
    w.bias = allocate(space, used, e->numbers, width);
    w.presence = allocate(space, used, e->dimensions, width);
    w.inputs = allocate(space, used, number_inputs(e), vectors_for(tile));
    w.hidden = allocate(space, used, tile, width);
    w.rows = space ? (long *)(space + *used) : NULL;
    *used += ((size_t)tile * sizeof(long) + sizeof(vec) - 1) / sizeof(vec);
    return w;
}

static void load_embedding(const embedding *e, embedding_space w)
{
    load_rows(e->weight, e->numbers * number_inputs(e), e->size, w.weight);
    load_rows(e->bias, e->numbers, e->size, w.bias);
    load_rows(e->presence, e->dimensions, e->size, w.presence);
}

/* Finds the known numbers of a dimension among `count` rows, and their features; returns how many there are. */
static long gather_numbers(const embedding *e, embedding_space w, long d, long count, const float *x,
                           const float *known)
{
    long found = 0;
    union {
        vec v;
        float lane[LANES];
    } values = {{0}};
    for (long b = 0; b < count; b++) {
        if (!(known[b * e->dimensions + d] > 0.0f))
            continue;
        values.lane[found % LANES] = x[b * e->dimensions + d];
        w.rows[found++] = b;
        if (found % LANES == 0)
            features_of_numbers(e, values.v, w.inputs, found / LANES - 1);
    }
    if (found % LANES)
        features_of_numbers(e, values.v, w.inputs, found / LANES);
    return found;
}

/* Adds a vector of a table, whose rows are not padded, and the presence of its dimension. */
static void add_level(const float *of_level, const vec *presence, vec *sum, long size)
{
    const long whole = size / LANES;
    for (long v = 0; v < whole; v++)
        sum[v] += presence[v] + load(of_level + v * LANES);
    for (long i = whole * LANES; i < size; i++)
        ((float *)sum)[i] += ((const float *)presence)[i] + of_level[i];
}

/* Adds the vectors of the known values of a dimension to the sums of `count` rows, a row of vectors each. Returns where
 * slopes of the activations of the next numbers go; without `slopes` they are left out. */
static vec *add_known_values(const embedding *e, embedding_space w, long d, long count, const float *x,
                             const float *known, matrix sums, vec *slopes)
{
    const long width = vectors_for(e->size), inputs = number_inputs(e);
    const vec *presence = row(w.presence, d);
    if (e->levels[d]) {
        for (long b = 0; b < count; b++)
            if (known[b * e->dimensions + d] > 0.0f) {
                const long level = e->first[d] + nearest_level(x[b * e->dimensions + d], e->levels[d]);
                add_level(e->table + level * e->size, presence, row(sums, b), e->size);
            }
        return slopes;
    }
    const long found = gather_numbers(e, w, d, count, x, known), place = e->first[d];
    const matrix weight = {row(w.weight, place * inputs), w.weight.stride};
    product(found, inputs, (const float *)w.inputs.at, 1, w.inputs.stride * LANES, weight, w.hidden, width, 0);
    for (long i = 0; i < found; i++) {
        vec *sum = row(sums, w.rows[i]);
        const vec *z = row(w.hidden, i), *bias = row(w.bias, place);
        for (long v = 0; v < width; v++) {
            vec value = z[v] + bias[v], gate = logistic(value), activation = value * gate;
            sum[v] += activation + presence[v];
            if (slopes)
                slopes[v] = gate + activation * (1.0f - gate);
        }
        slopes = slopes ? slopes + width : NULL;
    }
    return slopes;
}

#endif
