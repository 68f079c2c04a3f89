/* What is done to each row of a matrix alone: norm and silu, and two-hot predictions; forwards and backwards. */

static void NAME(norm_silu_tile)(const void *given, long row, int n, arena *memory) {
    const norm_arguments *a = given;
    const ROWS x = {(REAL *)a->x + row * a->width, a->width}, y = {(REAL *)a->y + row * a->width, a->width};
    NAME(norm_silu)(n, a->width, x, a->scale, y);
}

int NAME(norm_silu_rows)(const norm_arguments *a) { return share(NAME(norm_silu_tile), a, a->rows, 64, 256, a->threads); }

static void NAME(norm_silu_backward_tile)(const void *given, long row, int n, arena *memory) {
    const norm_arguments *a = given;
    const long tile = row / a->tile, width = a->width;
    const ROWS x = {(REAL *)a->x + row * width, width}, d_y = {(REAL *)a->d_y + row * width, width};
    const ROWS d_x = {(REAL *)a->d_x + row * width, width};
    NAME(norm_silu_backward)(n, width, x, a->scale, d_y, d_x, (ROWS){(REAL *)a->d_scales + tile * width, 0});
}

/* d_scales [tiles, width] comes in as zeros. */
int NAME(norm_silu_backward_rows)(const norm_arguments *a) {
    return share_tiles(NAME(norm_silu_backward_tile), a, a->rows, a->tile, a->threads);
}

/* Write exp(x - max) of a row, and give its sum and max. */
static REAL NAME(exponentials)(int count, const REAL *x, REAL *out, REAL *largest) {
    VECTOR most = NAME(load)(x, LANES < count ? LANES : count), total = {0};
    REAL top = x[0];
    for (int j = 0; j + LANES <= count; j += LANES) {
        const VECTOR value = NAME(load)(x + j, LANES);
        most = NAME(larger)(value, most);
    }
    for (int k = 0; k < (count < LANES ? count : LANES); k++)
        if (!(most[k] <= top)) top = most[k];
    for (int k = count / LANES * LANES; k < count; k++)
        if (!(x[k] <= top)) top = x[k];
    for (int j = 0; j < count; j += LANES) {
        const int left = count - j;
        const VECTOR value = NAME(exponential)(NAME(load)(x + j, left) - top);
        NAME(store)(out + j, value, left);
        if (left >= LANES) total += value;
        else
            for (int k = 0; k < left; k++) total[k] += value[k];
    }
    *largest = top;
    return NAME(sum)(total);
}

static void NAME(two_hot_mean_tile)(const void *given, long row, int n, arena *memory) {
    const two_hot_arguments *a = given;
    const REAL *bins = a->bins;
    const int count = a->count, half = count / 2;
    REAL *probs = take(memory, count * sizeof(REAL)), largest;
    for (int r = 0; r < n; r++) {
        const REAL total = NAME(exponentials)(count, (const REAL *)a->logits + (row + r) * count, probs, &largest);
        for (int j = 0; j < count; j++) probs[j] *= bins[j];
        /* Mirrored bins first: uniform probabilities give exactly 0, as no product is rounded otherwise than the other. */
        REAL mean = 0, sums[4] = {0}; /* that do not wait for one another */
        int j = 0;
        for (; j + 4 <= half; j += 4)
            for (int i = 0; i < 4; i++) sums[i] += probs[half - 1 - j - i] + probs[count - half + j + i];
        for (; j < half; j++) mean += probs[half - 1 - j] + probs[count - half + j];
        for (int i = 0; i < 4; i++) mean += sums[i];
        ((REAL *)a->mean)[row + r] = mean / total;
    }
}

int NAME(two_hot_mean)(const two_hot_arguments *a) { return share(NAME(two_hot_mean_tile), a, a->rows, 64, 256, a->threads); }

/* The bins below and above a value, and the weight of the one above; values outside are clipped. */
static void NAME(neighbours)(int count, const REAL *bins, REAL value, int *below, int *above, REAL *weight) {
    int low = 0, high = count; /* the first bin above the value lies in [low, high] */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (bins[middle] <= value) low = middle + 1;
        else high = middle;
    }
    *below = low > 0 ? low - 1 : 0;
    *above = low < count ? low : count - 1;
    const REAL to_below = fabs(bins[*below] - value), to_above = fabs(bins[*above] - value);
    *weight = *below == *above && value == value ? 0 : to_below / (to_below + to_above);
}

static void NAME(two_hot_loss_tile)(const void *given, long row, int n, arena *memory) {
    const two_hot_arguments *a = given;
    const int count = a->count;
    REAL *probs = take(memory, count * sizeof(REAL)), largest, weight;
    int below, above;
    for (int r = 0; r < n; r++) {
        const REAL *logits = (const REAL *)a->logits + (row + r) * count;
        const REAL total = NAME(exponentials)(count, logits, probs, &largest), normalizer = largest + log(total);
        REAL loss = 0;
        for (long t = 0; t < a->targets; t++) {
            NAME(neighbours)(count, a->bins, ((const REAL *)a->target)[(row + r) * a->targets + t], &below, &above, &weight);
            const REAL log_prob = logits[below] + weight * (logits[above] - logits[below]) - normalizer;
            loss -= a->weights[t] * log_prob;
        }
        ((REAL *)a->loss)[row + r] = loss;
    }
}

int NAME(two_hot_loss)(const two_hot_arguments *a) { return share(NAME(two_hot_loss_tile), a, a->rows, 64, 256, a->threads); }

static void NAME(two_hot_backward_tile)(const void *given, long row, int n, arena *memory) {
    const two_hot_arguments *a = given;
    const int count = a->count;
    REAL largest, weight, all = 0;
    int below, above;
    for (long t = 0; t < a->targets; t++) all += a->weights[t];
    for (int r = 0; r < n; r++) {
        REAL *d = (REAL *)a->d_logits + (row + r) * count;
        const REAL d_loss = ((const REAL *)a->d_loss)[row + r];
        const REAL total = NAME(exponentials)(count, (const REAL *)a->logits + (row + r) * count, d, &largest);
        const REAL factor = all * d_loss / total;
        for (int j = 0; j < count; j++) d[j] *= factor;
        for (long t = 0; t < a->targets; t++) {
            NAME(neighbours)(count, a->bins, ((const REAL *)a->target)[(row + r) * a->targets + t], &below, &above, &weight);
            d[below] -= a->weights[t] * d_loss * (1 - weight);
            d[above] -= a->weights[t] * d_loss * weight;
        }
    }
}

int NAME(two_hot_backward)(const two_hot_arguments *a) {
    return share(NAME(two_hot_backward_tile), a, a->rows, 64, 256, a->threads);
}
