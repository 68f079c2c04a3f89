/* The belief's recurrence, which observed and imagined steps share: `StepWeights.next_belief` of modules/split.py. */

typedef struct {
    MATRIX belief_in, state_in, mix_own, mix_recurrent, gates;
    const REAL *belief_bias, *belief_scale, *state_bias, *state_scale, *mix_scale, *gates_bias;
    int belief, state, hidden, blocks;
} NAME(core);

static NAME(core) NAME(unpacked_core)(const sizes *size, const core_weights *w) {
    return (NAME(core)){
        NAME(unpacked)(w->belief_in), NAME(unpacked)(w->state_in), NAME(unpacked)(w->mix_own),
        NAME(unpacked)(w->mix_recurrent), NAME(unpacked)(w->gates),
        w->belief_bias, w->belief_scale, w->state_bias, w->state_scale, w->mix_scale, w->gates_bias,
        size->belief, size->variables * size->classes, size->hidden, size->blocks,
    };
}

static NAME(core) NAME(pack_core)(arena *memory, const sizes *size, const core_weights *w, int transposed) {
    NAME(core) core = NAME(unpacked_core)(size, w);
    MATRIX *all[] = {&core.belief_in, &core.state_in, &core.mix_own, &core.mix_recurrent, &core.gates};
    for (int i = 0; i < 5; i++) *all[i] = NAME(pack)(memory, all[i]->direct, transposed);
    return core;
}

/* What a step computes on its way, for n rows; the backward pass reads it again. */
typedef struct {
    ROWS inner;     /* [n, 2 hidden], before norm and silu */
    ROWS recurrent; /* [n, 2 hidden], after */
    ROWS mixed;     /* [n, D], before norm and silu; comes in with the action's share */
    ROWS hidden;    /* [n, D], after */
    ROWS gates;     /* [n, 3 D] */
} NAME(trace);

static NAME(trace) NAME(trace_room)(arena *memory, int n, const sizes *size) {
    const long h = size->hidden, d = size->belief;
    return (NAME(trace)){
        NAME(room)(memory, n, 2 * h), NAME(room)(memory, n, 2 * h), NAME(room)(memory, n, d),
        NAME(room)(memory, n, d),     NAME(room)(memory, n, 3 * d),
    };
}

static void NAME(next_belief)(const NAME(core) * w, int n, ROWS belief, ROWS state, const NAME(trace) * t, ROWS next) {
    const int h = w->hidden, own = w->belief / w->blocks;
    NAME(multiply)(n, belief, &w->belief_in, t->inner, w->belief_bias, 0);
    NAME(multiply)(n, state, &w->state_in, NAME(columns)(t->inner, h), w->state_bias, 0);
    NAME(norm_silu)(n, h, t->inner, w->belief_scale, t->recurrent);
    NAME(norm_silu)(n, h, NAME(columns)(t->inner, h), w->state_scale, NAME(columns)(t->recurrent, h));
    NAME(multiply)(n, belief, &w->mix_own, t->mixed, 0, 1);
    NAME(multiply)(n, t->recurrent, &w->mix_recurrent, t->mixed, 0, 1);
    NAME(norm_silu)(n, w->belief, t->mixed, w->mix_scale, t->hidden);
    NAME(multiply)(n, t->hidden, &w->gates, t->gates, w->gates_bias, 0);
    for (int r = 0; r < n; r++)
        for (int g = 0; g < w->blocks; g++) {
            const REAL *gate = t->gates.at + r * t->gates.stride + 3 * g * own;
            const REAL *old = belief.at + r * belief.stride + g * own;
            REAL *to = next.at + r * next.stride + g * own;
            for (int j = 0; j < own; j += LANES) {
                const int left = own - j;
                const VECTOR reset = NAME(sigmoid)(NAME(load)(gate + j, left));
                const VECTOR candidate = NAME(hyperbolic_tangent)(reset * NAME(load)(gate + own + j, left));
                const VECTOR update = NAME(sigmoid)(NAME(load)(gate + 2 * own + j, left) - 1);
                const VECTOR before = NAME(load)(old + j, left);
                NAME(store)(to + j, before + update * (candidate - before), left);
            }
        }
}

/* Gradient of the last lines of next_belief: from d_next to d_gates, and to d_belief what flows past the gates. */
static void NAME(gates_backward)(
    const NAME(core) * w, int n, ROWS belief, ROWS gates, ROWS d_next, ROWS d_gates, ROWS d_belief) {
    const int own = w->belief / w->blocks;
    for (int r = 0; r < n; r++)
        for (int g = 0; g < w->blocks; g++) {
            const REAL *gate = gates.at + r * gates.stride + 3 * g * own, *old = belief.at + r * belief.stride + g * own;
            const REAL *from = d_next.at + r * d_next.stride + g * own;
            REAL *d_gate = d_gates.at + r * d_gates.stride + 3 * g * own;
            REAL *to = d_belief.at + r * d_belief.stride + g * own;
            for (int j = 0; j < own; j += LANES) {
                const int left = own - j;
                const VECTOR raw = NAME(load)(gate + own + j, left), d = NAME(load)(from + j, left);
                const VECTOR reset = NAME(sigmoid)(NAME(load)(gate + j, left));
                const VECTOR candidate = NAME(hyperbolic_tangent)(reset * raw);
                const VECTOR update = NAME(sigmoid)(NAME(load)(gate + 2 * own + j, left) - 1);
                const VECTOR d_product = d * update * (1 - candidate * candidate);
                NAME(store)(d_gate + j, d_product * raw * reset * (1 - reset), left);
                NAME(store)(d_gate + own + j, d_product * reset, left);
                NAME(store)(d_gate + 2 * own + j,
                            d * (candidate - NAME(load)(old + j, left)) * update * (1 - update), left);
                NAME(store)(to + j, d * (1 - update), left);
            }
        }
}

/* Gradient of next_belief up to d_mixed, d_inner, and d_belief and d_state of the step before, from d_next. */
static void NAME(next_belief_backward)(
    const NAME(core) * w, int n, ROWS belief, const NAME(trace) * t, ROWS d_next, const NAME(trace) * d, ROWS d_belief,
    ROWS d_state, ROWS d_scales) {
    const int h = w->hidden;
    NAME(gates_backward)(w, n, belief, t->gates, d_next, d->gates, d_belief);
    NAME(multiply)(n, d->gates, &w->gates, d->hidden, 0, 0);
    NAME(norm_silu_backward)(n, w->belief, t->mixed, w->mix_scale, d->hidden, d->mixed, NAME(columns)(d_scales, 2 * h));
    NAME(multiply)(n, d->mixed, &w->mix_own, d_belief, 0, 1);
    NAME(multiply)(n, d->mixed, &w->mix_recurrent, d->recurrent, 0, 0);
    NAME(norm_silu_backward)(n, h, t->inner, w->belief_scale, d->recurrent, d->inner, d_scales);
    NAME(norm_silu_backward)(n, h, NAME(columns)(t->inner, h), w->state_scale, NAME(columns)(d->recurrent, h),
                             NAME(columns)(d->inner, h), NAME(columns)(d_scales, h));
    NAME(multiply)(n, d->inner, &w->belief_in, d_belief, 0, 1);
    NAME(multiply)(n, NAME(columns)(d->inner, h), &w->state_in, d_state, 0, 0);
}
