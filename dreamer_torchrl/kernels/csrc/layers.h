/* Layers and distributions of one type of number: what modules/layers.py and modules/distributions.py say. */

static inline VECTOR NAME(sigmoid)(VECTOR x) { return 1 / (1 + NAME(exponential)(-x)); }

/* One over the root mean square. */
static inline REAL NAME(inverse_size)(int width, const REAL *x) {
    VECTOR squares = {0};
    for (int j = 0; j < width; j += LANES) {
        const VECTOR value = NAME(load)(x + j, width - j);
        squares += value * value;
    }
    return 1 / NAME(root)(NAME(sum)(squares) / width + (REAL)1e-4);
}

/* y = silu(norm(x) * scale): root-mean-square norm over each row of `width`. */
static void NAME(norm_silu)(int n, int width, ROWS x, const REAL *scale, ROWS y) {
    for (int r = 0; r < n; r++) {
        const REAL *from = x.at + r * x.stride, inverse = NAME(inverse_size)(width, from);
        for (int j = 0; j < width; j += LANES) {
            const int left = width - j;
            const VECTOR normed = NAME(load)(from + j, left) * inverse * NAME(load)(scale + j, left);
            NAME(store)(y.at + r * y.stride + j, normed * NAME(sigmoid)(normed), left);
        }
    }
}

/* The gradient of norm_silu: from d_y to d_x; what scale gets is added to d_scale, [n, width]. */
static void NAME(norm_silu_backward)(int n, int width, ROWS x, const REAL *scale, ROWS d_y, ROWS d_x, ROWS d_scale) {
    for (int r = 0; r < n; r++) {
        const REAL *from = x.at + r * x.stride, inverse = NAME(inverse_size)(width, from);
        REAL *to = d_x.at + r * d_x.stride, *gathered = d_scale.at + r * d_scale.stride;
        VECTOR along = {0};
        for (int j = 0; j < width; j += LANES) {
            const int left = width - j;
            const VECTOR unit = NAME(load)(from + j, left) * inverse, factor = NAME(load)(scale + j, left);
            const VECTOR normed = unit * factor, gate = NAME(sigmoid)(normed);
            const VECTOR d_normed = NAME(load)(d_y.at + r * d_y.stride + j, left) * gate * (1 + normed * (1 - gate));
            NAME(store)(gathered + j, NAME(load)(gathered + j, left) + d_normed * unit, left);
            NAME(store)(to + j, d_normed * factor, left);
            along += d_normed * factor * unit;
        }
        const REAL share = NAME(sum)(along) / width;
        for (int j = 0; j < width; j += LANES) {
            const int left = width - j;
            const VECTOR unit = NAME(load)(from + j, left) * inverse;
            NAME(store)(to + j, inverse * (NAME(load)(to + j, left) - unit * share), left);
        }
    }
}

/* Softmax of each variable's logits. */
static void NAME(softmax)(int variables, int classes, const REAL *logits, REAL *probs) {
    for (int s = 0; s < variables; s++) {
        REAL largest = logits[s * classes];
        for (int k = 1; k < classes; k++)
            if (logits[s * classes + k] > largest) largest = logits[s * classes + k];
        for (int k = 0; k < classes; k++) probs[s * classes + k] = logits[s * classes + k] - largest;
    }
    const int size = variables * classes; /* few classes fill no vector, those of all variables do */
    for (int j = 0; j < size; j += LANES)
        NAME(store)(probs + j, NAME(exponential)(NAME(load)(probs + j, size - j)), size - j);
    for (int s = 0; s < variables; s++) {
        REAL total = 0;
        for (int k = 0; k < classes; k++) total += probs[s * classes + k];
        for (int k = 0; k < classes; k++) probs[s * classes + k] /= total;
    }
}

/* Choose a class of each variable by inverting its cumulative distribution, which is mixed with the uniform one. */
static void NAME(choose)(int variables, int classes, const REAL *probs, REAL unimix, const REAL *noise, REAL *one_hot) {
    const REAL share = 1 - unimix, floor = unimix / classes;
    for (int s = 0; s < variables; s++, probs += classes, one_hot += classes) {
        REAL total = 0, passed = 0;
        for (int k = 0; k < classes; k++) total += share * probs[k] + floor;
        int chosen = 0;
        for (int k = 0; k < classes - 1; k++) {
            passed += share * probs[k] + floor;
            chosen += passed <= noise[s] * total;
        }
        const REAL nothing = total - total; /* but no number where the probabilities are none */
        for (int k = 0; k < classes; k++) one_hot[k] = (k == chosen) + nothing;
    }
}
