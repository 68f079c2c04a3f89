/* Imagination: what `imagine` of modules/rollout.py computes, forward only. A tile of rows is carried through
 * all its steps by one thread. */

typedef struct {
    const imagine_arguments *a;
    NAME(core) core;
    NAME(actor) actor;
    NAME(layer) action_in, prior[MOST_LAYERS];
    MATRIX mix_action, prior_logits;
    int widest; /* layer of the prior */
} NAME(imagine_job);

/* Rows of a [rows, steps, width] tensor at one time. */
static inline ROWS NAME(step_of)(const void *tensor, long row, long steps, long time, long width) {
    return (ROWS){(REAL *)tensor + (row * steps + time) * width, steps * width};
}

static void NAME(imagine_tile)(const void *given, long row, int n, arena *memory) {
    const NAME(imagine_job) *job = given;
    const imagine_arguments *a = job->a;
    const int d = a->size.belief, s = job->core.state, width = d + s, actions = a->actor.action;
    const NAME(trace) trace = NAME(trace_room)(memory, n, &a->size);
    const NAME(actor_room) actor_room = NAME(room_for_actor)(memory, n, &job->actor);
    const ROWS here = NAME(room)(memory, n, job->widest), there = NAME(room)(memory, n, job->widest);
    const ROWS bounded = NAME(room)(memory, n, actions), action_hidden = NAME(room)(memory, n, a->size.hidden);
    const ROWS logits = NAME(room)(memory, n, s);
    ROWS now = NAME(room)(memory, n, width), next = NAME(room)(memory, n, width);
    REAL *probs = take(memory, s * sizeof(REAL));
    NAME(copy)(n, width, NAME(step_of)(a->features, row, a->time + 1, 0, width), now);
    for (long time = 0; time < a->time; time++) {
        const ROWS action = NAME(step_of)(a->actions, row, a->time + 1, time, actions);
        const ROWS action_noise = NAME(step_of)(a->action_noise, row, a->time, time, a->actor.noise);
        const ROWS noise = NAME(step_of)(a->noise, row, a->time, time, a->size.variables);
        NAME(act_on)(n, &job->actor, &actor_room, now, action_noise, action);
        NAME(bound)(n, actions, action, bounded);
        NAME(perceptron)(n, &job->action_in, 1, bounded, action_hidden, action_hidden);
        NAME(multiply)(n, action_hidden, &job->mix_action, trace.mixed, a->mix_bias, 0);
        NAME(next_belief)(&job->core, n, now, NAME(columns)(now, d), &trace, next);
        const ROWS hidden = NAME(perceptron)(n, job->prior, a->prior_layers, next, here, there);
        NAME(multiply)(n, hidden, &job->prior_logits, logits, a->prior_logits_bias, 0);
        NAME(sample_state)(&a->size, a->unimix, n, logits, noise, probs, NAME(columns)(next, d));
        NAME(copy)(n, width, next, NAME(step_of)(a->features, row, a->time + 1, time + 1, width));
        const ROWS before = now;
        now = next, next = before;
    }
}

int NAME(imagine)(const imagine_arguments *a) {
    OPEN(memory)
    NAME(imagine_job) job = {
        .a = a,
        .core = NAME(pack_core)(&memory, &a->size, &a->core, 0),
        .actor = NAME(actor_of)(&memory, &a->actor, 1),
        .action_in = NAME(layer_of)(&memory, &a->action_in, 1),
        .mix_action = NAME(pack)(&memory, a->mix_action, 0),
        .prior_logits = NAME(pack)(&memory, a->prior_logits, 0),
    };
    for (long i = 0; i < a->prior_layers; i++) {
        job.prior[i] = NAME(layer_of)(&memory, &a->prior[i], 1);
        if (job.prior[i].weight.out > job.widest) job.widest = job.prior[i].weight.out;
    }
    const int failed = share(NAME(imagine_tile), &job, a->rows, 1, 32, a->threads);
    release(&memory);
    return failed;
}
