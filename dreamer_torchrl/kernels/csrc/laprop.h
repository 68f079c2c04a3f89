/* One step of LaProp, tensor by tensor: what learners/laprop.py says. */

static double NAME(size_of)(long count, const REAL *x) {
    double total = 0;
    for (long first = 0; first < count; first += 4096) { /* float sums of thousands, double ones of those */
        const long end = first + 4096 < count ? first + 4096 : count;
        VECTOR part = {0};
        long j = first;
        for (; j + LANES <= end; j += LANES) {
            const VECTOR value = NAME(load)(x + j, LANES);
            part += value * value;
        }
        for (; j < end; j++) total += (double)x[j] * x[j];
        total += NAME(sum)(part);
    }
    return sqrt(total);
}

static void NAME(laprop_tensors)(const void *given, long first, int count, arena *memory) {
    const laprop_arguments *a = given;
    for (const laprop_tensor *t = a->all + first; t < a->all + first + count; t++) {
        REAL *restrict param = t->param, *restrict mu = t->mu, *restrict nu = t->nu;
        const REAL *restrict grad = t->grad;
        const double n = *(float *)t->step += 1;
        const double warm = a->warmup > 0 && (n - 1) / a->warmup < 1 ? (n - 1) / a->warmup : 1;
        const REAL nu_factor = 1 / (1 - pow(a->beta2, n)), mu_factor = a->lr * warm / (1 - pow(a->beta1, n));
        const double size = NAME(size_of)(t->count, param);
        /* what is not a number stays so, here and below */
        const double excess = NAME(size_of)(t->count, grad) / (a->clip * (size < a->clip_floor ? a->clip_floor : size));
        const REAL divisor = excess < 1 ? 1 : excess;
        const REAL keep = a->beta2, gain = 1 - a->beta2, share = 1 - a->beta1, eps = a->eps;
        for (long j = 0; j < t->count; j++) {
            const REAL g = grad[j] / divisor;
            nu[j] = keep * nu[j] + gain * g * g;
            mu[j] += share * (g / (NAME(root)(nu[j] * nu_factor) + eps) - mu[j]);
            param[j] -= mu[j] * mu_factor;
        }
    }
}

int NAME(laprop)(const laprop_arguments *a) { return share_tiles(NAME(laprop_tensors), a, a->tensors, 1, a->threads); }
