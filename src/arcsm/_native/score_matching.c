/* Fused score matching of a perceptron: the loss of many points and all its gradients (see objectives/fused.py).
 *
 * Points lie side by side in vectors, so a hidden layer of a tile of points is a small matrix with a row for each unit:
 * values in its left half and, if the loss needs them, derivatives by x in its right half. All layers of a tile fit into
 * a core's own cache and stay there from the first product to the last gradient.
 *
 * Names are those of fused.py: z are the pre-activations of a layer and h its activations, f' is the derivative of the
 * activation function, dz and dh are derivatives by x, and grad_z is the gradient of the loss by z.
 */

#include "kernels.h"

/* Coefficients of the loss of each point, in the order of fused.py. */
enum { GAIN, BASE_SCORE, WEIGHT, LINEAR, CORRECTION_WEIGHT, SLOPE_WEIGHT, COEFFICIENTS };

typedef struct {
    long inputs;         /* I: the context first, the features of x last */
    long context;        /* C: inputs with a gradient */
    long value_features; /* V: inputs that depend on x */
    long layers;         /* hidden layers */
    const long *units;   /* units of each hidden layer, (layers,) */
    int residual;        /* whether the layer below is added to each hidden layer but the last */
    int tangent;         /* whether the loss contains the derivative by x */
    long tile;           /* points in a tile, a multiple of LANES * COLUMNS */
} shape;

/* Layers ------------------------------------------------------------------------------------------------------------ */

/* What the backward pass needs from a hidden layer. */
typedef struct {
    matrix h;     /* activations, and their derivatives by x in the right half */
    matrix slope; /* f'(z), and f''(z) dz in the right half */
} layer;

/* h = z g, with g the logistic function of z. Overwrites pre-activations with activations. */
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

static void add(long rows, matrix to, matrix below, long width)
{
    for (long i = 0; i < rows; i++)
        for (long w = 0; w < width; w++)
            row(to, i)[w] += row(below, i)[w];
}

/* The last hidden layer. Its activation is g - 1/2; the output's bias takes care of the half. */
static void last_activation(long units, const float *bias, layer l, long half, int tangent)
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

/* Computes grad_z from grad_h, which may be the same matrix, and adds to the gradient of the bias. */
static void activation_backward(long units, layer l, matrix grad_h, matrix grad_z, float *grad_bias, long half,
                                int tangent)
{
    for (long i = 0; i < units; i++) {
        vec *slope = row(l.slope, i), *from = row(grad_h, i), *out = row(grad_z, i), total = broadcast(0.0f);
        for (long w = 0; w < half; w++) {
            vec value = from[w] * slope[w];
            if (tangent) {
                vec grad_dh = from[half + w];
                value += grad_dh * slope[half + w];
                out[half + w] = grad_dh * slope[w];
            }
            out[w] = value;
            total += value;
        }
        grad_bias[i] += sum_lanes(total);
    }
}

/* Returns the loss of a tile, adds to the gradients of the output's weight and bias, and writes grad_h. */
static double output_layer(long units, const float *weight, float bias, layer l, matrix points, matrix grad_h,
                           float *grad_weight, float *grad_bias, long half, int tangent)
{
    double loss = 0.0;
    float total = 0.0f, centre = bias;
    for (long i = 0; i < units; i++)
        centre -= 0.5f * weight[i];
    vec *coefficient[COEFFICIENTS];
    for (int i = 0; i < COEFFICIENTS; i++)
        coefficient[i] = row(points, i);
    for (long w = 0; w < half; w++) {
        vec correction = broadcast(centre), slope = broadcast(0.0f);
        for (long i = 0; i < units; i++) {
            correction += weight[i] * row(l.h, i)[w];
            if (tangent)
                slope += weight[i] * row(l.h, i)[half + w];
        }
        vec gain = coefficient[GAIN][w], weight_of_loss = coefficient[WEIGHT][w], linear = coefficient[LINEAR][w];
        vec score = coefficient[BASE_SCORE][w] + gain * correction;
        vec each = weight_of_loss * score * (0.5f * score + linear),
            grad_correction = weight_of_loss * gain * (score + linear);
        if (tangent) {
            each += coefficient[CORRECTION_WEIGHT][w] * correction + coefficient[SLOPE_WEIGHT][w] * slope;
            grad_correction += coefficient[CORRECTION_WEIGHT][w];
        }
        loss += sum_lanes(each);
        total += sum_lanes(grad_correction);
        coefficient[GAIN][w] = grad_correction; /* the gain is no longer needed */
    }
    grad_bias[0] += total;
    const vec *grad_correction = coefficient[GAIN], *slope_weight = coefficient[SLOPE_WEIGHT];
    for (long i = 0; i < units; i++) {
        const vec *h = row(l.h, i);
        vec *out = row(grad_h, i), weight_sum = broadcast(0.0f);
        for (long w = 0; w < half; w++) {
            weight_sum += grad_correction[w] * h[w];
            out[w] = grad_correction[w] * weight[i];
            if (tangent) {
                weight_sum += slope_weight[w] * h[half + w];
                out[half + w] = slope_weight[w] * weight[i];
            }
        }
        grad_weight[i] += sum_lanes(weight_sum) - 0.5f * total;
    }
    return loss;
}

/* Tiles ------------------------------------------------------------------------------------------------------------- */

static long larger(long a, long b) { return a > b ? a : b; }

static long widest(const shape *s)
{
    long most = s->context;
    for (long i = 0; i < s->layers; i++)
        most = larger(most, s->units[i]);
    return most;
}

/* Intermediate results of a tile. */
typedef struct {
    matrix inputs, slopes;  /* inputs, and derivatives by x of the last of them */
    matrix coefficients;    /* of the loss */
    matrix grad_h, grad_z;  /* gradients of one layer */
    matrix grad_z_by_point; /* the latter with a row for each point */
    size_t vectors;         /* size of all matrices, including those of the layers */
} workspace;

static long half_width(const shape *s) { return s->tile / LANES; }
static long row_width(const shape *s) { return s->tangent ? 2 * half_width(s) : half_width(s); }
static long layer_inputs(const shape *s, long i) { return i ? s->units[i - 1] : s->inputs; }

/* Places all matrices; `grad_weight` are gradients of the hidden layers' weights, transposed: a row for each input. */
static workspace lay_out(const shape *s, vec *space, layer *layers, matrix *grad_weight)
{
    const long half = half_width(s), width = row_width(s);
    workspace w = {.vectors = 0};
    w.inputs = allocate(space, &w.vectors, s->inputs, half);
    w.slopes = allocate(space, &w.vectors, s->value_features, half);
    w.coefficients = allocate(space, &w.vectors, COEFFICIENTS, half);
    w.grad_h = allocate(space, &w.vectors, widest(s), width);
    w.grad_z = allocate(space, &w.vectors, widest(s), width);
    w.grad_z_by_point = allocate(space, &w.vectors, width * LANES, vectors_for(widest(s)));
    for (long i = 0; i < s->layers; i++) {
        layers[i].h = allocate(space, &w.vectors, s->units[i], width);
        layers[i].slope = allocate(space, &w.vectors, s->units[i], width);
        grad_weight[i] = allocate(space, &w.vectors, layer_inputs(s, i), vectors_for(s->units[i]));
    }
    return w;
}

/* The number of points that tiles must be multiples of. */
long vector_step(void) { return (long)LANES * COLUMNS; }

/* The alignment of workspaces in bytes. */
size_t vector_alignment(void) { return sizeof(vec); }

/* Bytes of the workspace of score_matching_forward_backward. */
size_t score_matching_workspace_bytes(const shape *s)
{
    layer layers[s->layers];
    matrix grad_weight[s->layers];
    return lay_out(s, NULL, layers, grad_weight).vectors * sizeof(vec);
}

/* Computes all layers, values and derivatives side by side. */
static void forward(const shape *s, const float *const *weight, const float *const *bias, workspace w, layer *layers)
{
    const long half = half_width(s), width = row_width(s), last = s->layers - 1,
               first_value = s->inputs - s->value_features;
    product(s->units[0], s->inputs, weight[0], s->inputs, 1, w.inputs, layers[0].h, half, 0);
    if (s->tangent)
        product(s->units[0], s->value_features, weight[0] + first_value, s->inputs, 1, w.slopes,
                from_column(layers[0].h, half), half, 0);
    for (long i = 0; i < last; i++) {
        silu(s->units[i], bias[i], layers[i], half, s->tangent);
        if (s->residual && i > 0)
            add(s->units[i], layers[i].h, layers[i - 1].h, width);
        product(s->units[i + 1], s->units[i], weight[i + 1], s->units[i], 1, layers[i].h, layers[i + 1].h, width, 0);
    }
    last_activation(s->units[last], bias[last], layers[last], half, s->tangent);
}

/* Computes the gradients of all weights and biases from w.grad_h of the last layer, and replaces it by the gradients of
 * the context. */
static void backward(const shape *s, const float *const *weight, workspace w, layer *layers, matrix *grad_weight,
                     float *const *grad_bias)
{
    const long half = half_width(s), width = row_width(s), last = s->layers - 1,
               first_value = s->inputs - s->value_features;
    for (long i = last; i >= 0; i--) {
        const long units = s->units[i], inputs = layer_inputs(s, i);
        activation_backward(units, layers[i], w.grad_h, w.grad_z, grad_bias[i], half, s->tangent);
        transpose_to_points(w.grad_z, units, width, w.grad_z_by_point);
        const matrix below = i ? layers[i - 1].h : w.inputs;
        blocked_product(inputs, (i ? width : half) * LANES, below, w.grad_z_by_point, grad_weight[i],
                        vectors_for(units));
        if (i)
            product(inputs, units, weight[i], 1, inputs, w.grad_z, w.grad_h, width, s->residual && i < last);
    }
    if (s->tangent) {
        const matrix grad_dz = {row(w.grad_z_by_point, half * LANES), w.grad_z_by_point.stride};
        const matrix to = {row(grad_weight[0], first_value), grad_weight[0].stride};
        blocked_product(s->value_features, half * LANES, w.slopes, grad_dz, to, vectors_for(s->units[0]));
    }
    product(s->context, s->units[0], weight[0], 1, s->inputs, w.grad_z, w.grad_h, half, 0);
}

/* Returns the loss of `count` points, writes `grad_context`, (count, C), and adds to `grad_weight` and `grad_bias`,
 * (layers + 1) arrays each, the last of them of the output. The inputs are `context`, (count, C), and `features`,
 * (count, I - C); the last V features have derivatives `slopes`, (count, V), by x. `points` are COEFFICIENTS rows with
 * `next` numbers from row to row. Weights are (units, inputs). */
double score_matching_forward_backward(const shape *s, long count, const float *context, const float *features,
                                       const float *slopes, const float *points, long next, const float *const *weight,
                                       const float *const *bias, float *const *grad_weight, float *const *grad_bias,
                                       float *grad_context, void *space)
{
    const long half = half_width(s), last = s->layers - 1, rest = s->inputs - s->context;
    layer layers[s->layers];
    matrix hidden_gradient[s->layers];
    const workspace w = lay_out(s, space, layers, hidden_gradient);
    for (long i = 0; i <= last; i++)
        memset(hidden_gradient[i].at, 0, (size_t)(layer_inputs(s, i) * hidden_gradient[i].stride) * sizeof(vec));

    double loss = 0.0;
    for (long begin = 0; begin < count; begin += s->tile) {
        const long here = count - begin < s->tile ? count - begin : s->tile;
        const matrix behind_context = {row(w.inputs, s->context), w.inputs.stride};
        load_transposed(context + begin * s->context, s->context, here, s->context, w.inputs, half);
        load_transposed(features + begin * rest, rest, here, rest, behind_context, half);
        load_transposed(slopes + begin * s->value_features, s->value_features, here, s->value_features, w.slopes, half);
        for (long i = 0; i < COEFFICIENTS; i++) {
            float *out = (float *)row(w.coefficients, i);
            memcpy(out, points + i * next + begin, (size_t)here * sizeof(float));
            memset(out + here, 0, (size_t)(s->tile - here) * sizeof(float)); /* padding has weight zero */
        }
        forward(s, weight, bias, w, layers);
        loss += output_layer(s->units[last], weight[last + 1], bias[last + 1][0], layers[last], w.coefficients,
                             w.grad_h, grad_weight[last + 1], grad_bias[last + 1], half, s->tangent);
        backward(s, weight, w, layers, hidden_gradient, grad_bias);
        store_transposed(w.grad_h, here, s->context, grad_context + begin * s->context, s->context);
    }
    for (long i = 0; i <= last; i++)
        for (long j = 0; j < layer_inputs(s, i); j++)
            for (long u = 0; u < s->units[i]; u++)
                grad_weight[i][u * layer_inputs(s, i) + j] += ((float *)row(hidden_gradient[i], j))[u];
    return loss;
}
