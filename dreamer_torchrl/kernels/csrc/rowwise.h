/* What is done to each row of a matrix alone: norm and silu, and two-hot predictions; forwards and backwards. */

static void norm_silu_tile(const void *given, long row, int n, Arena *memory) {
    const NormArguments *a = given;
    norm_silu(n, a->width, rows_of(a->x, row, a->width), a->scale, rows_of(a->y, row, a->width));
}

int norm_silu_rows(const NormArguments *a) { return share(norm_silu_tile, a, a->rows, 64, 256, a->threads); }

static void norm_silu_backward_tile(const void *given, long row, int n, Arena *memory) {
    const NormArguments *a = given;
    const long width = a->width;
    const Rows x = rows_of(a->x, row, width), d_scale = {a->d_scales + row / a->tile * width, 0};
    norm_silu_backward(n, width, x, a->scale, rows_of(a->d_y, row, width), rows_of(a->d_x, row, width), d_scale);
}

int norm_silu_backward_rows(const NormArguments *a) {
    return share_tiles(norm_silu_backward_tile, a, a->rows, a->tile, a->threads);
}

/* Write exp(x - max) of a row, and give its sum and max. */
static real exponentials(int count, const real *x, real *out, real *largest) {
    Vector most = load(x, LANES < count ? LANES : count), total = {0};
    real top = x[0];
    for (int j = 0; j + LANES <= count; j += LANES) most = larger(load(x + j, LANES), most);
    for (int k = 0; k < (count < LANES ? count : LANES); k++)
        if (!(most[k] <= top)) top = most[k];
    for (int k = count / LANES * LANES; k < count; k++)
        if (!(x[k] <= top)) top = x[k];
    for (int j = 0; j < count; j += LANES) {
        const int left = count - j;
        const Vector value = exponential(load(x + j, left) - top);
        store(out + j, value, left);
        if (left >= LANES) total += value;
        else
            for (int k = 0; k < left; k++) total[k] += value[k];
    }
    *largest = top;
    return sum(total);
}

static void two_hot_mean_tile(const void *given, long row, int n, Arena *memory) {
    const TwoHotArguments *a = given;
    const real *bins = a->bins;
    const int count = a->count, half = count / 2;
    real *probs = take(memory, count * sizeof(real)), largest;
    for (int r = 0; r < n; r++) {
        const real total = exponentials(count, a->logits + (row + r) * count, probs, &largest);
        for (int j = 0; j < count; j++) probs[j] *= bins[j];
        /* Mirrored bins first: uniform probabilities give exactly 0, as no product is rounded otherwise than the other. */
        real mean = 0, sums[4] = {0}; /* that do not wait for one another */
        int j = 0;
        for (; j + 4 <= half; j += 4)
            for (int i = 0; i < 4; i++) sums[i] += probs[half - 1 - j - i] + probs[count - half + j + i];
        for (; j < half; j++) mean += probs[half - 1 - j] + probs[count - half + j];
        for (int i = 0; i < 4; i++) mean += sums[i];
        a->mean[row + r] = mean / total;
    }
}

int two_hot_mean(const TwoHotArguments *a) { return share(two_hot_mean_tile, a, a->rows, 64, 256, a->threads); }

/* The bins below and above a value, and the weight of the one above; values outside are clipped. */
static void neighbours(int count, const real *bins, real value, int *below, int *above, real *weight) {
    int low = 0, high = count; /* the first bin above the value lies in [low, high] */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (bins[middle] <= value) low = middle + 1;
        else high = middle;
    }
    *below = low > 0 ? low - 1 : 0;
    *above = low < count ? low : count - 1;
    const real to_below = fabs(bins[*below] - value), to_above = fabs(bins[*above] - value);
    *weight = *below == *above && value == value ? 0 : to_below / (to_below + to_above);
}

static void two_hot_loss_tile(const void *given, long row, int n, Arena *memory) {
    const TwoHotArguments *a = given;
    const int count = a->count;
    real *probs = take(memory, count * sizeof(real)), largest, weight;
    int below, above;
    for (int r = 0; r < n; r++) {
        const real *logits = a->logits + (row + r) * count;
        const real total = exponentials(count, logits, probs, &largest), normalizer = largest + log(total);
        real loss = 0;
        for (long t = 0; t < a->targets; t++) {
            neighbours(count, a->bins, a->target[(row + r) * a->targets + t], &below, &above, &weight);
            const real log_prob = logits[below] + weight * (logits[above] - logits[below]) - normalizer;
            loss -= a->weights[t] * log_prob;
        }
        a->loss[row + r] = loss;
    }
}

int two_hot_loss(const TwoHotArguments *a) { return share(two_hot_loss_tile, a, a->rows, 64, 256, a->threads); }

static void two_hot_backward_tile(const void *given, long row, int n, Arena *memory) {
    const TwoHotArguments *a = given;
    const int count = a->count;
    real largest, weight, all = 0;
    int below, above;
    for (long t = 0; t < a->targets; t++) all += a->weights[t];
    for (int r = 0; r < n; r++) {
        real *d = a->d_logits + (row + r) * count;
        const real d_loss = a->d_loss[row + r];
        const real total = exponentials(count, a->logits + (row + r) * count, d, &largest);
        const real factor = all * d_loss / total;
        for (int j = 0; j < count; j++) d[j] *= factor;
        for (long t = 0; t < a->targets; t++) {
            neighbours(count, a->bins, a->target[(row + r) * a->targets + t], &below, &above, &weight);
            d[below] -= a->weights[t] * d_loss * (1 - weight);
            d[above] -= a->weights[t] * d_loss * weight;
        }
    }
}

int two_hot_backward(const TwoHotArguments *a) { return share(two_hot_backward_tile, a, a->rows, 64, 256, a->threads); }
