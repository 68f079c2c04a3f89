/* Imagination: `imagine` of modules/rollout.py, forward only. One thread carries a tile of rows through all its steps. */

typedef struct {
    const ImagineArguments *a;
    Core core;
    Actor actor;
    Network action_in, prior;
    Layer mix_action, prior_logits;
} ImagineJob;

static void imagine_tile(const void *given, long row, int n, Arena *memory) {
    const ImagineJob *job = given;
    const ImagineArguments *a = job->a;
    const int d = a->size.belief, s = job->core.state, width = d + s, actions = a->actor.action;
    const Trace trace = trace_room(memory, n, &a->size);
    Actor actor = job->actor;
    make_room(memory, n, &actor);
    const Rows here = room(memory, n, job->prior.widest), there = room(memory, n, job->prior.widest);
    const Rows bounded = room(memory, n, actions), action_hidden = room(memory, n, a->size.hidden);
    const Rows logits = room(memory, n, s), probs = {take(memory, s * sizeof(real)), 0};
    Rows now = room(memory, n, width), next = room(memory, n, width);
    copy(n, width, step_of(a->features, row, a->time + 1, 0, width), now);
    for (long time = 0; time < a->time; time++) {
        const Rows action = step_of(a->actions, row, a->time + 1, time, actions);
        act_on(n, &actor, now, step_of(a->action_noise, row, a->time, time, a->actor.noise), action);
        bound(n, actions, action, bounded);
        perceptron(n, &job->action_in, bounded, action_hidden, action_hidden);
        linear(n, action_hidden, &job->mix_action, trace.mixed);
        next_belief(&job->core, n, now, columns(now, d), &trace, next);
        linear(n, perceptron(n, &job->prior, next, here, there), &job->prior_logits, logits);
        const Rows noise = step_of(a->noise, row, a->time, time, a->size.variables);
        sample_state(&a->size, a->unimix, n, logits, noise, probs, columns(next, d));
        copy(n, width, next, step_of(a->features, row, a->time + 1, time + 1, width));
        const Rows before = now;
        now = next, next = before;
    }
}

int imagine(const ImagineArguments *a) {
    OPEN(memory)
    ImagineJob job = {
        a, pack_core(&memory, &a->size, &a->core, 0), actor_of(&memory, &a->actor, 1),
        network_of(&memory, &a->action_in, 1), network_of(&memory, &a->prior, 1),
        layer_of(&memory, &a->mix_action, 1), layer_of(&memory, &a->prior_logits, 1),
    };
    const int failed = share(imagine_tile, &job, a->rows, 1, 32, a->threads);
    release(&memory);
    return failed;
}
