/* Products and transpositions of matrices of vectors. */

#include "kernels.h"

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

SHARED void product(long rows, long inner, const float *a, long next_row, long next_k, matrix in, matrix out,
                    long width, int accumulate)
{
    long c = 0;
    for (; c + COLUMNS <= width; c += COLUMNS)
        product_rows(rows, COLUMNS, a, next_row, next_k, inner, from_column(in, c), from_column(out, c), accumulate);
    for (; c < width; c++)
        product_rows(rows, 1, a, next_row, next_k, inner, from_column(in, c), from_column(out, c), accumulate);
}

SHARED void blocked_product(long rows, long inner, matrix a, matrix in, matrix out, long width)
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
INLINE void transpose(vec *v){
#if defined(__AVX512F__)
    EXCHANGE(v, 8)
#endif
#if defined(__AVX__)
        EXCHANGE(v, 4)
#endif
            EXCHANGE(v, 2) EXCHANGE(v, 1)}

SHARED void transpose_to_points(matrix from, long units, long width, matrix to)
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

SHARED void load_transposed(const float *from, long next, long count, long columns, matrix to, long width)
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

SHARED void store_transposed(matrix from, long count, long columns, float *to, long next)
{
    for (long j = 0; j < columns; j++) {
        const float *in = (const float *)row(from, j);
        for (long t = 0; t < count; t++)
            to[t * next + j] = in[t];
    }
}
