/* Exponentials and logarithms in double precision, free of branches, so that compilers put loops of them into vectors. */

#ifndef DOUBLES_H
#define DOUBLES_H

#include <stdint.h>

/* The bits of a double. */
typedef union {
    double number;
    uint64_t bits;
} double_bits;

/* Both propagate numbers that are none, as torch does. */
static inline __attribute__((always_inline)) double larger(double a, double b) { return a > b || a != a ? a : b; }
static inline __attribute__((always_inline)) double smaller(double a, double b) { return a < b || a != a ? a : b; }

/* exp(x) to about a unit in the last place, for x up to 709; 0 below -708, and NaN stays NaN.
 * exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by the Taylor polynomial of thirteenth degree. */
static inline __attribute__((always_inline)) double exponential(double x)
{
    const double round = 6755399441055744.0; /* 1.5 * 2^52: the last bits of a sum with it are a rounded integer */
    double inside = x < -708.0 ? -708.0 : x;
    double_bits shifted = {inside * 1.4426950408889634 + round}, found;
    double n = shifted.number - round, r = (inside - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    found.number = p * r * r + r + 1.0;
    found.bits += shifted.bits << 52;
    return x != x ? x : x < -708.0 ? 0.0 : found.number;
}

/* log(x) to about two units in the last place, for positive normal x; infinity and NaN stay.
 * x = 2^n m, m within a factor sqrt(2) of 1, and log(m) = 2 artanh(t), t = (m - 1) / (m + 1), |t| < 0.172. */
static inline __attribute__((always_inline)) double logarithm(double x)
{
    const double shift = 6755399441055744.0;
    double_bits of = {x}, power = {shift};
    int64_t exponent = (int64_t)(of.bits - UINT64_C(0x3fe6a09e667f3bcd)) >> 52; /* of x / sqrt(0.5), rounded down */
    of.bits -= (uint64_t)exponent << 52;
    power.bits += (uint64_t)exponent;
    double n = power.number - shift, t = (of.number - 1.0) / (of.number + 1.0), s = t * t;
    double p = 1.0 / 23.0;
    p = p * s + 1.0 / 21.0;
    p = p * s + 1.0 / 19.0;
    p = p * s + 1.0 / 17.0;
    p = p * s + 1.0 / 15.0;
    p = p * s + 1.0 / 13.0;
    p = p * s + 1.0 / 11.0;
    p = p * s + 1.0 / 9.0;
    p = p * s + 1.0 / 7.0;
    p = p * s + 1.0 / 5.0;
    p = p * s + 1.0 / 3.0;
    double found = n * 6.93147180369123816490e-01 + (n * 1.90821492927058770002e-10 + 2.0 * (t * s * p + t));
    return x - x != 0.0 ? x : found;
}

#endif
