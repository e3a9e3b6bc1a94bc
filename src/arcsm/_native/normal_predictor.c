/* What the normal distribution says of all units, given a set of known ones for each row (see normal_moments.py).
 *
 * The rows of the inverse Cholesky factor of the known units' correlations, times all correlations, are computed one
 * after another. Those before a row are subtracted from it, so that only known units take time.
 */

#include "kernels.h"

#include <math.h>

static const float LEAST_PIVOT = 1e-8f; /* of the squared error of a known unit given those before it */

typedef struct {
    matrix correlation;        /* padded, (K, K) */
    matrix half;               /* a row for each known unit */
    float *scale;              /* of each such row */
    vec *location, *explained; /* of all units */
    size_t vectors;
} workspace;

static workspace lay_out(long units, vec *space)
{
    const long width = vectors_for(units);
    workspace w = {.vectors = 0};
    w.correlation = allocate(space, &w.vectors, units, width);
    w.half = allocate(space, &w.vectors, units, width);
    w.location = space ? space + w.vectors : NULL;
    w.explained = space ? w.location + width : NULL;
    w.scale = space ? (float *)(w.explained + width) : NULL;
    w.vectors += (size_t)(3 * width);
    return w;
}

/* Bytes of the workspace of normal_given_set and normal_in_order. */
size_t normal_predictor_workspace_bytes(long units) { return lay_out(units, NULL).vectors * sizeof(vec); }

static workspace begin(long units, const float *correlation, void *space)
{
    const workspace w = lay_out(units, space);
    const long width = vectors_for(units);
    for (long i = 0; i < units; i++) {
        memset(row(w.correlation, i), 0, (size_t)width * sizeof(vec));
        memcpy(row(w.correlation, i), correlation + i * units, (size_t)units * sizeof(float));
    }
    return w;
}

static void forget(const workspace *w, long width)
{
    memset(w->location, 0, (size_t)width * sizeof(vec));
    memset(w->explained, 0, (size_t)width * sizeof(vec));
}

/* Computes row `count` of the factor, that of a unit after those of earlier rows, and what it explains. */
static void add_factor(const workspace *w, long width, long unit, long count)
{
    vec *half = row(w->half, count);
    memcpy(half, row(w->correlation, unit), (size_t)width * sizeof(vec));
    for (long j = 0; j < count; j++) {
        const vec *before = row(w->half, j);
        const float factor = ((const float *)before)[unit];
        for (long v = 0; v < width; v++)
            half[v] -= factor * before[v];
    }
    const float pivot = ((const float *)half)[unit];
    const float scale = 1.0f / sqrtf(pivot > LEAST_PIVOT ? pivot : LEAST_PIVOT);
    w->scale[count] = scale;
    for (long v = 0; v < width; v++) {
        half[v] *= scale;
        w->explained[v] += half[v] * half[v];
    }
}

/* Adds what the value of a unit says of all, given those before it, to their means. */
static void add_value(const workspace *w, long width, long unit, long count, float value)
{
    const vec *half = row(w->half, count);
    const float residual = (value - ((const float *)w->location)[unit]) * w->scale[count];
    for (long v = 0; v < width; v++)
        w->location[v] += residual * half[v];
}

static float error_of(const workspace *w, long unit)
{
    const float rest = 1.0f - ((const float *)w->explained)[unit];
    return rest > 0.0f ? sqrtf(rest) : 0.0f;
}

/* Writes mean and error of all units, (rows, K) each, given the values (rows, K) of those that are known, 1 or 0, in
 * units of their deviations from the mean; `correlation` is (K, K). */
void normal_given_set(long units, long rows, const float *correlation, const float *values, const float *known,
                      float *location, float *error, void *space)
{
    const long width = vectors_for(units);
    const workspace w = begin(units, correlation, space);
    for (long b = 0; b < rows; b++) {
        long count = 0;
        forget(&w, width);
        for (long i = 0; i < units; i++) {
            if (known[b * units + i] > 0.0f) {
                add_factor(&w, width, i, count);
                add_value(&w, width, i, count++, values[b * units + i]);
            }
        }
        memcpy(location + b * units, w.location, (size_t)units * sizeof(float));
        for (long i = 0; i < units; i++)
            error[b * units + i] = error_of(&w, i);
    }
}

/* Likewise, given the known values before each unit in an `order` (K); units of one `dimension` (K), which are next to
 * each other in it, are not given each other. Rows with the same known units as the row before share its factor. */
void normal_in_order(long units, long rows, const long *order, const long *dimension, const float *correlation,
                     const float *values, const float *known, float *location, float *error, void *space)
{
    const long width = vectors_for(units);
    const size_t bytes = (size_t)units * sizeof(float);
    const workspace w = begin(units, correlation, space);
    for (long b = 0; b < rows; b++) {
        const float *is_known = known + b * units;
        const int shares = b > 0 && memcmp(is_known, is_known - units, bytes) == 0;
        long count = 0;
        forget(&w, width);
        for (long first = 0, next; first < units; first = next) {
            for (next = first; next < units && dimension[order[next]] == dimension[order[first]]; next++) {
                const long i = order[next];
                location[b * units + i] = ((const float *)w.location)[i];
                error[b * units + i] = shares ? error[(b - 1) * units + i] : error_of(&w, i);
            }
            for (long place = first; place < next; place++) {
                const long i = order[place];
                if (is_known[i] > 0.0f) {
                    if (!shares)
                        add_factor(&w, width, i, count);
                    add_value(&w, width, i, count++, values[b * units + i]);
                }
            }
        }
    }
}
