/* Elementwise functions of float vectors: polynomials, exact to about 2 ulp. */

typedef int NAME(words) __attribute__((vector_size(VECTOR_BYTES), may_alias));

/* a where the mask is set, else b. */
static inline VECTOR NAME(pick)(NAME(words) mask, VECTOR a, VECTOR b) {
    return (VECTOR)((mask & (NAME(words))a) | (~mask & (NAME(words))b));
}

static inline VECTOR NAME(exponential)(VECTOR x) {
    const VECTOR zero = {0};
    x = NAME(pick)(x < -87.0f, zero - 87.0f, NAME(pick)(x > 88.0f, zero + 88.0f, x));
    const VECTOR shifted = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
    const VECTOR whole = shifted - 12582912.0f;
    const VECTOR rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
    VECTOR series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1;
    const NAME(words) exponent = ((NAME(words))shifted - (NAME(words))(zero + 12582912.0f) + 127) << 23;
    return series * (VECTOR)exponent;
}

static inline VECTOR NAME(hyperbolic_tangent)(VECTOR x) {
    const NAME(words) negative = x < 0;
    const VECTOR size = NAME(pick)(negative, -x, x), square = x * x;
    VECTOR series = square * -5.70498872745e-3f + 2.06390887954e-2f;
    series = series * square - 5.37397155531e-2f;
    series = series * square + 1.33314422036e-1f;
    series = series * square - 3.33332819422e-1f;
    const VECTOR large = 1 - 2 / (NAME(exponential)(2 * size) + 1);
    return NAME(pick)(size < 0.625f, x + x * square * series, NAME(pick)(negative, -large, large));
}

static inline REAL NAME(root)(REAL x) { return __builtin_sqrtf(x); }

static inline VECTOR NAME(larger)(VECTOR a, VECTOR b) { return NAME(pick)(a > b, a, b); }
