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

/* Products ---------------------------------------------------------------------------------------------------------- */

/* out[r] (+)= sum_k a[r, k] in[k] for a few rows and COLUMNS vectors of each row. */
INLINE void product_block(int rows, int columns, const float *a, long next_row, long next_k, long inner, matrix in,
                          matrix out, int accumulate)
{
    vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++)
            sum[r][c] = accumulate ? row(out, r)[c] : broadcast(0.0f);
    for (long k = 0; k < inner; k++) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float value = a[r * next_row + k * next_k];
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++)
                sum[r][c] += value * row(in, k)[c];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++)
            row(out, r)[c] = sum[r][c];
}

INLINE void product_rows(long rows, int columns, const float *a, long next_row, long next_k, long inner, matrix in,
                         matrix out, int accumulate)
{
    for (long r = 0; r < rows; r += ROWS) {
        const float *from = a + r * next_row;
        const matrix to = {row(out, r), out.stride};
        switch (rows - r) {
        case 1: product_block(1, columns, from, next_row, next_k, inner, in, to, accumulate); break;
        case 2: product_block(2, columns, from, next_row, next_k, inner, in, to, accumulate); break;
        case 3: product_block(3, columns, from, next_row, next_k, inner, in, to, accumulate); break;
        case 4: product_block(4, columns, from, next_row, next_k, inner, in, to, accumulate); break;
        case 5: product_block(5, columns, from, next_row, next_k, inner, in, to, accumulate); break;
        default: product_block(ROWS, columns, from, next_row, next_k, inner, in, to, accumulate);
        }
    }
}

/* out (+)= A in, where A has `rows` rows and `inner` columns, and out has `width` vectors in a row. */
static void product(long rows, long inner, const float *a, long next_row, long next_k, matrix in, matrix out,
                    long width, int accumulate)
{
    long c = 0;
    for (; c + COLUMNS <= width; c += COLUMNS)
        product_rows(rows, COLUMNS, a, next_row, next_k, inner, from_column(in, c), from_column(out, c), accumulate);
    for (; c < width; c++)
        product_rows(rows, 1, a, next_row, next_k, inner, from_column(in, c), from_column(out, c), accumulate);
}

/* out += A in for an A with many columns, in blocks of columns so that the rows of `in` stay in the cache. */
static void blocked_product(long rows, long inner, matrix a, matrix in, matrix out, long width)
{
    const long block = 64;
    for (long k = 0; k < inner; k += block) {
        const matrix here = {row(in, k), in.stride};
        product(rows, inner - k < block ? inner - k : block, (float *)a.at + k, a.stride * LANES, 1, here, out, width,
                1);
    }
}

/* Transposition ------------------------------------------------------------------------------------------------------ */

/* For vectors a and b: the lanes whose number lacks bit `step`, those of b moved up by it; and the lanes that have it. */
#define LOW(l, step) ((l) & (step) ? LANES + ((l) ^ (step)) : (l))
#define HIGH(l, step) ((l) & (step) ? LANES + (l) : (l) ^ (step))
#define FOUR(of, l, step) of(l, step), of(l + 1, step), of(l + 2, step), of(l + 3, step)
#if defined(__AVX512F__)
#define LIST(of, step) FOUR(of, 0, step), FOUR(of, 4, step), FOUR(of, 8, step), FOUR(of, 12, step)
#elif defined(__AVX__)
#define LIST(of, step) FOUR(of, 0, step), FOUR(of, 4, step)
#else
#define LIST(of, step) FOUR(of, 0, step)
#endif
#if defined(__clang__)
#define SHUFFLE(of, a, b, step) __builtin_shufflevector(a, b, LIST(of, step))
#else
#define SHUFFLE(of, a, b, step) __builtin_shuffle(a, b, (bits){LIST(of, step)})
#endif
#define EXCHANGE(v, step)                                                                                              \
    _Pragma("GCC unroll 16") for (int r = 0; r < LANES; r++) if (!(r & (step)))                                        \
    {                                                                                                                  \
        vec a = v[r], b = v[r + (step)];                                                                               \
        v[r] = SHUFFLE(LOW, a, b, step);                                                                               \
        v[r + (step)] = SHUFFLE(HIGH, a, b, step);                                                                     \
    }

/* Transposes a square of LANES rows and columns in place. */
INLINE void transpose(vec *v)
{
#if defined(__AVX512F__)
    EXCHANGE(v, 8)
#endif
#if defined(__AVX__)
    EXCHANGE(v, 4)
#endif
    EXCHANGE(v, 2)
    EXCHANGE(v, 1)
}

/* Turns a row for each unit into a row for each point; lanes beyond the last unit are zero. */
static void transpose_to_points(matrix from, long units, long width, matrix to)
{
    for (long i = 0; i < units; i += LANES)
        for (long w = 0; w < width; w++) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                square[r] = i + r < units ? row(from, i + r)[w] : broadcast(0.0f);
            transpose(square);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                row(to, w * LANES + r)[i / LANES] = square[r];
        }
}

INLINE vec load(const float *from)
{
    vec v;
    memcpy(&v, from, sizeof(vec));
    return v;
}

/* Loads `count` rows of numbers, `next` numbers apart, as a row of vectors for each column, padded with zeros. */
static void load_transposed(const float *from, long next, long count, long columns, matrix to, long width)
{
    long j = 0;
    for (; j + LANES <= columns; j += LANES)
        for (long w = 0; w < width; w++) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                square[r] = w * LANES + r < count ? load(from + (w * LANES + r) * next + j) : broadcast(0.0f);
            transpose(square);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                row(to, j + r)[w] = square[r];
        }
    for (; j < columns; j++) {
        float *out = (float *)row(to, j);
        for (long t = 0; t < count; t++)
            out[t] = from[t * next + j];
        memset(out + count, 0, (size_t)(width * LANES - count) * sizeof(float));
    }
}

static void store_transposed(matrix from, long count, long columns, float *to, long next)
{
    for (long j = 0; j < columns; j++) {
        const float *in = (const float *)row(from, j);
        for (long t = 0; t < count; t++)
            to[t * next + j] = in[t];
    }
}

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
