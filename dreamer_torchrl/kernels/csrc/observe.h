/* A whole observed sequence, forwards and backwards: what `observe` of modules/rollout.py says. Sequences are cut into
 * tiles, and each tile goes through all its steps in one thread: no thread waits for another, and what a sequence gets
 * does not depend on how many threads there are. */

typedef struct {
    const observe_arguments *a;
    NAME(core) core;
    MATRIX posterior_own, posterior_logits;
} NAME(observe_job);

/* Rows of a [batch, time, width] tensor at one time. */
static inline ROWS NAME(at)(const observe_arguments *a, const void *tensor, long row, long time, long width) {
    return (ROWS){(REAL *)tensor + (row * a->time + time) * width, a->time * width};
}

static NAME(trace) NAME(trace_at)(const observe_arguments *a, const trace_tensors *t, long row, long time) {
    const long h = a->size.hidden, d = a->size.belief;
    return (NAME(trace)){
        NAME(at)(a, t->inner, row, time, 2 * h),  NAME(at)(a, t->recurrent, row, time, 2 * h),
        NAME(at)(a, t->mixed, row, time, d),      NAME(at)(a, t->hidden, row, time, d),
        NAME(at)(a, t->gates, row, time, 3 * d),
    };
}

static void NAME(copy_trace)(int n, const sizes *size, const NAME(trace) * from, const NAME(trace) * to) {
    NAME(copy)(n, 2 * size->hidden, from->inner, to->inner);
    NAME(copy)(n, 2 * size->hidden, from->recurrent, to->recurrent);
    NAME(copy)(n, size->belief, from->mixed, to->mixed);
    NAME(copy)(n, size->belief, from->hidden, to->hidden);
    NAME(copy)(n, 3 * size->belief, from->gates, to->gates);
}

static void NAME(observe_tile)(const void *given, long row, int n, arena *memory) {
    const NAME(observe_job) *job = given;
    const observe_arguments *a = job->a;
    const int d = a->size.belief, s = job->core.state, h = a->size.hidden;
    const ROWS belief = NAME(room)(memory, n, d), state = NAME(room)(memory, n, s), next = NAME(room)(memory, n, d);
    const ROWS inner = NAME(room)(memory, n, h), hidden = NAME(room)(memory, n, h);
    const NAME(trace) trace = NAME(trace_room)(memory, n, &a->size);
    for (long time = 0; time < a->time; time++) {
        const ROWS start = {(REAL *)a->belief + row * d, d}, start_state = {(REAL *)a->state + row * s, s};
        const ROWS chosen = NAME(at)(a, a->states, row, time, s), logits = NAME(at)(a, a->logits, row, time, s);
        const ROWS kept = NAME(at)(a, a->kept, row, time, 1), probs = NAME(at)(a, a->probs, row, time, s);
        NAME(masked)(n, d, time ? next : start, kept, belief);
        NAME(masked)(n, s, time ? NAME(at)(a, a->states, row, time - 1, s) : start_state, kept, state);
        NAME(copy)(n, d, NAME(at)(a, a->action_share, row, time, d), trace.mixed);
        NAME(next_belief)(&job->core, n, belief, state, &trace, next);
        NAME(copy)(n, h, NAME(at)(a, a->encoded_share, row, time, h), inner);
        NAME(multiply)(n, next, &job->posterior_own, inner, 0, 1);
        NAME(norm_silu)(n, h, inner, a->posterior_scale, hidden);
        NAME(multiply)(n, hidden, &job->posterior_logits, logits, a->posterior_logits_bias, 0);
        const ROWS noise = NAME(at)(a, a->noise, row, time, a->size.variables);
        for (int r = 0; r < n; r++) {
            REAL *to = probs.at + r * probs.stride;
            NAME(softmax)(a->size.variables, a->size.classes, logits.at + r * logits.stride, to);
            NAME(choose)(a->size.variables, a->size.classes, to, a->unimix, noise.at + r * noise.stride,
                         chosen.at + r * chosen.stride);
        }
        const NAME(trace) kept_trace = NAME(trace_at)(a, &a->trace, row, time);
        NAME(copy_trace)(n, &a->size, &trace, &kept_trace);
        NAME(copy)(n, d, next, NAME(at)(a, a->beliefs, row, time, d));
        NAME(copy)(n, h, inner, NAME(at)(a, a->posterior_inner, row, time, h));
        NAME(copy)(n, h, hidden, NAME(at)(a, a->posterior_hidden, row, time, h));
    }
}

/* To d_logits is added what the state, a straight-through sample, passes on to the logits. */
static void NAME(sample_backward)(const observe_arguments *a, int n, ROWS probs, ROWS d_state, ROWS d_logits) {
    const int classes = a->size.classes;
    const REAL share = 1 - (REAL)a->unimix;
    for (int r = 0; r < n; r++)
        for (int first = 0; first < a->size.variables * classes; first += classes) {
            const REAL *p = probs.at + r * probs.stride + first, *d = d_state.at + r * d_state.stride + first;
            REAL *to = d_logits.at + r * d_logits.stride + first, mean = 0;
            for (int k = 0; k < classes; k++) mean += p[k] * d[k];
            for (int k = 0; k < classes; k++) to[k] += share * p[k] * (d[k] - mean);
        }
}

static void NAME(observe_backward_tile)(const void *given, long row, int n, arena *memory) {
    const NAME(observe_job) *job = given;
    const observe_arguments *a = job->a;
    const int d = a->size.belief, s = job->core.state, h = a->size.hidden;
    const ROWS belief = NAME(room)(memory, n, d), next = NAME(room)(memory, n, d);
    const ROWS d_belief = NAME(room)(memory, n, d), d_state = NAME(room)(memory, n, s);
    const ROWS d_logits = NAME(room)(memory, n, s), d_hidden = NAME(room)(memory, n, h);
    const ROWS d_inner = NAME(room)(memory, n, h);
    const NAME(trace) d_trace = NAME(trace_room)(memory, n, &a->size);
    const ROWS d_start = {(REAL *)a->d_belief + row * d, d}, d_start_state = {(REAL *)a->d_state + row * s, s};
    const ROWS d_scales = {(REAL *)a->d_scales + row * (3 * h + d), 3 * h + d};
    const ROWS start = {(REAL *)a->belief + row * d, d};
    NAME(copy)(n, d, d_start, d_belief);
    NAME(copy)(n, s, d_start_state, d_state);
    for (long time = a->time - 1; time >= 0; time--) {
        const ROWS kept = NAME(at)(a, a->kept, row, time, 1), d_given = NAME(at)(a, a->d_logits, row, time, s);
        const NAME(trace) trace = NAME(trace_at)(a, &a->trace, row, time);
        const NAME(trace) d_kept = NAME(trace_at)(a, &a->d_trace, row, time);
        NAME(add)(n, s, NAME(at)(a, a->d_states, row, time, s), d_state);
        NAME(copy)(n, s, d_given, d_logits);
        NAME(sample_backward)(a, n, NAME(at)(a, a->probs, row, time, s), d_state, d_logits);
        NAME(multiply)(n, d_logits, &job->posterior_logits, d_hidden, 0, 0);
        NAME(norm_silu_backward)(n, h, NAME(at)(a, a->posterior_inner, row, time, h), a->posterior_scale, d_hidden,
                                 d_inner, NAME(columns)(d_scales, 2 * h + d));
        NAME(copy)(n, d, d_belief, next);
        NAME(add)(n, d, NAME(at)(a, a->d_beliefs, row, time, d), next);
        NAME(multiply)(n, d_inner, &job->posterior_own, next, 0, 1);
        NAME(masked)(n, d, time ? NAME(at)(a, a->beliefs, row, time - 1, d) : start, kept, belief);
        NAME(next_belief_backward)(&job->core, n, belief, &trace, next, &d_trace, d_belief, d_state, d_scales);
        NAME(masked)(n, d, d_belief, kept, d_belief);
        NAME(masked)(n, s, d_state, kept, d_state);
        NAME(copy)(n, s, d_logits, d_given);
        NAME(copy)(n, h, d_inner, NAME(at)(a, a->d_posterior_inner, row, time, h));
        NAME(copy)(n, 2 * h, d_trace.inner, d_kept.inner);
        NAME(copy)(n, d, d_trace.mixed, d_kept.mixed);
        NAME(copy)(n, 3 * d, d_trace.gates, d_kept.gates);
    }
    NAME(copy)(n, d, d_belief, d_start);
    NAME(copy)(n, s, d_state, d_start_state);
}

static int NAME(observe_any)(const observe_arguments *a, int backward) {
    OPEN(memory)
    NAME(observe_job) job = {
        a, NAME(pack_core)(&memory, &a->size, &a->core, backward), NAME(pack)(&memory, a->posterior_own, backward),
        NAME(pack)(&memory, a->posterior_logits, backward),
    };
    const int failed = share(backward ? NAME(observe_backward_tile) : NAME(observe_tile), &job, a->batch, 1, 16, a->threads);
    release(&memory);
    return failed;
}

int NAME(observe)(const observe_arguments *a) { return NAME(observe_any)(a, 0); }

/* d_belief, d_state and d_scales come in as zeros, d_logits with what flows into them from outside. */
int NAME(observe_backward)(const observe_arguments *a) { return NAME(observe_any)(a, 1); }
