/* Elementwise functions of double vectors, by the C library: for checking gradients, not for speed. */

static inline Vector exponential(Vector x) {
    for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
    return x;
}

static inline Vector hyperbolic_tangent(Vector x) {
    for (int i = 0; i < LANES; i++) x[i] = tanh(x[i]);
    return x;
}

static inline real root(real x) { return sqrt(x); }

static inline Vector larger(Vector a, Vector b) {
    for (int i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
