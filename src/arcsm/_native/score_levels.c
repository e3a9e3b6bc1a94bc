/* Scores of a perceptron and their derivatives at noise levels, and the flow through these (see conditionals/flow.py).
 *
 * A tile of points stays in a core's own cache from level to level. Values are in the left half of a row of a matrix,
 * and derivatives by x, if they are asked for, in its right half.
 */

#include "kernels.h"

enum { ORDER = 4, MOST_NODES = 16 }; /* of the multistep method, and of interpolations */

typedef struct {
    long frequencies;           /* J, whose sines and cosines are inputs beside x */
    long layers;                /* hidden layers */
    const long *units;          /* units of each, (layers,) */
    int residual;               /* whether the layer below is added to each hidden layer but the last */
    int tangent;                /* whether derivatives are computed */
    const float *frequency;     /* (J,) */
    const float *const *weight; /* of the hidden layers after the first, (units, inputs) */
    const float *const *bias;   /* the same, (units,) */
} network;

/* What the network computes from a noise level. */
typedef struct {
    float width, precision;         /* of the base Gaussian */
    float envelope_width;           /* standard deviation of the envelope of the Fourier features */
    float window_start, window_end; /* distances from zero up to which the window is 1, and from which it is 0 */
    float output_bias;              /* for activations from 0 to 1 */
    const float *bias;              /* of the first hidden layer, besides the projections, (units,) */
    const float *weight;            /* of sines, cosines and x in it, (units, 2 J + 1) */
    const float *output_weight;     /* (units,) */
    float noise;                    /* sigma */
    float speed;                    /* of sigma^2 / 2 along the steps */
    long before;                    /* velocities that predict the point at this level; 0 at the start */
    float predictor[ORDER], corrector[ORDER]; /* their weights, and those of the velocities up to this level */
    int from_start;                           /* whether the corrector leads from the first point */
} level;

/* Densities and distribution functions from scores at a few nodes: see conditionals/interpolation.py. */
typedef struct {
    long nodes;         /* N, at most MOST_NODES */
    float half_range;   /* of the nodes around zero */
    const float *node;  /* (N,) */
    const float *sums;  /* of residuals at the nodes, (N + 5, N): the Chebyshev coefficients of their integral, and the
                           residuals and their slopes at both ends */
    float reach;        /* how far from a point, and from zero, its masses are summed */
    long points;        /* K, of each of the two sums */
    const float *place; /* of the points, as shares of the way, (K,) */
    const float *share; /* their weights, (K,) */
} interpolation;

typedef struct {
    matrix inputs, slopes, first, second, projection;
    matrix at_nodes, residuals, sums_of_residuals; /* of an interpolation */
    vec *sums;
    size_t vectors;
} workspace;

static long widest(const network *n)
{
    long most = 0;
    for (long i = 0; i < n->layers; i++)
        most = n->units[i] > most ? n->units[i] : most;
    return most;
}

/* Points, scores and derivatives of a tile, and what the flow remembers: see score_levels_follow. */
enum {
    X,
    SCORE,
    DERIVATIVE,
    POINT,
    START,
    LOG_SLOPE,
    ERROR,
    NEAR,
    VELOCITY,
    RATE = VELOCITY + ORDER,
    VECTORS = RATE + ORDER
};

static workspace lay_out(const network *n, long tile, vec *space)
{
    const long half = tile / LANES, width = n->tangent ? 2 * half : half, features = 2 * n->frequencies + 1;
    workspace w = {.vectors = 0};
    w.inputs = allocate(space, &w.vectors, features, half);
    w.slopes = allocate(space, &w.vectors, features, half);
    w.first = allocate(space, &w.vectors, widest(n), width);
    w.second = allocate(space, &w.vectors, widest(n), width);
    w.projection = allocate(space, &w.vectors, n->units[0], half);
    w.at_nodes = allocate(space, &w.vectors, n->units[0], half);
    w.residuals = allocate(space, &w.vectors, MOST_NODES, half);
    w.sums_of_residuals = allocate(space, &w.vectors, MOST_NODES + 5, half);
    w.sums = space ? space + w.vectors : NULL;
    w.vectors += (size_t)(VECTORS * half);
    return w;
}

/* Bytes of the workspace of the functions below. */
size_t score_levels_workspace_bytes(const network *n, long tile)
{
    return lay_out(n, tile, NULL).vectors * sizeof(vec);
}

INLINE vec *part(workspace w, long half, long number) { return w.sums + number * half; }

INLINE vec choose(bits condition, vec yes, vec no) { return (vec)(((bits)yes & condition) | ((bits)no & ~condition)); }
INLINE vec magnitude(vec x) { return (vec)((bits)x & 0x7fffffff); }

/* Sines, cosines and x itself, with their slopes by x, at points that the network sees. */
static void features_of(const network *n, const level *l, workspace w, const vec *x, long half)
{
    for (long i = 0; i < half; i++) {
        vec inner = choose(x[i] > l->window_end, broadcast(l->window_end), x[i]);
        inner = choose(inner < -l->window_end, broadcast(-l->window_end), inner);
        row(w.inputs, 2 * n->frequencies)[i] = inner;
        row(w.slopes, 2 * n->frequencies)[i] = broadcast(1.0f);
        if (n->frequencies == 0)
            continue;
        vec distance = inner / l->envelope_width, envelope = exponential(-0.5f * distance * distance);
        vec decay = distance * (-1.0f / l->envelope_width);
        for (long j = 0; j < n->frequencies; j++) {
            float f = n->frequency[j];
            vec sine, cosine;
            sine_and_cosine(f * inner, &sine, &cosine);
            sine *= envelope;
            cosine *= envelope;
            row(w.inputs, j)[i] = sine;
            row(w.inputs, n->frequencies + j)[i] = cosine;
            if (n->tangent) {
                row(w.slopes, j)[i] = f * cosine + decay * sine;
                row(w.slopes, n->frequencies + j)[i] = decay * cosine - f * sine;
            }
        }
    }
}

/* h = z g, with g the logistic function of z; and dh by dz. */
static void silu(long units, const float *bias, matrix h, long half, int tangent)
{
    for (long i = 0; i < units; i++) {
        vec *values = row(h, i);
        float b = bias ? bias[i] : 0.0f;
        for (long w = 0; w < half; w++) {
            vec z = values[w] + b, gate = logistic(z), value = z * gate;
            values[w] = value;
            if (tangent)
                values[half + w] *= gate + value * (1.0f - gate);
        }
    }
}

/* Computes scores and derivatives of a tile at points from what the units of the first hidden layer sum up. */
static void evaluate_layers(const network *n, const level *l, workspace w, long half)
{
    const long width = n->tangent ? 2 * half : half, last = n->layers - 1;
    const vec *x = part(w, half, X);
    vec *score = part(w, half, SCORE), *derivative = part(w, half, DERIVATIVE);
    matrix h = w.first, next = w.second;
    for (long i = 0; i < last; i++) {
        silu(n->units[i], i ? n->bias[i - 1] : NULL, h, half, n->tangent);
        if (n->residual && i > 0)
            for (long u = 0; u < n->units[i]; u++)
                for (long c = 0; c < width; c++)
                    row(h, u)[c] += row(next, u)[c];
        product(n->units[i + 1], n->units[i], n->weight[i], n->units[i], 1, h, next, width, 0);
        const matrix swap = h;
        h = next;
        next = swap;
    }
    const float *bias = last ? n->bias[last - 1] : NULL;
    for (long c = 0; c < half; c++) {
        vec correction = broadcast(l->output_bias), slope = broadcast(0.0f);
        for (long i = 0; i < n->units[last]; i++) {
            vec gate = logistic(row(h, i)[c] + (bias ? bias[i] : 0.0f)), weight = broadcast(l->output_weight[i]);
            correction += weight * gate;
            if (n->tangent)
                slope += weight * (gate - gate * gate) * row(h, i)[half + c];
        }
        vec t = (magnitude(x[c]) - l->window_start) / (l->window_end - l->window_start);
        t = choose(t < 0.0f, broadcast(0.0f), choose(t > 1.0f, broadcast(1.0f), t));
        vec window = 1.0f - t * t * t * (10.0f - 15.0f * t + 6.0f * t * t), rest = t * (1.0f - t);
        vec dwindow = 30.0f * rest * rest / (l->window_end - l->window_start);
        dwindow = choose(x[c] < 0.0f, dwindow, -dwindow);
        score[c] = window * correction - x[c] * l->precision;
        derivative[c] = window * slope + dwindow * correction - l->precision;
    }
}

/* Computes scores and derivatives of a tile, whose projections are in the workspace. */
static void evaluate(const network *n, const level *l, workspace w, long half)
{
    const long features = 2 * n->frequencies + 1;
    features_of(n, l, w, part(w, half, X), half);
    for (long i = 0; i < n->units[0]; i++)
        for (long c = 0; c < half; c++)
            row(w.first, i)[c] = row(w.projection, i)[c] + l->bias[i];
    product(n->units[0], features, l->weight, features, 1, w.inputs, w.first, half, 1);
    if (n->tangent)
        product(n->units[0], features, l->weight, features, 1, w.slopes, from_column(w.first, half), half, 0);
    evaluate_layers(n, l, w, half);
}

/* Loads every `next`-th of the numbers that begin at `from`. */
static void load_points(const float *from, long next, long count, vec *to, long half)
{
    float *lane = (float *)to;
    for (long t = 0; t < count; t++)
        lane[t] = from[t * next];
    memset(lane + count, 0, (size_t)(half * LANES - count) * sizeof(float));
}

static void store_points(const vec *from, long next, long count, float *to)
{
    const float *lane = (const float *)from;
    for (long t = 0; t < count; t++)
        to[t * next] = lane[t];
}

/* Writes scores and derivatives at `points` values of each of `count` conditionals, (count, points) each. */
void score_levels_at_points(const network *n, const level *l, long tile, long count, long points,
                            const float *projection, const float *x, float *score, float *derivative, void *space)
{
    const long half = tile / LANES, units = n->units[0];
    const workspace w = lay_out(n, tile, space);
    for (long begin = 0; begin < count; begin += tile) {
        const long here = count - begin < tile ? count - begin : tile;
        load_transposed(projection + begin * units, units, here, units, w.projection, half);
        for (long k = begin * points; k < begin * points + points; k++) {
            load_points(x + k, points, here, part(w, half, X), half);
            evaluate(n, l, w, half);
            store_points(part(w, half, SCORE), points, here, score + k);
            if (n->tangent)
                store_points(part(w, half, DERIVATIVE), points, here, derivative + k);
        }
    }
}

/* Moves the velocities and rates so that the last is free. */
static void shift(workspace w, long half, long first)
{
    for (long i = first; i + 1 < first + ORDER; i++)
        memcpy(part(w, half, i), part(w, half, i + 1), (size_t)half * sizeof(vec));
}

/* sum_i weight[i] of the last `count` vectors */
INLINE vec weighted(workspace w, long half, long first, const float *weight, long count, long c)
{
    vec sum = broadcast(0.0f);
    for (long i = 0; i < count; i++)
        sum += weight[i] * part(w, half, first + ORDER - count + i)[c];
    return sum;
}

/* Carries `count` points `y`, in widths of the base Gaussian, from the first of the levels to the last. Writes six rows
 * of `next` numbers: the points there; the log slopes of the map; the sum of the distances between predicted and
 * corrected points, weighted as errors of log densities are; and points nearby, with their scores and derivatives at the
 * last level. */
void score_levels_follow(const network *n, const level *levels, long number, long tile, long count,
                         const float *projection, const float *y, float rounding, float *out, long next, void *space)
{
    static const long rows[] = {POINT, LOG_SLOPE, ERROR, NEAR, SCORE, DERIVATIVE};
    const long half = tile / LANES, units = n->units[0];
    const workspace w = lay_out(n, tile, space);
    vec *point = part(w, half, POINT), *start = part(w, half, START), *log_slope = part(w, half, LOG_SLOPE),
        *error = part(w, half, ERROR), *near = part(w, half, NEAR), *x = part(w, half, X),
        *score = part(w, half, SCORE), *derivative = part(w, half, DERIVATIVE),
        *velocity = part(w, half, VELOCITY + ORDER - 1), *rate = part(w, half, RATE + ORDER - 1);
    for (long begin = 0; begin < count; begin += tile) {
        const long here = count - begin < tile ? count - begin : tile;
        load_transposed(projection + begin * units, units, here, units, w.projection, half);
        load_points(y + begin, 1, here, start, half);
        memcpy(point, start, (size_t)half * sizeof(vec));
        memset(log_slope, 0, (size_t)half * sizeof(vec));
        memset(error, 0, (size_t)half * sizeof(vec));
        for (const level *l = levels; l < levels + number; l++) {
            for (long c = 0; c < half; c++) {
                near[c] = point[c] + weighted(w, half, VELOCITY, l->predictor, l->before, c);
                x[c] = near[c] * l->width;
            }
            evaluate(n, l, w, half);
            shift(w, half, VELOCITY);
            shift(w, half, RATE);
            const long known = l->before < ORDER ? l->before + 1 : ORDER;
            const float per_log = l->noise * l->noise / l->speed, scale = l->width / l->noise;
            for (long c = 0; c < half; c++) {
                velocity[c] = (score[c] + x[c] * l->precision) * (-l->speed / l->width);
                rate[c] = (derivative[c] + l->precision) * -l->speed;
                if (!l->before)
                    continue;
                vec from = l->from_start ? start[c] : point[c];
                point[c] = from + weighted(w, half, VELOCITY, l->corrector, known, c);
                vec distance = magnitude(point[c] - near[c]) - rounding * magnitude(point[c]);
                distance = choose(distance < 0.0f, broadcast(0.0f), distance) * scale;
                if (n->tangent) {
                    from = l->from_start ? broadcast(0.0f) : log_slope[c];
                    log_slope[c] = from + weighted(w, half, RATE, l->corrector, known, c);
                    distance *= 1.0f + per_log * magnitude(rate[c]);
                }
                error[c] += distance;
            }
        }
        memcpy(near, x, (size_t)half * sizeof(vec));
        for (long i = 0; i < 6; i++)
            memcpy(out + i * next + begin, part(w, half, rows[i]), (size_t)here * sizeof(float));
    }
}

/* Computes the summed inputs of the first hidden layer's units at the nodes, besides the projections. */
static void sum_inputs_at_nodes(const network *n, const level *l, const interpolation *nodes, workspace w, long half)
{
    const long features = 2 * n->frequencies + 1;
    load_points(nodes->node, 1, nodes->nodes, part(w, half, X), half);
    features_of(n, l, w, part(w, half, X), half);
    for (long i = 0; i < n->units[0]; i++)
        for (long c = 0; c < half; c++)
            row(w.at_nodes, i)[c] = broadcast(l->bias[i]);
    product(n->units[0], features, l->weight, features, 1, w.inputs, w.at_nodes, half, 1);
}

/* Writes by how much the scores of a tile at a node differ from those of the base Gaussian. */
static void residuals_at(const network *n, const level *l, const interpolation *nodes, long node, workspace w,
                         long half)
{
    const vec x = broadcast(nodes->node[node]);
    for (long c = 0; c < half; c++)
        part(w, half, X)[c] = x;
    for (long i = 0; i < n->units[0]; i++) {
        const float inputs = ((const float *)row(w.at_nodes, i))[node];
        for (long c = 0; c < half; c++)
            row(w.first, i)[c] = row(w.projection, i)[c] + inputs;
    }
    evaluate_layers(n, l, w, half);
    for (long c = 0; c < half; c++)
        row(w.residuals, node)[c] = part(w, half, SCORE)[c] + x * l->precision;
}

/* The integral of the residuals from zero to a place, from their sums for one vector of conditionals. */
INLINE vec energy_at(const interpolation *nodes, const vec *sums, vec u)
{
    const long last = nodes->nodes;
    vec inside = choose(u > 1.0f, broadcast(1.0f), u);
    inside = choose(inside < -1.0f, broadcast(-1.0f), inside);
    const vec beyond = (u - inside) * nodes->half_range, twice = 2.0f * inside;
    vec later = broadcast(0.0f), sum = sums[last]; /* by Clenshaw's recurrence */
    for (long k = last - 1; k > 0; k--) {
        const vec next = sums[k] + twice * sum - later;
        later = sum;
        sum = next;
    }
    return sums[0] + inside * sum - later + beyond * choose(u < 0.0f, sums[last + 1], sums[last + 2]);
}

/* Writes three rows of `next` numbers for the points `x`, one of each of `count` conditionals: the masses below and above
 * a point, over the density there; and an estimate of the error of the log density, infinite beyond the nodes. The
 * network computes no derivatives. */
void score_levels_interpolate(const network *n, const level *l, const interpolation *nodes, long tile, long count,
                              const float *projection, const float *x, float *out, long next, void *space)
{
    const long half = tile / LANES, units = n->units[0], number = nodes->nodes;
    const workspace w = lay_out(n, tile, space);
    const float per_range = 1.0f / nodes->half_range, curvature = -0.5f * l->precision;
    vec *below = part(w, half, POINT), *above = part(w, half, START), *error = part(w, half, ERROR),
        *point = part(w, half, NEAR);
    sum_inputs_at_nodes(n, l, nodes, w, half);
    for (long begin = 0; begin < count; begin += tile) {
        const long here = count - begin < tile ? count - begin : tile;
        load_transposed(projection + begin * units, units, here, units, w.projection, half);
        load_points(x + begin, 1, here, point, half);
        for (long node = 0; node < number; node++)
            residuals_at(n, l, nodes, node, w, half);
        product(number + 5, number, nodes->sums, number, 1, w.residuals, w.sums_of_residuals, half, 0);
        for (long c = 0; c < half; c++) {
            vec sums[MOST_NODES + 5];
            for (long k = 0; k < number + 5; k++)
                sums[k] = row(w.sums_of_residuals, k)[c];
            const vec at = point[c], energy = energy_at(nodes, sums, at * per_range) + curvature * at * at;
            vec ends = broadcast(0.0f); /* the error beyond the nodes, over the density at the point */
            for (int up = 0; up < 2; up++) {
                const vec sign = broadcast(up ? 1.0f : -1.0f), inwards = -sign * at;
                const vec way = nodes->reach + choose(inwards > 0.0f, inwards, broadcast(0.0f));
                vec mass = broadcast(0.0f), ratio = mass, drift = mass;
                for (long k = 0; k < nodes->points; k++) {
                    const vec there = at + sign * way * nodes->place[k];
                    const vec rise = energy_at(nodes, sums, there * per_range) + curvature * there * there - energy;
                    const vec distance = magnitude(there) - nodes->half_range;
                    const vec beyond = choose(distance > 0.0f, distance, broadcast(0.0f));
                    const vec slope = choose(there < 0.0f, sums[number + 3], sums[number + 4]);
                    ratio = exponential(rise);
                    mass += nodes->share[k] * ratio;
                    drift += nodes->share[k] * ratio * magnitude(slope) * beyond * beyond;
                }
                (up ? above : below)[c] = way * mass;
                ends += 0.5f * way * drift + nodes->half_range * ratio;
            }
            const vec last = 0.5f * (magnitude(sums[number]) + magnitude(sums[number - 1]));
            const vec all = last + ends / (below[c] + above[c]);
            error[c] = choose(magnitude(at) <= nodes->half_range, all, broadcast(__builtin_inff()));
        }
        const vec *rows[] = {below, above, error};
        for (long i = 0; i < 3; i++)
            memcpy(out + i * next + begin, rows[i], (size_t)here * sizeof(float));
    }
}
