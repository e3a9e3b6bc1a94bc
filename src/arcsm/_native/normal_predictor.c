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
    w.vectors += (size_t)(2 * width);
    return w;
}

/* Bytes of the workspace of normal_given_set. */
size_t normal_predictor_workspace_bytes(long units) { return lay_out(units, NULL).vectors * sizeof(vec); }

/* Writes mean and error of all units, (rows, K) each, given the values (rows, K) of those that are known, 1 or 0, in
 * units of their deviations from the mean; `correlation` is (K, K). */
void normal_given_set(long units, long rows, const float *correlation, const float *values, const float *known,
                      float *location, float *error, void *space)
{
    const long width = vectors_for(units);
    const workspace w = lay_out(units, space);
    for (long i = 0; i < units; i++) {
        memset(row(w.correlation, i), 0, (size_t)width * sizeof(vec));
        memcpy(row(w.correlation, i), correlation + i * units, (size_t)units * sizeof(float));
    }
    for (long b = 0; b < rows; b++) {
        const float *x = values + b * units, *is_known = known + b * units;
        memset(w.location, 0, (size_t)width * sizeof(vec));
        memset(w.explained, 0, (size_t)width * sizeof(vec));
        long count = 0;
        for (long i = 0; i < units; i++) {
            if (!(is_known[i] > 0.0f))
                continue;
            vec *half = row(w.half, count);
            memcpy(half, row(w.correlation, i), (size_t)width * sizeof(vec));
            for (long j = 0; j < count; j++) {
                const vec *before = row(w.half, j);
                const float factor = ((const float *)before)[i];
                for (long v = 0; v < width; v++)
                    half[v] -= factor * before[v];
            }
            const float pivot = ((const float *)half)[i];
            const float scale = 1.0f / sqrtf(pivot > LEAST_PIVOT ? pivot : LEAST_PIVOT);
            const float residual = (x[i] - ((const float *)w.location)[i]) * scale;
            for (long v = 0; v < width; v++) {
                half[v] *= scale;
                w.location[v] += residual * half[v];
                w.explained[v] += half[v] * half[v];
            }
            count++;
        }
        memcpy(location + b * units, w.location, (size_t)units * sizeof(float));
        for (long i = 0; i < units; i++) {
            const float rest = 1.0f - ((const float *)w.explained)[i];
            error[b * units + i] = rest > 0.0f ? sqrtf(rest) : 0.0f;
        }
    }
}
