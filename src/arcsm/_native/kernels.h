/* Vectors, matrices of vectors, and their products.
 *
 * Points lie side by side in vectors, so the values of a unit of a network for many points are a row of a matrix.
 */

#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Registers hold ROWS x COLUMNS vectors of a product, one more row of COLUMNS vectors, and one broadcast number. */
#if defined(__AVX512F__)
enum { LANES = 16, COLUMNS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, COLUMNS = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, COLUMNS = 4 };
#else
enum { LANES = 4, COLUMNS = 2 };
#endif
enum { ROWS = 6 };

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* A matrix of vectors, with a row for each unit. */
typedef struct {
    vec *at;
    long stride; /* vectors from row to row; odd, so that rows do not share cache lines */
} matrix;

INLINE vec *row(matrix m, long index) { return m.at + index * m.stride; }
INLINE matrix from_column(matrix m, long column) { return (matrix){m.at + column, m.stride}; }
INLINE vec broadcast(float value) { return value - (vec){0}; }

INLINE float sum_lanes(vec v)
{
    union {
        vec v;
        float lane[LANES];
    } of = {v};
    float total[4] = {0};
    for (int i = 0; i < LANES; i++)
        total[i % 4] += of.lane[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
}

/* exp(x) to about a unit in the last place, for x clamped to -87 to 87; NaN gives any number.
 * exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by the Taylor polynomial of seventh degree. */
INLINE vec exponential(vec z)
{
    const vec most = broadcast(87.0f), round = broadcast(12582912.0f);
    bits high = z > most, low = z < -most;
    vec x = (vec)(((bits)z & ~(high | low)) | ((bits)most & high) | ((bits)-most & low));
    vec shifted = x * 1.44269504f + round, n = shifted - round;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = broadcast(1.0f / 5040.0f);
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return (vec)((bits)p + ((bits)shifted << 23));
}

/* 1 / (1 + exp(-z)) to about two units in the last place; NaN stays NaN. */
INLINE vec logistic(vec z) { return (vec)((bits)(1.0f / (1.0f + exponential(-z))) | (z != z)); }

/* Sine and cosine of angles up to 1e4 from zero, to about 1e-7; larger ones lose digits, and NaN stays NaN.
 * The angle is n pi / 2 + r, |r| <= pi / 4, and pi / 2 the sum of three numbers, the first two of few digits. */
INLINE void sine_and_cosine(vec angle, vec *sine, vec *cosine)
{
    const vec round = broadcast(12582912.0f);
    vec shifted = angle * 0.636619772f + round, n = shifted - round;
    vec r = ((angle - n * 1.5703125f) - n * 4.83751296997e-4f) - n * 7.5497901e-8f, s = r * r;
    vec p = broadcast(1.0f / 362880.0f);
    p = p * s - 1.0f / 5040.0f;
    p = p * s + 1.0f / 120.0f;
    p = p * s - 1.0f / 6.0f;
    p = p * s * r + r;
    vec q = broadcast(1.0f / 40320.0f);
    q = q * s - 1.0f / 720.0f;
    q = q * s + 1.0f / 24.0f;
    q = q * s - 0.5f;
    q = q * s + 1.0f;
    bits turns = (bits)shifted, odd_turns = (turns & 1) == 1;
    bits negative_sine = (turns & 2) << 30, negative_cosine = ((turns + 1) & 2) << 30;
    *sine = (vec)((((bits)q & odd_turns) | ((bits)p & ~odd_turns)) ^ negative_sine);
    *cosine = (vec)((((bits)p & odd_turns) | ((bits)q & ~odd_turns)) ^ negative_cosine);
}

/* Uses the logistic function; near zero, where that loses digits, the Taylor polynomial of eleventh degree. */
INLINE vec hyperbolic_tangent(vec z)
{
    vec s = z * z, p = broadcast(-1382.0f / 155925.0f);
    p = p * s + 62.0f / 2835.0f;
    p = p * s - 17.0f / 315.0f;
    p = p * s + 2.0f / 15.0f;
    p = p * s - 1.0f / 3.0f;
    vec near = z + z * s * p, far = 2.0f * logistic(2.0f * z) - 1.0f;
    bits small = s < 0.1f;
    return (vec)(((bits)near & small) | ((bits)far & ~small));
}

/* 1 / sqrt(x) to about a unit in the last place, for positive numbers: three Newton steps from a first guess. */
INLINE vec inverse_root(vec x)
{
    vec y = (vec)(0x5f3759df - ((bits)x >> 1));
    for (int i = 0; i < 3; i++)
        y *= 1.5f - 0.5f * x * y * y;
    return y;
}

INLINE vec load(const float *from)
{
    vec v;
    memcpy(&v, from, sizeof(vec));
    return v;
}

/* Products and transpositions, in kernels.c --------------------------------------------------------------------------- */

#define SHARED __attribute__((visibility("hidden")))

/* out (+)= A in, where A has `rows` rows and `inner` columns, and out has `width` vectors in a row. */
SHARED void product(long rows, long inner, const float *a, long next_row, long next_k, matrix in, matrix out,
                    long width, int accumulate);

/* out += A in for an A with many columns, in blocks of columns so that the rows of `in` stay in the cache. */
SHARED void blocked_product(long rows, long inner, matrix a, matrix in, matrix out, long width);

/* Turns a row for each unit into a row for each point; lanes beyond the last unit are zero. */
SHARED void transpose_to_points(matrix from, long units, long width, matrix to);

/* Loads `count` rows of numbers, `next` numbers apart, as a row of vectors for each column, padded with zeros. */
SHARED void load_transposed(const float *from, long next, long count, long columns, matrix to, long width);

/* Stores a row of vectors for each column as `count` rows of numbers, `next` numbers apart. */
SHARED void store_transposed(matrix from, long count, long columns, float *to, long next);

/* Memory ------------------------------------------------------------------------------------------------------------ */

static long odd(long width) { return width | 1; }
static long vectors_for(long units) { return (units + LANES - 1) / LANES; }

/* Returns the next rows of a space and counts them; without a space it only counts. */
static matrix allocate(vec *space, size_t *used, long rows, long width)
{
    matrix next = {space ? space + *used : NULL, odd(width)};
    *used += (size_t)(rows * odd(width));
    return next;
}

#endif
