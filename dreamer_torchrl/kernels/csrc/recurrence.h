/* The belief's recurrence, which observed and imagined steps share: `StepWeights.next_belief` of modules/split.py. */

typedef struct {
    const CoreWeights *w;
    Matrix belief_in, state_in, mix_own, mix_recurrent, gates;
    int belief, state, hidden, blocks;
} Core;

static Core unpacked_core(const Sizes *size, const CoreWeights *w) {
    return (Core){
        w, unpacked(w->belief_in.weight), unpacked(w->state_in.weight), unpacked(w->mix_own), unpacked(w->mix_recurrent),
        unpacked(w->gates), size->belief, size->variables * size->classes, size->hidden, size->blocks,
    };
}

static Core pack_core(Arena *memory, const Sizes *size, const CoreWeights *w, int transposed) {
    Core core = unpacked_core(size, w);
    Matrix *all[] = {&core.belief_in, &core.state_in, &core.mix_own, &core.mix_recurrent, &core.gates};
    for (int i = 0; i < 5; i++) *all[i] = pack(memory, all[i]->direct, transposed);
    return core;
}

/* What a step computes on its way, for n rows; the backward pass reads it again. */
typedef struct {
    Rows inner;     /* [n, 2 hidden], before norm and silu */
    Rows recurrent; /* [n, 2 hidden], after */
    Rows mixed;     /* [n, D], before norm and silu; comes in with the action's share */
    Rows hidden;    /* [n, D], after */
    Rows gates;     /* [n, 3 D] */
} Trace;

static Trace trace_room(Arena *memory, int n, const Sizes *size) {
    const long h = 2 * size->hidden, d = size->belief;
    return (Trace){room(memory, n, h), room(memory, n, h), room(memory, n, d), room(memory, n, d), room(memory, n, 3 * d)};
}

static void next_belief(const Core *core, int n, Rows belief, Rows state, const Trace *t, Rows next) {
    const CoreWeights *w = core->w;
    const int h = core->hidden, own = core->belief / core->blocks;
    multiply(n, belief, &core->belief_in, t->inner, w->belief_in.bias, 0);
    multiply(n, state, &core->state_in, columns(t->inner, h), w->state_in.bias, 0);
    norm_silu(n, h, t->inner, w->belief_in.scale, t->recurrent);
    norm_silu(n, h, columns(t->inner, h), w->state_in.scale, columns(t->recurrent, h));
    multiply(n, belief, &core->mix_own, t->mixed, 0, 1);
    multiply(n, t->recurrent, &core->mix_recurrent, t->mixed, 0, 1);
    norm_silu(n, core->belief, t->mixed, w->mix_scale, t->hidden);
    multiply(n, t->hidden, &core->gates, t->gates, w->gates_bias, 0);
    for (int r = 0; r < n; r++)
        for (int g = 0; g < core->blocks; g++) {
            const real *gate = row_of(t->gates, r) + 3 * g * own, *old = row_of(belief, r) + g * own;
            real *to = row_of(next, r) + g * own;
            for (int j = 0; j < own; j += LANES) {
                const int left = own - j;
                const Vector reset = sigmoid(load(gate + j, left));
                const Vector candidate = hyperbolic_tangent(reset * load(gate + own + j, left));
                const Vector update = sigmoid(load(gate + 2 * own + j, left) - 1), before = load(old + j, left);
                store(to + j, before + update * (candidate - before), left);
            }
        }
}

/* Gradient of the last lines of next_belief: from d_next to d_gates, and to d_belief what flows past the gates. */
static void gates_backward(const Core *core, int n, Rows belief, Rows gates, Rows d_next, Rows d_gates, Rows d_belief) {
    const int own = core->belief / core->blocks;
    for (int r = 0; r < n; r++)
        for (int g = 0; g < core->blocks; g++) {
            const real *gate = row_of(gates, r) + 3 * g * own, *old = row_of(belief, r) + g * own;
            const real *from = row_of(d_next, r) + g * own;
            real *d_gate = row_of(d_gates, r) + 3 * g * own, *to = row_of(d_belief, r) + g * own;
            for (int j = 0; j < own; j += LANES) {
                const int left = own - j;
                const Vector raw = load(gate + own + j, left), d = load(from + j, left);
                const Vector reset = sigmoid(load(gate + j, left)), candidate = hyperbolic_tangent(reset * raw);
                const Vector update = sigmoid(load(gate + 2 * own + j, left) - 1);
                const Vector d_product = d * update * (1 - candidate * candidate);
                store(d_gate + j, d_product * raw * reset * (1 - reset), left);
                store(d_gate + own + j, d_product * reset, left);
                store(d_gate + 2 * own + j, d * (candidate - load(old + j, left)) * update * (1 - update), left);
                store(to + j, d * (1 - update), left);
            }
        }
}

/* Gradient of next_belief up to d_mixed, d_inner, and d_belief and d_state of the step before, from d_next. */
static void next_belief_backward(const Core *core, int n, Rows belief, const Trace *t, Rows d_next, const Trace *d,
                                 Rows d_belief, Rows d_state, Rows d_scales) {
    const CoreWeights *w = core->w;
    const int h = core->hidden;
    gates_backward(core, n, belief, t->gates, d_next, d->gates, d_belief);
    multiply(n, d->gates, &core->gates, d->hidden, 0, 0);
    norm_silu_backward(n, core->belief, t->mixed, w->mix_scale, d->hidden, d->mixed, columns(d_scales, 2 * h));
    multiply(n, d->mixed, &core->mix_own, d_belief, 0, 1);
    multiply(n, d->mixed, &core->mix_recurrent, d->recurrent, 0, 0);
    norm_silu_backward(n, h, t->inner, w->belief_in.scale, d->recurrent, d->inner, d_scales);
    norm_silu_backward(n, h, columns(t->inner, h), w->state_in.scale, columns(d->recurrent, h), columns(d->inner, h),
                       columns(d_scales, h));
    multiply(n, d->inner, &core->belief_in, d_belief, 0, 1);
    multiply(n, columns(d->inner, h), &core->state_in, d_state, 0, 0);
}
