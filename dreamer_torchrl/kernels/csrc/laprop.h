/* One step of LaProp, tensor by tensor: what learners/laprop.py says. */

static double size_of(long count, const real *x) {
    double total = 0;
    for (long first = 0; first < count; first += 4096) { /* float sums of thousands, double ones of those */
        const long end = first + 4096 < count ? first + 4096 : count;
        Vector part = {0};
        long j = first;
        for (; j + LANES <= end; j += LANES) {
            const Vector value = load(x + j, LANES);
            part += value * value;
        }
        for (; j < end; j++) total += (double)x[j] * x[j];
        total += sum(part);
    }
    return sqrt(total);
}

static void laprop_tensors(const void *given, long first, int count, Arena *memory) {
    const LapropArguments *a = given;
    for (const LapropTensor *t = a->all + first; t < a->all + first + count; t++) {
        real *restrict param = t->param, *restrict mu = t->mu, *restrict nu = t->nu;
        const real *restrict grad = t->grad;
        const double n = *t->step += 1;
        const double warm = a->warmup > 0 && (n - 1) / a->warmup < 1 ? (n - 1) / a->warmup : 1;
        const real nu_factor = 1 / (1 - pow(a->beta2, n)), mu_factor = a->lr * warm / (1 - pow(a->beta1, n));
        const double size = size_of(t->count, param);
        /* what is not a number stays so, here and below */
        const double excess = size_of(t->count, grad) / (a->clip * (size < a->clip_floor ? a->clip_floor : size));
        const real divisor = excess < 1 ? 1 : excess;
        const real keep = a->beta2, gain = 1 - a->beta2, share = 1 - a->beta1, eps = a->eps;
        for (long j = 0; j < t->count; j++) {
            const real g = grad[j] / divisor;
            nu[j] = keep * nu[j] + gain * g * g;
            mu[j] += share * (g / (root(nu[j] * nu_factor) + eps) - mu[j]);
            param[j] -= mu[j] * mu_factor;
        }
    }
}

int laprop(const LapropArguments *a) { return share_tiles(laprop_tensors, a, a->tensors, 1, a->threads); }
