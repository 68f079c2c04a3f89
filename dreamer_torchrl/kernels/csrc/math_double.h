/* Elementwise functions of double vectors, by the C library: for checking gradients, not for speed. */

static inline VECTOR NAME(exponential)(VECTOR x) {
    for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
    return x;
}

static inline VECTOR NAME(hyperbolic_tangent)(VECTOR x) {
    for (int i = 0; i < LANES; i++) x[i] = tanh(x[i]);
    return x;
}

static inline REAL NAME(root)(REAL x) { return sqrt(x); }

static inline VECTOR NAME(larger)(VECTOR a, VECTOR b) {
    for (int i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
