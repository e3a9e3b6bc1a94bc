/* Steps of Muon: matrices learn along averaged gradients whose singular values are made nearly equal.
 *
 * A matrix is read as m rows of n >= m numbers, transposed if need be. Each iteration is
 *     X <- a X + (b S + c S S) X,    S = X X^T,
 * and S and S S are symmetric: of each strip of their columns, the rows below it are those of earlier strips, transposed.
 */

#include <math.h>

#include "kernels.h"

typedef struct {
    long rows, columns;           /* of each matrix */
    float momentum, decay, step;  /* of averages and of weights, and the factor of the change, which is negative */
    float linear, cubic, quintic; /* coefficients of an iteration */
    long iterations;
} muon_rule;

typedef struct {
    matrix now, next, turned, square, fourth;
    long short_side, long_side;
} muon_memory;

static muon_memory memory_of(const muon_rule *rule, vec *space, size_t *used)
{
    muon_memory to;
    const int is_tall = rule->rows > rule->columns;
    to.short_side = is_tall ? rule->columns : rule->rows;
    to.long_side = is_tall ? rule->rows : rule->columns;
    const long narrow = vectors_for(to.short_side), wide = vectors_for(to.long_side);
    to.now = allocate(space, used, to.short_side, wide);
    to.next = allocate(space, used, to.short_side, wide);
    to.turned = allocate(space, used, wide * LANES, narrow);
    to.square = allocate(space, used, narrow * LANES, narrow);
    to.fourth = allocate(space, used, narrow * LANES, narrow);
    return to;
}

size_t muon_workspace_bytes(const muon_rule *rule)
{
    size_t used = 0;
    memory_of(rule, NULL, &used);
    return used * sizeof(vec);
}

/* out = A B for matrices with m rows, whose product is known to be symmetric. */
static void symmetric_product(long m, long inner, matrix a, matrix b, matrix out)
{
    const long width = vectors_for(m);
    for (long c = 0; c < width; c += COLUMNS) {
        const long strip = width - c < COLUMNS ? width - c : COLUMNS, end = (c + strip) * LANES;
        product(end < m ? end : m, inner, (const float *)a.at, a.stride * LANES, 1, from_column(b, c),
                from_column(out, c), strip, 0);
        const matrix below = {row(out, c * LANES), out.stride};
        transpose_to_points(from_column(out, c), c * LANES, strip, below);
    }
}

/* Makes the singular values of memory->now nearly equal. */
static void orthogonalise(const muon_rule *rule, muon_memory *memory)
{
    const long m = memory->short_side, n = memory->long_side;
    const long narrow = vectors_for(m), wide = vectors_for(n);
    for (long i = 0; i < rule->iterations; i++) {
        transpose_to_points(memory->now, m, wide, memory->turned);
        symmetric_product(m, n, memory->now, memory->turned, memory->square);
        symmetric_product(m, m, memory->square, memory->square, memory->fourth);
        for (long r = 0; r < m; r++) {
            for (long w = 0; w < narrow; w++)
                row(memory->fourth, r)[w] =
                    rule->quintic * row(memory->fourth, r)[w] + rule->cubic * row(memory->square, r)[w];
            for (long w = 0; w < wide; w++)
                row(memory->next, r)[w] = rule->linear * row(memory->now, r)[w];
        }
        product(m, m, (const float *)memory->fourth.at, memory->fourth.stride * LANES, 1, memory->now, memory->next,
                wide, 1);
        const matrix last = memory->now;
        memory->now = memory->next;
        memory->next = last;
    }
}

/* Takes a step of one matrix; what it learns along is written to `ahead`, which has its size. */
static void step_of_matrix(const muon_rule *rule, float *weight, const float *gradient, float *average, float *ahead,
                           muon_memory memory)
{
    const long size = rule->rows * rule->columns, m = memory.short_side, n = memory.long_side;
    float largest = 0.0f, momentum = rule->momentum, rest = 1.0f - momentum;
    int is_learned = 0;
    for (long i = 0; i < size; i++) {
        average[i] += rest * (gradient[i] - average[i]);
        ahead[i] = gradient[i] + momentum * (average[i] - gradient[i]);
        is_learned |= gradient[i] != 0.0f;
        const float absolute = fabsf(ahead[i]);
        largest = largest < absolute ? absolute : largest;
    }
    const float kept = 1.0f - rule->decay;
    if (!is_learned || !(largest > 0.0f)) { /* else old gradients would get full steps */
        for (long i = 0; i < size; i++)
            weight[i] *= kept;
        return;
    }
    double total = 0.0;
    for (long i = 0; i < size; i++) { /* divided first, or squares of small numbers would be zero */
        ahead[i] /= largest;
        total += (double)ahead[i] * ahead[i];
    }
    const float scale = (float)(1.0 / sqrt(total));
    for (long i = 0; i < size; i++)
        ahead[i] *= scale;
    const int is_tall = rule->rows > rule->columns;
    const long wide = vectors_for(n);
    if (is_tall)
        load_transposed(ahead, rule->columns, n, m, memory.now, wide);
    else
        for (long r = 0; r < m; r++) {
            float *to = (float *)row(memory.now, r);
            memcpy(to, ahead + r * n, (size_t)n * sizeof(float));
            memset(to + n, 0, (size_t)(wide * LANES - n) * sizeof(float));
        }
    orthogonalise(rule, &memory);
    if (is_tall)
        transpose_to_points(memory.now, m, wide, memory.turned);
    for (long r = 0; r < rule->rows; r++) {
        const float *change = (const float *)row(is_tall ? memory.turned : memory.now, r);
        for (long c = 0; c < rule->columns; c++)
            weight[r * rule->columns + c] = kept * weight[r * rule->columns + c] + rule->step * change[c];
    }
}

void muon_step(const muon_rule *rule, long count, float *const *weight, const float *const *gradient,
               float *const *average, float *ahead, void *workspace)
{
    size_t used = 0;
    const muon_memory memory = memory_of(rule, workspace, &used);
    for (long i = 0; i < count; i++)
        step_of_matrix(rule, weight[i], gradient[i], average[i], ahead, memory);
}
