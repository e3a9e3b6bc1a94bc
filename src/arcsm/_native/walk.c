/* Fused score matching of a perceptron: loss and all gradients of a row of points, in one walk (see fused.py).
 *
 * Points lie side by side in vectors, so a hidden layer of a tile of points is a small matrix with a row for each unit:
 * values in its left half and, where the loss needs them, derivatives by x in its right half. A tile is so small that
 * all its layers stay in a core's own cache from the first product to the last gradient.
 *
 * Names are those of fused.py: z are the sums of a layer, h its activations, f' their slope, dz and dh derivatives by x.
 */

#include "kernels.h"

/* What a column of points has for the loss; the order is that of the caller's table. */
enum { GAIN, PULL, WEIGHT, LINEAR, BY_CORRECTION, BY_SLOPE, COEFFICIENTS };

typedef struct {
    long inputs;       /* I: context first, features of x last */
    long context;      /* C: of them, those that gradients are for */
    long features;     /* V: of them, those that move with x */
    long layers;       /* hidden layers */
    const long *units; /* of each, (layers,) */
    int residual;      /* whether each hidden layer but the last is added to the one before it */
    int tangent;       /* whether the loss has the derivative by x in it */
    long tile;         /* points at a time, a multiple of LANES * COLUMNS */
} shape;

/* Layers ------------------------------------------------------------------------------------------------------------ */

/* What the way back needs of a hidden layer. */
typedef struct {
    matrix h;     /* activations, and their derivatives by x in the right half */
    matrix slope; /* f'(z), and f''(z) dz in the right half */
} layer;

/* h = z g, g the logistic function of z; sums are replaced by activations. */
static void silu(long units, const float *bias, layer l, long half, int tangent)
{
    for (long i = 0; i < units; i++) {
        vec *h = row(l.h, i), *slope = row(l.slope, i);
        for (long w = 0; w < half; w++) {
            vec z = h[w] + bias[i], gate = logistic(z), rest = 1.0f - gate, value = z * gate;
            vec first = gate + value * rest; /* f' = g + h (1 - g) */
            slope[w] = first;
            h[w] = value;
            if (tangent) {
                vec dz = h[half + w];
                slope[half + w] = (2.0f * first - value) * rest * dz; /* f'' = (1 - g) (2 f' - h) */
                h[half + w] = first * dz;
            }
        }
    }
}

static void add(long rows, matrix to, matrix more, long width)
{
    for (long i = 0; i < rows; i++)
        for (long w = 0; w < width; w++)
            row(to, i)[w] += row(more, i)[w];
}

/* The last hidden layer; its activation g - 1/2 leaves the half to the output's bias. */
static void bounded(long units, const float *bias, layer l, long half, int tangent)
{
    for (long i = 0; i < units; i++) {
        vec *h = row(l.h, i), *slope = row(l.slope, i);
        for (long w = 0; w < half; w++) {
            vec gate = logistic(h[w] + bias[i]), first = gate - gate * gate; /* f' = g (1 - g) */
            h[w] = gate;
            slope[w] = first;
            if (tangent) {
                vec dh = first * h[half + w];
                slope[half + w] = dh - 2.0f * gate * dh; /* f'' = f' (1 - 2 g) */
                h[half + w] = dh;
            }
        }
    }
}

/* From gradients by activations, in `by`, to those by sums: in `to`, which may be `by`. Adds to that of the bias. */
static void through(long units, layer l, matrix by, matrix to, float *by_bias, long half, int tangent)
{
    for (long i = 0; i < units; i++) {
        vec *slope = row(l.slope, i), *from = row(by, i), *out = row(to, i), total = all(0.0f);
        for (long w = 0; w < half; w++) {
            vec by_z = from[w] * slope[w];
            if (tangent) {
                vec by_dh = from[half + w];
                by_z += by_dh * slope[half + w];
                out[half + w] = by_dh * slope[w];
            }
            out[w] = by_z;
            total += by_z;
        }
        by_bias[i] += sum_of(total);
    }
}

/* The loss of a tile; gradients by the output's weight and bias are added up, those by the last activations in `by`. */
static double top(long units, const float *weight, float bias, layer l, matrix points, matrix by, float *by_weight,
                  float *by_bias, long half, int tangent)
{
    double loss = 0.0;
    float total = 0.0f, centre = bias;
    for (long i = 0; i < units; i++)
        centre -= 0.5f * weight[i];
    vec *coefficient[COEFFICIENTS];
    for (int i = 0; i < COEFFICIENTS; i++)
        coefficient[i] = row(points, i);
    for (long w = 0; w < half; w++) {
        vec correction = all(centre), slope = all(0.0f);
        for (long i = 0; i < units; i++) {
            correction += weight[i] * row(l.h, i)[w];
            if (tangent)
                slope += weight[i] * row(l.h, i)[half + w];
        }
        vec gain = coefficient[GAIN][w], omega = coefficient[WEIGHT][w], linear = coefficient[LINEAR][w];
        vec score = coefficient[PULL][w] + gain * correction;
        vec each = omega * score * (0.5f * score + linear), by_correction = omega * gain * (score + linear);
        if (tangent) {
            each += coefficient[BY_CORRECTION][w] * correction + coefficient[BY_SLOPE][w] * slope;
            by_correction += coefficient[BY_CORRECTION][w];
        }
        loss += sum_of(each);
        total += sum_of(by_correction);
        coefficient[GAIN][w] = by_correction; /* no longer needed as what it was */
    }
    by_bias[0] += total;
    const vec *by_correction = coefficient[GAIN], *by_slope = coefficient[BY_SLOPE];
    for (long i = 0; i < units; i++) {
        const vec *h = row(l.h, i);
        vec *out = row(by, i), of_weight = all(0.0f);
        for (long w = 0; w < half; w++) {
            of_weight += by_correction[w] * h[w];
            out[w] = by_correction[w] * weight[i];
            if (tangent) {
                of_weight += by_slope[w] * h[half + w];
                out[half + w] = by_slope[w] * weight[i];
            }
        }
        by_weight[i] += sum_of(of_weight) - 0.5f * total;
    }
    return loss;
}

/* Points ------------------------------------------------------------------------------------------------------------ */

static long larger(long a, long b) { return a > b ? a : b; }

static long widest(const shape *s)
{
    long found = s->context;
    for (long i = 0; i < s->layers; i++)
        found = larger(found, s->units[i]);
    return found;
}

/* Everything that a walk writes on the way. */
typedef struct {
    matrix given, moves, table; /* inputs, their derivatives by x, coefficients */
    matrix by, delta;           /* gradients by activations, and by sums */
    matrix turned;              /* delta, a row for each point */
    size_t vectors;             /* of all, with those of the layers */
} workspace;

static long half_of(const shape *s) { return s->tile / LANES; }
static long width_of(const shape *s) { return s->tangent ? 2 * half_of(s) : half_of(s); }
static long below(const shape *s, long i) { return i ? s->units[i - 1] : s->inputs; }

/* `by_weight` are gradients of the hidden layers' weights, transposed: a row for each input. */
static workspace lay_out(const shape *s, vec *space, layer *layers, matrix *by_weight)
{
    const long half = half_of(s), width = width_of(s);
    workspace w = {.vectors = 0};
    w.given = take(space, &w.vectors, s->inputs, half);
    w.moves = take(space, &w.vectors, s->features, half);
    w.table = take(space, &w.vectors, COEFFICIENTS, half);
    w.by = take(space, &w.vectors, widest(s), width);
    w.delta = take(space, &w.vectors, widest(s), width);
    w.turned = take(space, &w.vectors, width * LANES, in_vectors(widest(s)));
    for (long i = 0; i < s->layers; i++) {
        layers[i].h = take(space, &w.vectors, s->units[i], width);
        layers[i].slope = take(space, &w.vectors, s->units[i], width);
        by_weight[i] = take(space, &w.vectors, below(s, i), in_vectors(s->units[i]));
    }
    return w;
}

/* Points that go side by side without a rest: tiles are multiples of it. */
long vector_step(void) { return (long)LANES * COLUMNS; }

/* Of the memory that C is given. */
size_t vector_alignment(void) { return sizeof(vec); }

/* Bytes that a walk needs. */
size_t walk_space(const shape *s)
{
    layer layers[s->layers];
    matrix by_weight[s->layers];
    return lay_out(s, NULL, layers, by_weight).vectors * sizeof(vec);
}

/* Forward through all layers, with values and derivatives side by side. */
static void forward(const shape *s, const float *const *weight, const float *const *bias, workspace w, layer *layers)
{
    const long half = half_of(s), width = width_of(s), last = s->layers - 1, moving = s->inputs - s->features;
    product(s->units[0], s->inputs, weight[0], s->inputs, 1, w.given, layers[0].h, half, 0);
    if (s->tangent)
        product(s->units[0], s->features, weight[0] + moving, s->inputs, 1, w.moves, from_column(layers[0].h, half),
                half, 0);
    for (long i = 0; i < last; i++) {
        silu(s->units[i], bias[i], layers[i], half, s->tangent);
        if (s->residual && i > 0)
            add(s->units[i], layers[i].h, layers[i - 1].h, width);
        product(s->units[i + 1], s->units[i], weight[i + 1], s->units[i], 1, layers[i].h, layers[i + 1].h, width, 0);
    }
    bounded(s->units[last], bias[last], layers[last], half, s->tangent);
}

/* And back: from w.by, gradients by the last activations, to those of all weights and biases, and in w.by by context. */
static void backward(const shape *s, const float *const *weight, workspace w, layer *layers, matrix *by_weight,
                     float *const *by_bias)
{
    const long half = half_of(s), width = width_of(s), last = s->layers - 1, moving = s->inputs - s->features;
    for (long i = last; i >= 0; i--) {
        const long units = s->units[i], inputs = below(s, i);
        through(units, layers[i], w.by, w.delta, by_bias[i], half, s->tangent);
        by_points(w.delta, units, width, w.turned);
        const matrix under = i ? layers[i - 1].h : w.given;
        long_product(inputs, (i ? width : half) * LANES, under, w.turned, by_weight[i], in_vectors(units));
        if (i)
            product(inputs, units, weight[i], 1, inputs, w.delta, w.by, width, s->residual && i < last);
    }
    if (s->tangent) {
        const matrix of_slopes = {row(w.turned, half * LANES), w.turned.stride};
        const matrix to = {row(by_weight[0], moving), by_weight[0].stride};
        long_product(s->features, half * LANES, w.moves, of_slopes, to, in_vectors(s->units[0]));
    }
    product(s->context, s->units[0], weight[0], 1, s->inputs, w.delta, w.by, half, 0);
}

/* Loss of `count` points. Gradients are added to `by_weight` and `by_bias`, (layers + 1) arrays each, the last of them
 * the output's; `by_context`, (count, C), is written. The inputs are `context`, (count, C), and `others`, (count, I - C),
 * the last of which move with x at the rates `slopes`, (count, V). `points` are COEFFICIENTS rows, `next`
 * numbers apart. Weights are (units, inputs). */
double walk(const shape *s, long count, const float *context, const float *others, const float *slopes,
            const float *points, long next, const float *const *weight, const float *const *bias,
            float *const *by_weight, float *const *by_bias, float *by_context, void *space)
{
    const long half = half_of(s), last = s->layers - 1, rest = s->inputs - s->context;
    layer layers[s->layers];
    matrix turned[s->layers];
    const workspace w = lay_out(s, space, layers, turned);
    for (long i = 0; i <= last; i++)
        memset(turned[i].at, 0, (size_t)(below(s, i) * turned[i].stride) * sizeof(vec));

    double loss = 0.0;
    for (long begin = 0; begin < count; begin += s->tile) {
        const long here = count - begin < s->tile ? count - begin : s->tile;
        const matrix after = {row(w.given, s->context), w.given.stride};
        turn(context + begin * s->context, s->context, here, s->context, w.given, half);
        turn(others + begin * rest, rest, here, rest, after, half);
        turn(slopes + begin * s->features, s->features, here, s->features, w.moves, half);
        for (long i = 0; i < COEFFICIENTS; i++) {
            float *out = (float *)row(w.table, i);
            memcpy(out, points + i * next + begin, (size_t)here * sizeof(float));
            memset(out + here, 0, (size_t)(s->tile - here) * sizeof(float)); /* points without weight */
        }
        forward(s, weight, bias, w, layers);
        loss += top(s->units[last], weight[last + 1], bias[last + 1][0], layers[last], w.table, w.by,
                    by_weight[last + 1], by_bias[last + 1], half, s->tangent);
        backward(s, weight, w, layers, turned, by_bias);
        turn_back(w.by, here, s->context, by_context + begin * s->context, s->context);
    }
    for (long i = 0; i <= last; i++)
        for (long j = 0; j < below(s, i); j++)
            for (long u = 0; u < s->units[i]; u++)
                by_weight[i][u * below(s, i) + j] += ((float *)row(turned[i], j))[u];
    return loss;
}
