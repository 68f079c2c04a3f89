/* Layers and distributions: what modules/layers.py and modules/distributions.py say. */

static inline Vector sigmoid(Vector x) { return 1 / (1 + exponential(-x)); }

static inline real inverse_size(int width, const real *x) {
    Vector squares = {0};
    for (int j = 0; j < width; j += LANES) {
        const Vector value = load(x + j, width - j);
        squares += value * value;
    }
    return 1 / root(sum(squares) / width + (real)1e-4);
}

/* y = silu(norm(x) * scale): root-mean-square norm over each row of `width`. */
static void norm_silu(int n, int width, Rows x, const real *scale, Rows y) {
    for (int r = 0; r < n; r++) {
        const real *from = row_of(x, r), inverse = inverse_size(width, from);
        for (int j = 0; j < width; j += LANES) {
            const int left = width - j;
            const Vector normed = load(from + j, left) * inverse * load(scale + j, left);
            store(row_of(y, r) + j, normed * sigmoid(normed), left);
        }
    }
}

/* The gradient of norm_silu: from d_y to d_x; what scale gets is added to d_scale, [n, width]. */
static void norm_silu_backward(int n, int width, Rows x, const real *scale, Rows d_y, Rows d_x, Rows d_scale) {
    for (int r = 0; r < n; r++) {
        const real *from = row_of(x, r), inverse = inverse_size(width, from);
        real *to = row_of(d_x, r), *gathered = row_of(d_scale, r);
        Vector along = {0};
        for (int j = 0; j < width; j += LANES) {
            const int left = width - j;
            const Vector unit = load(from + j, left) * inverse, factor = load(scale + j, left);
            const Vector normed = unit * factor, gate = sigmoid(normed);
            const Vector d_normed = load(row_of(d_y, r) + j, left) * gate * (1 + normed * (1 - gate));
            store(gathered + j, load(gathered + j, left) + d_normed * unit, left);
            store(to + j, d_normed * factor, left);
            along += d_normed * factor * unit;
        }
        const real share = sum(along) / width;
        for (int j = 0; j < width; j += LANES) {
            const int left = width - j;
            const Vector unit = load(from + j, left) * inverse;
            store(to + j, inverse * (load(to + j, left) - unit * share), left);
        }
    }
}

/* Softmax of each variable's logits. */
static void softmax(int variables, int classes, const real *logits, real *probs) {
    for (int s = 0; s < variables; s++) {
        real largest = logits[s * classes];
        for (int k = 1; k < classes; k++)
            if (logits[s * classes + k] > largest) largest = logits[s * classes + k];
        for (int k = 0; k < classes; k++) probs[s * classes + k] = logits[s * classes + k] - largest;
    }
    const int size = variables * classes; /* few classes fill no vector, those of all variables do */
    for (int j = 0; j < size; j += LANES) store(probs + j, exponential(load(probs + j, size - j)), size - j);
    for (int s = 0; s < variables; s++) {
        real total = 0;
        for (int k = 0; k < classes; k++) total += probs[s * classes + k];
        for (int k = 0; k < classes; k++) probs[s * classes + k] /= total;
    }
}

/* Choose a class of each variable by inverting its cumulative distribution, which is mixed with the uniform one. */
static void choose(int variables, int classes, const real *probs, real unimix, const real *noise, real *one_hot) {
    const real share = 1 - unimix, floor = unimix / classes;
    for (int s = 0; s < variables; s++, probs += classes, one_hot += classes) {
        real total = 0, passed = 0;
        for (int k = 0; k < classes; k++) total += share * probs[k] + floor;
        int chosen = 0;
        for (int k = 0; k < classes - 1; k++) {
            passed += share * probs[k] + floor;
            chosen += passed <= noise[s] * total;
        }
        const real nothing = total - total; /* but no number where the probabilities are none */
        for (int k = 0; k < classes; k++) one_hot[k] = (k == chosen) + nothing;
    }
}
