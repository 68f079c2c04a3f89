/* Elementwise functions of float vectors: polynomials, exact to about 2 ulp. */

typedef int Words __attribute__((vector_size(VECTOR_BYTES), may_alias));

/* a where the mask is set, else b. */
static inline Vector pick(Words mask, Vector a, Vector b) { return (Vector)((mask & (Words)a) | (~mask & (Words)b)); }

static inline Vector exponential(Vector x) {
    const Vector zero = {0};
    x = pick(x < -87.0f, zero - 87.0f, pick(x > 88.0f, zero + 88.0f, x));
    const Vector shifted = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
    const Vector whole = shifted - 12582912.0f;
    const Vector rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
    Vector series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1;
    const Words exponent = ((Words)shifted - (Words)(zero + 12582912.0f) + 127) << 23;
    return series * (Vector)exponent;
}

static inline Vector hyperbolic_tangent(Vector x) {
    const Words negative = x < 0;
    const Vector size = pick(negative, -x, x), square = x * x;
    Vector series = square * -5.70498872745e-3f + 2.06390887954e-2f;
    series = series * square - 5.37397155531e-2f;
    series = series * square + 1.33314422036e-1f;
    series = series * square - 3.33332819422e-1f;
    const Vector large = 1 - 2 / (exponential(2 * size) + 1);
    return pick(size < 0.625f, x + x * square * series, pick(negative, -large, large));
}

static inline real root(real x) { return __builtin_sqrtf(x); }
static inline Vector larger(Vector a, Vector b) { return pick(a > b, a, b); }
