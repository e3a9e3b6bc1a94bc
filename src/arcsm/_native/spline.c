/* Monotone rational-quadratic splines: their parameters from contexts, and their values (see heads/spline.py).
 *
 * Points lie side by side in vectors. A point's bin is found by a walk over all bins that keeps the last one which begins
 * before it, without a branch or a gather.
 */

#include "kernels.h"

enum { TILE = 128 };

typedef struct {
    long bins;         /* K */
    float bound;       /* B */
    long layers;       /* of the network, the last one included */
    const long *units; /* C, and those of each layer: the last has 3 K + 3 */
    const float *const *weight;
    const float *const *bias;
    float least_share, least_slope; /* of a bin in all, and of the spline at its knots */
    float slope_offset;             /* what makes slopes 1 where the network gives 0 */
    float least_scale, most_scale;
} spline_network;

static long tile_vectors(long count) { return vectors_for(count < TILE ? count : TILE); }

static long most_units(const spline_network *h)
{
    long most = 0;
    for (long l = 0; l <= h->layers; l++)
        most = h->units[l] > most ? h->units[l] : most;
    return most;
}

INLINE vec least(vec a, vec b)
{
    bits smaller = b < a;
    return (vec)(((bits)b & smaller) | ((bits)a & ~smaller));
}

INLINE vec choose(bits which, vec yes, vec no) { return (vec)(((bits)yes & which) | ((bits)no & ~which)); }

/* log(x) to about a unit in the last place, for positive normal numbers: x = 2^n m with m from sqrt(1/2) to sqrt(2), and
 * log(m) = 2 artanh(s) with s = (m - 1) / (m + 1), by its Taylor polynomial of ninth degree. */
INLINE vec logarithm(vec x)
{
    bits exponent = (((bits)x - 0x3f3504f3) >> 23);
    vec m = (vec)((bits)x - (exponent << 23)), n;
    for (int i = 0; i < LANES; i++)
        ((float *)&n)[i] = (float)((const int32_t *)&exponent)[i];
    vec s = (m - 1.0f) / (m + 1.0f), t = s * s, p = broadcast(2.0f / 9.0f);
    p = p * t + 2.0f / 7.0f;
    p = p * t + 2.0f / 5.0f;
    p = p * t + 2.0f / 3.0f;
    return n * 0.693147181f + (2.0f * s + s * t * p);
}

/* log(1 + exp(z)) */
INLINE vec softplus(vec z)
{
    vec zero = broadcast(0.0f), negative = least(z, -z);
    return z - least(z, zero) + logarithm(1.0f + exponential(negative));
}

/* Writes the inner ends of bins whose sizes are `raw`, K rows on a log scale, to K - 1 rows of `to`. */
static void write_knots(const spline_network *h, matrix raw, matrix to, long w)
{
    const long bins = h->bins;
    vec most = row(raw, 0)[w], total = broadcast(0.0f), sum = broadcast(0.0f);
    for (long k = 1; k < bins; k++)
        most = -least(-most, -row(raw, k)[w]);
    for (long k = 0; k < bins; k++) {
        row(raw, k)[w] = exponential(row(raw, k)[w] - most);
        total += row(raw, k)[w];
    }
    const vec factor = (1.0f - h->least_share * (float)bins) / total;
    for (long k = 0; k < bins - 1; k++) {
        sum += h->least_share + factor * row(raw, k)[w];
        row(to, k)[w] = h->bound * (2.0f * sum - 1.0f);
    }
}

size_t spline_workspace_bytes(const spline_network *h, long count)
{
    size_t used = 0;
    const long width = tile_vectors(count), most = most_units(h);
    for (int i = 0; i < 2; i++)
        allocate(NULL, &used, most, width);
    allocate(NULL, &used, 3 * h->bins + 1, width);
    return used * sizeof(vec);
}

/* Writes projections (N, 3 K + 1) of contexts (N, C), whose rows are `next` numbers apart: location, log scale, inner
 * knots, the values of the spline there, and its slopes at all knots. */
void spline_project(const spline_network *h, long count, const float *context, long next, float *out, vec *workspace)
{
    size_t used = 0;
    const long bins = h->bins, parameters = 3 * bins + 1, width = tile_vectors(count), most = most_units(h);
    matrix one = allocate(workspace, &used, most, width), other = allocate(workspace, &used, most, width);
    const matrix to = allocate(workspace, &used, parameters, width);
    for (long start = 0; start < count; start += TILE) {
        const long points = count - start < TILE ? count - start : TILE, vectors = vectors_for(points);
        matrix in = one, z = other;
        load_transposed(context + start * next, next, points, h->units[0], in, vectors);
        for (long l = 0; l < h->layers; l++) {
            const long below = h->units[l], units = h->units[l + 1];
            const int is_last = l == h->layers - 1;
            product(units, below, h->weight[l], below, 1, in, z, vectors, 0);
            for (long i = 0; i < units; i++)
                for (long w = 0; w < vectors; w++) {
                    vec v = row(z, i)[w] + h->bias[l][i];
                    if (!is_last)
                        v = v * logistic(v) + (units == below ? row(in, i)[w] : broadcast(0.0f));
                    row(z, i)[w] = v;
                }
            const matrix above = z;
            z = in;
            in = above;
        }
        for (long w = 0; w < vectors; w++) {
            row(to, 0)[w] = row(in, 0)[w];
            vec scale = h->least_scale + exponential(row(in, 1)[w]);
            row(to, 1)[w] = logarithm(least(scale, broadcast(h->most_scale)));
            write_knots(h, (matrix){row(in, 2), in.stride}, (matrix){row(to, 2), to.stride}, w);
            write_knots(h, (matrix){row(in, 2 + bins), in.stride}, (matrix){row(to, bins + 1), to.stride}, w);
            for (long k = 0; k <= bins; k++)
                row(to, 2 * bins + k)[w] = h->least_slope + softplus(row(in, 2 + 2 * bins + k)[w] + h->slope_offset);
        }
        store_transposed(to, points, parameters, out + start * parameters, parameters);
    }
}

/* The bin of a vector of points or, if `inverse`, of values of the spline. */
typedef struct {
    vec left, width, low, height, first, last;
} spline_bin;

INLINE spline_bin find_bin(long bins, float bound, matrix parameters, long w, vec at, int inverse)
{
    const matrix knots = {row(parameters, 2), parameters.stride},
                 values = {row(parameters, bins + 1), parameters.stride},
                 slopes = {row(parameters, 2 * bins), parameters.stride};
    spline_bin found = {0};
    vec left = broadcast(-bound), low = left;
    for (long k = 0; k < bins; k++) {
        vec right = k + 1 < bins ? row(knots, k)[w] : broadcast(bound);
        vec high = k + 1 < bins ? row(values, k)[w] : broadcast(bound);
        bits begun = k ? at >= (inverse ? low : left) : (bits){0} == (bits){0};
        found.left = choose(begun, left, found.left);
        found.width = choose(begun, right - left, found.width);
        found.low = choose(begun, low, found.low);
        found.height = choose(begun, high - low, found.height);
        found.first = choose(begun, row(slopes, k)[w], found.first);
        found.last = choose(begun, row(slopes, k + 1)[w], found.last);
        left = right;
        low = high;
    }
    return found;
}

INLINE vec root(vec x) { return choose(x > 0.0f, x * inverse_root(x), broadcast(0.0f)); }

/* Writes the spline with projections (N, 3 K + 1) at points z (N,), and its log slope there; or, if `inverse`, the points
 * where it has the values z, and nothing else. */
void spline_values(long bins, float bound, long count, const float *projection, const float *z, int inverse,
                   float *value, float *log_slope, vec *workspace)
{
    size_t used = 0;
    const long parameters = 3 * bins + 1;
    const matrix of_points = allocate(workspace, &used, parameters, tile_vectors(count));
    for (long start = 0; start < count; start += TILE) {
        const long points = count - start < TILE ? count - start : TILE, vectors = vectors_for(points);
        load_transposed(projection + start * parameters, parameters, points, parameters, of_points, vectors);
        for (long w = 0; w < vectors; w++) {
            const long first = start + w * LANES, lanes = count - first < LANES ? count - first : LANES;
            vec at = broadcast(0.0f), result, log_result = broadcast(0.0f);
            memcpy(&at, z + first, (size_t)lanes * sizeof(float));
            bits below = at <= -bound, above = at >= bound, inside = (at > -bound) & (at < bound);
            vec clamped = choose(below, broadcast(-bound), choose(above, broadcast(bound), at));
            const spline_bin b = find_bin(bins, bound, of_points, w, clamped, inverse);
            vec delta = b.height / b.width, bend = b.first + b.last - 2.0f * delta;
            vec tail = choose(at < 0.0f, b.first, b.last);
            if (inverse) {
                vec rise = clamped - b.low;
                vec a = b.height * (delta - b.first) + rise * bend, c = -delta * rise;
                vec half = b.height * b.first - rise * bend;
                vec xi = 2.0f * c / (-half - root(half * half - 4.0f * a * c));
                result = choose(inside, b.left + xi * b.width, clamped + (at - clamped) / tail);
            } else {
                vec xi = (clamped - b.left) / b.width, rest = 1.0f - xi;
                vec p = b.last * xi * xi + 2.0f * delta * xi * rest + b.first * rest * rest;
                vec d = delta + bend * xi * rest;
                vec ratio = delta / d;
                result = choose(inside, b.low + b.height * xi * (delta * xi + b.first * rest) / d,
                                clamped + tail * (at - clamped));
                log_result = logarithm(choose(inside, ratio * ratio * p, tail));
                log_result = choose(at == at, log_result, at);
                memcpy(log_slope + first, &log_result, (size_t)lanes * sizeof(float));
            }
            memcpy(value + first, &result, (size_t)lanes * sizeof(float));
        }
    }
}

size_t spline_values_workspace_bytes(long bins, long count)
{
    size_t used = 0;
    allocate(NULL, &used, 3 * bins + 1, tile_vectors(count));
    return used * sizeof(vec);
}
