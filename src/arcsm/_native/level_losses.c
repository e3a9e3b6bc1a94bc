/* Negative log probabilities of levels by the softmax of their columns, and gradients (see heads/categorical.py). */

#include "kernels.h"

#include <math.h>

typedef struct {
    long levels;         /* K */
    float sharpness;     /* tau, of the logits */
    float share;         /* epsilon, of the prior */
    const float *weight; /* (K, C) */
    const float *bias;   /* (K,) */
    const float *prior;  /* probabilities, (K,) */
} level_head;

/* Of one head; weights are transposed, a row for each feature of the context, and padded. */
typedef struct {
    matrix weight, grad_weight;
    vec *bias, *log_prior, *grad_bias;
} of_head;

static of_head lay_out(const level_head *h, long features, vec *space, size_t *used)
{
    const long width = vectors_for(h->levels);
    of_head w;
    w.weight = allocate(space, used, features, width);
    w.grad_weight = allocate(space, used, features, width);
    w.bias = space ? space + *used : NULL;
    w.log_prior = space ? w.bias + width : NULL;
    w.grad_bias = space ? w.log_prior + width : NULL;
    *used += (size_t)(3 * width);
    return w;
}

static long widest(const level_head *heads, long count)
{
    long most = 0;
    for (long k = 0; k < count; k++)
        most = heads[k].levels > most ? heads[k].levels : most;
    return vectors_for(most);
}

/* Bytes of the workspace of level_losses. */
size_t level_losses_workspace_bytes(const level_head *heads, long count, long features)
{
    size_t used = (size_t)widest(heads, count);
    for (long k = 0; k < count; k++)
        lay_out(&heads[k], features, NULL, &used);
    return used * sizeof(vec);
}

static void load_head(const level_head *h, long features, of_head w)
{
    const long padded = vectors_for(h->levels) * LANES;
    for (long c = 0; c < features; c++) {
        float *to = (float *)row(w.weight, c);
        for (long k = 0; k < padded; k++)
            to[k] = k < h->levels ? h->weight[k * features + c] : 0.0f;
        memset(row(w.grad_weight, c), 0, (size_t)padded * sizeof(float));
    }
    for (long k = 0; k < padded; k++) {
        ((float *)w.bias)[k] = k < h->levels ? h->bias[k] : -1e30f;
        ((float *)w.log_prior)[k] = k < h->levels ? logf(h->prior[k]) : -1e30f;
    }
    memset(w.grad_bias, 0, (size_t)padded * sizeof(float));
}

INLINE vec larger(vec a, vec b)
{
    bits is = a > b;
    return (vec)(((bits)a & is) | ((bits)b & ~is));
}

INLINE float largest_lane(vec v)
{
    float most = ((const float *)&v)[0];
    for (int i = 1; i < LANES; i++)
        most = ((const float *)&v)[i] > most ? ((const float *)&v)[i] : most;
    return most;
}

/* Returns minus the log probability of a level and writes its gradient by the logits, times `weight`, into `z`. */
static float loss_of_level(const level_head *h, of_head w, long features, const float *context, long level,
                           float weight, vec *z)
{
    const long width = vectors_for(h->levels);
    vec most = broadcast(-3e38f), total = broadcast(0.0f);
    for (long v = 0; v < width; v++) {
        vec logit = w.bias[v];
        for (long c = 0; c < features; c++)
            logit += context[c] * row(w.weight, c)[v];
        z[v] = w.log_prior[v] + h->sharpness * (logit - w.log_prior[v]);
        most = larger(most, z[v]);
    }
    const float highest = largest_lane(most), of_level = ((const float *)z)[level] - highest;
    for (long v = 0; v < width; v++) {
        z[v] = exponential(z[v] - highest);
        total += z[v];
    }
    const float sum = sum_lanes(total), log_q = of_level - logf(sum);
    float loss = -log_q, factor = weight * h->sharpness;
    if (h->share > 0.0f) {
        const float q = (1.0f - h->share) * ((const float *)z)[level] / sum, p = q + h->share * h->prior[level];
        loss = -logf(p);
        factor *= q / p;
    }
    for (long v = 0; v < width; v++)
        z[v] *= factor / sum;
    ((float *)z)[level] -= factor;
    return loss;
}

/* Returns the weighted sum of minus the log probabilities of levels x (rows,), each by the head with its number; writes
 * the gradients of the contexts, (rows, C), and adds to those of the weights (K, C) and biases (K,) of the heads. */
double level_losses(const level_head *heads, long count, long features, long rows, const float *context,
                    const int64_t *number, const float *x, const float *weight, float *grad_context,
                    float *const *grad_weight, float *const *grad_bias, void *space)
{
    of_head of_heads[count];
    size_t used = (size_t)widest(heads, count);
    for (long k = 0; k < count; k++) {
        of_heads[k] = lay_out(&heads[k], features, space, &used);
        load_head(&heads[k], features, of_heads[k]);
    }
    vec *z = space;
    double loss = 0.0;
    for (long i = 0; i < rows; i++) {
        const level_head *h = &heads[number[i]];
        const of_head w = of_heads[number[i]];
        const float *its = context + i * features;
        float *out = grad_context + i * features;
        const long width = vectors_for(h->levels), level = x[i] >= 0.0f && x[i] < (float)h->levels ? (long)x[i] : -1;
        memset(out, 0, (size_t)features * sizeof(float));
        if (weight[i] == 0.0f)
            continue;
        if (level < 0 || (float)level != x[i]) { /* such a level has no probability */
            loss += weight[i] * INFINITY;
            continue;
        }
        loss += weight[i] * loss_of_level(h, w, features, its, level, weight[i], z);
        for (long v = 0; v < width; v++)
            w.grad_bias[v] += z[v];
        for (long c = 0; c < features; c++) {
            vec by_context = broadcast(0.0f);
            for (long v = 0; v < width; v++) {
                by_context += row(w.weight, c)[v] * z[v];
                row(w.grad_weight, c)[v] += its[c] * z[v];
            }
            out[c] = sum_lanes(by_context);
        }
    }
    for (long k = 0; k < count; k++)
        for (long j = 0; j < heads[k].levels; j++) {
            grad_bias[k][j] += ((const float *)of_heads[k].grad_bias)[j];
            for (long c = 0; c < features; c++)
                grad_weight[k][j * features + c] += ((const float *)row(of_heads[k].grad_weight, c))[j];
        }
    return loss;
}
