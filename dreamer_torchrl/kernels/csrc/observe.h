/* A whole observed sequence, forwards and backwards: what `observe` of modules/rollout.py says. A tile of sequences goes
 * through all its steps in one thread: none waits for another, and results do not depend on how many there are. */

typedef struct { const ObserveArguments *a; Core core; Matrix posterior_own, posterior_logits; } ObserveJob;

static void sample_state(const Sizes *size, double unimix, int n, Rows logits, Rows noise, Rows probs, Rows state) {
    for (int r = 0; r < n; r++) {
        softmax(size->variables, size->classes, row_of(logits, r), row_of(probs, r));
        choose(size->variables, size->classes, row_of(probs, r), unimix, row_of(noise, r), row_of(state, r));
    }
}

/* To d_logits is added what the state, a straight-through sample, passes on to the logits. */
static void sample_backward(const Sizes *size, double unimix, int n, Rows probs, Rows d_state, Rows d_logits) {
    const int classes = size->classes;
    const real share = 1 - (real)unimix;
    for (int r = 0; r < n; r++)
        for (int first = 0; first < size->variables * classes; first += classes) {
            const real *p = row_of(probs, r) + first, *d = row_of(d_state, r) + first;
            real *to = row_of(d_logits, r) + first, mean = 0;
            for (int k = 0; k < classes; k++) mean += p[k] * d[k];
            for (int k = 0; k < classes; k++) to[k] += share * p[k] * (d[k] - mean);
        }
}

/* Rows of a [batch, time, width] tensor at the time of a step. */
#define AT(tensor, width) step_of(tensor, row, a->time, time, width)

static void observe_tile(const void *given, long row, int n, Arena *memory) {
    const ObserveJob *job = given;
    const ObserveArguments *a = job->a;
    const int d = a->size.belief, s = job->core.state, h = a->size.hidden;
    const Rows belief = room(memory, n, d), state = room(memory, n, s), next = room(memory, n, d);
    const Rows inner = room(memory, n, h), hidden = room(memory, n, h);
    const Trace trace = trace_room(memory, n, &a->size);
    copy(n, d, rows_of(a->belief, row, d), next);
    for (long time = 0; time < a->time; time++) {
        const Rows kept = AT(a->kept, 1), logits = AT(a->logits, s);
        masked(n, d, next, kept, belief);
        masked(n, s, time ? step_of(a->states, row, a->time, time - 1, s) : rows_of(a->state, row, s), kept, state);
        copy(n, d, AT(a->action_share, d), trace.mixed);
        next_belief(&job->core, n, belief, state, &trace, next);
        copy(n, h, AT(a->encoded_share, h), inner);
        multiply(n, next, &job->posterior_own, inner, 0, 1);
        norm_silu(n, h, inner, a->posterior_scale, hidden);
        multiply(n, hidden, &job->posterior_logits, logits, a->posterior_logits_bias, 0);
        sample_state(&a->size, a->unimix, n, logits, AT(a->noise, a->size.variables), AT(a->probs, s), AT(a->states, s));
        copy(n, 2 * h, trace.inner, AT(a->inner, 2 * h));
        copy(n, 2 * h, trace.recurrent, AT(a->recurrent, 2 * h));
        copy(n, d, trace.mixed, AT(a->mixed, d));
        copy(n, d, trace.hidden, AT(a->hidden, d));
        copy(n, 3 * d, trace.gates, AT(a->gates, 3 * d));
        copy(n, d, next, AT(a->beliefs, d));
        copy(n, h, inner, AT(a->posterior_inner, h));
        copy(n, h, hidden, AT(a->posterior_hidden, h));
    }
}

static void observe_backward_tile(const void *given, long row, int n, Arena *memory) {
    const ObserveJob *job = given;
    const ObserveArguments *a = job->a;
    const int d = a->size.belief, s = job->core.state, h = a->size.hidden;
    const Rows belief = room(memory, n, d), next = room(memory, n, d);
    const Rows d_belief = room(memory, n, d), d_state = room(memory, n, s), d_logits = room(memory, n, s);
    const Rows d_hidden = room(memory, n, h), d_inner = room(memory, n, h);
    const Trace d_trace = trace_room(memory, n, &a->size);
    const Rows d_start = rows_of(a->d_belief, row, d), d_start_state = rows_of(a->d_state, row, s);
    const Rows d_scales = rows_of(a->d_scales, row, 3 * h + d);
    copy(n, d, d_start, d_belief);
    copy(n, s, d_start_state, d_state);
    for (long time = a->time - 1; time >= 0; time--) {
        const Rows kept = AT(a->kept, 1);
        const Trace trace = {.inner = AT(a->inner, 2 * h), .mixed = AT(a->mixed, d), .gates = AT(a->gates, 3 * d)};
        add(n, s, AT(a->d_states, s), d_state);
        copy(n, s, AT(a->d_logits, s), d_logits);
        sample_backward(&a->size, a->unimix, n, AT(a->probs, s), d_state, d_logits);
        multiply(n, d_logits, &job->posterior_logits, d_hidden, 0, 0);
        norm_silu_backward(n, h, AT(a->posterior_inner, h), a->posterior_scale, d_hidden, d_inner,
                           columns(d_scales, 2 * h + d));
        copy(n, d, d_belief, next);
        add(n, d, AT(a->d_beliefs, d), next);
        multiply(n, d_inner, &job->posterior_own, next, 0, 1);
        masked(n, d, time ? step_of(a->beliefs, row, a->time, time - 1, d) : rows_of(a->belief, row, d), kept, belief);
        next_belief_backward(&job->core, n, belief, &trace, next, &d_trace, d_belief, d_state, d_scales);
        masked(n, d, d_belief, kept, d_belief);
        masked(n, s, d_state, kept, d_state);
        copy(n, s, d_logits, AT(a->d_logits, s));
        copy(n, h, d_inner, AT(a->d_posterior_inner, h));
        copy(n, 2 * h, d_trace.inner, AT(a->d_inner, 2 * h));
        copy(n, d, d_trace.mixed, AT(a->d_mixed, d));
        copy(n, 3 * d, d_trace.gates, AT(a->d_gates, 3 * d));
    }
    copy(n, d, d_belief, d_start);
    copy(n, s, d_state, d_start_state);
}

static int observe_any(const ObserveArguments *a, int backward) {
    OPEN(memory)
    ObserveJob job = {
        a, pack_core(&memory, &a->size, &a->core, backward), pack(&memory, a->posterior_own, backward),
        pack(&memory, a->posterior_logits, backward),
    };
    const int failed = share(backward ? observe_backward_tile : observe_tile, &job, a->batch, 1, 16, a->threads);
    release(&memory);
    return failed;
}

int observe(const ObserveArguments *a) { return observe_any(a, 0); }
int observe_backward(const ObserveArguments *a) { return observe_any(a, 1); }
