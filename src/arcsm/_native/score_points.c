/* What score_matching.c reads of points: features of values and noise levels, slopes by the values, and coefficients of
 * the loss (see objectives/fused.py and heads/score.py). */

#include "kernels.h"

#include <math.h>

enum { EMBEDDING = 5, COEFFICIENTS = 6 };

typedef struct {
    long frequencies;              /* J */
    const float *frequency;        /* (J,) */
    float data_std;                /* tau */
    float envelope_widths;         /* standard deviation of the envelope of the Fourier features */
    float flat_widths, end_widths; /* distances from zero up to which the window is 1, and from which it is 0 */
} point_head;

/* Stores the first lanes of a vector as every `next`-th number. */
INLINE void store_lanes(vec v, long lanes, float *to, long next)
{
    for (long i = 0; i < lanes; i++)
        to[i * next] = ((const float *)&v)[i];
}

INLINE vec load_lanes(const float *from, long lanes, float rest)
{
    vec v = broadcast(rest);
    memcpy(&v, from, (size_t)lanes * sizeof(float));
    return v;
}

INLINE vec clamp(vec x, vec low, vec high)
{
    bits below = x<low, above = x> high;
    return (vec)(((bits)low & below) | ((bits)high & above) | ((bits)x & ~(below | above)));
}

INLINE vec magnitude(vec x) { return (vec)((bits)x & 0x7fffffff); }

/* Writes how a network reads the noise level: log(1 + tau / sigma), and sines and cosines of it. */
INLINE void embed_noise(vec damping, long lanes, float *features, long next)
{
    vec ratio = clamp(1.0f / damping, broadcast(0.0f), broadcast(1e6f)), log = ratio, sine, cosine;
    for (int i = 0; i < LANES; i++)
        ((float *)&log)[i] = log1pf(((const float *)&ratio)[i]);
    store_lanes(log, lanes, features, next);
    for (int harmonic = 1; harmonic <= 2; harmonic++) {
        sine_and_cosine((float)harmonic * log, &sine, &cosine);
        store_lanes(sine, lanes, features + 2 * harmonic - 1, next);
        store_lanes(cosine, lanes, features + 2 * harmonic, next);
    }
}

/* Returns the part of the loss that does not depend on the network. Values x (N,) at noise levels `sigma`, or none if
 * that is NULL, have a `weight`, and the coefficients of the derivative of the score and of the score. Writes features
 * (N, I), slopes (N, 2 J + 1) and coefficients (6, N). */
double score_points(const point_head *h, long count, const float *x, const float *sigma, const float *weight,
                    const float *derivative, const float *linear, float *features, float *slopes, float *coefficients)
{
    const long embedded = sigma ? EMBEDDING : 0, values = 2 * h->frequencies + 1, inputs = embedded + values;
    const float tau = h->data_std;
    double constant = 0.0;
    for (long begin = 0; begin < count; begin += LANES, features += LANES * inputs, slopes += LANES * values) {
        const long lanes = count - begin < LANES ? count - begin : LANES;
        const vec at = load_lanes(x + begin, lanes, 0.0f), omega = load_lanes(weight + begin, lanes, 0.0f);
        const vec a = load_lanes(derivative + begin, lanes, 0.0f), b = load_lanes(linear + begin, lanes, 0.0f);
        const vec noise = sigma ? load_lanes(sigma + begin, lanes, 1.0f) : broadcast(0.0f);
        const vec precision_root = inverse_root(noise * noise + tau * tau), precision = precision_root * precision_root;
        vec gain = broadcast(1.0f / tau);
        if (sigma) {
            gain = tau * precision_root / noise;
            embed_noise(noise / tau, lanes, features, inputs);
        }
        store_lanes(at * precision_root, lanes, features + embedded, inputs);
        store_lanes(precision_root, lanes, slopes, values);
        if (h->frequencies) {
            const vec width = 1.0f / precision_root, end = h->end_widths * width;
            const vec inner = clamp(at, -end, end), distance = at * precision_root / h->envelope_widths;
            const vec envelope = exponential(-0.5f * distance * distance);
            const vec decay = distance * precision_root * (-1.0f / h->envelope_widths);
            for (long j = 0; j < h->frequencies; j++) {
                const float f = h->frequency[j];
                vec sine, cosine, factor = f * noise;
                sine_and_cosine(f * inner, &sine, &cosine);
                factor = envelope * exponential(-0.5f * factor * factor);
                sine *= factor;
                cosine *= factor;
                store_lanes(sine, lanes, features + embedded + 1 + j, inputs);
                store_lanes(cosine, lanes, features + embedded + 1 + h->frequencies + j, inputs);
                store_lanes(f * cosine + decay * sine, lanes, slopes + 1 + j, values);
                store_lanes(decay * cosine - f * sine, lanes, slopes + 1 + h->frequencies + j, values);
            }
        }
        const float span = h->end_widths - h->flat_widths;
        const vec t = clamp((magnitude(at) * precision_root - h->flat_widths) / span, broadcast(0.0f), broadcast(1.0f));
        const vec window = 1.0f - t * t * t * (10.0f - 15.0f * t + 6.0f * t * t), inside = t * (1.0f - t);
        const vec sign = (vec)(((bits)at & (int32_t)0x80000000) | (bits)broadcast(1.0f));
        const vec by_x = -30.0f / span * inside * inside * precision_root * sign, outer = omega * a;
        float *to = coefficients + begin;
        store_lanes(gain * window, lanes, to, 1);
        store_lanes(-at * precision, lanes, to + count, 1);
        store_lanes(omega, lanes, to + 2 * count, 1);
        store_lanes(b, lanes, to + 3 * count, 1);
        store_lanes(outer * gain * by_x, lanes, to + 4 * count, 1);
        store_lanes(outer * gain * window, lanes, to + 5 * count, 1);
        constant -= sum_lanes(outer * precision);
    }
    return constant;
}
